"""Any network of timm (pytorch-image-models): `Eyes=timm.resnet18`, with arguments of its own as `+recipes.encoder.eyes.options.drop_path_rate=0.1`."""
from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from Blocks.Architectures.Shapes import as_image, at_least, image_shape, times, tried
from Blocks.Vision import import_torchvision


class Timm(nn.Module):
    """A network of timm for images of any channels: (B, C, H, W), or the same flat, → its last map (B, D, h, w).

    Args:
        output_dim: ends in a vector (B, output_dim), through the head that the network itself has.
        name: timm's name of it, which `timm.<name>` in place of this class has already.
        pretrained: with weights that timm downloads.
        options: more arguments for the network.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such network or option, or the image does not fit it."""

    model = ''

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, name: str = '', pretrained: bool = False,
                 options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        name = name or self.model
        self.title = f'timm.{name}' if name else 'Timm'
        timm = import_timm(self.title)
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4) or ['resnet18', 'convnext_tiny', 'vit_small_patch16_224']
            raise ValueError(f'{self.title}: timm {timm.__version__} has no network of the name {name!r}; nearest: {", ".join(close)}')
        at_least(self.title, 1, output_dim=output_dim)
        self.input_shape = image_shape(self.title, input_shape)
        channels, *sides = self.input_shape
        config = timm.get_pretrained_cfg(name)
        arguments = {'in_chans': channels} | ({'img_size': tuple(sides)} if config and config.fixed_input_size else {}) | dict(options or {})
        form: dict[str, Any] = {'num_classes': output_dim} if output_dim else {'features_only': True, 'out_indices': (-1,)}
        try:
            self.network = timm.create_model(name, pretrained=pretrained, **arguments, **form)
            self.output_shape = tried(self, self.input_shape)
        except Exception as error:  # networks refuse in their own ways: TypeError, AssertionError, RuntimeError
            reason = ' '.join(str(error).split()) or type(error).__name__
            raise ValueError(f'{self.title}, image {times(self.input_shape)}, options={dict(options or {})}: {reason}') from error

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(as_image(x, self.input_shape, self.title))
        if isinstance(y, list):  # of maps
            y = y[-1]
            return y.movedim(-1, 1) if getattr(self.network, 'output_fmt', 'NCHW') == 'NHWC' else y
        return y


def import_timm(title: str) -> ModuleType:
    """Timm, which imports torchvision. Raises: ImportError with the line that installs it."""
    import_torchvision()
    try:
        return importlib.import_module('timm')
    except ModuleNotFoundError as error:
        if error.name != 'timm':
            raise
        raise ImportError(f'{title} needs timm: pip install timm==1.0.31', name='timm') from None


@functools.cache
def bound(name: str) -> type[Timm]:
    """`Timm` for one network."""
    return type(name, (Timm,), {'model': name, '__module__': __name__, '__doc__': f'The network {name} of timm.'})


def __getattr__(name: str) -> type[Timm]:
    if name.startswith('_'):
        raise AttributeError(name)
    return bound(name)
