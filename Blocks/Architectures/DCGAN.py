"""Generator and discriminator of DCGAN (Radford et al., 1511.06434): `Generator=DCGAN.Generator Discriminator=DCGAN.Discriminator`.

Between a start of 4 to 24 pixels a side and the image, each layer doubles (or halves) the sides: 64 = 4·2⁴, 28 = 7·2², 84 = 21·2²."""
from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from Blocks.Architectures.Images import ImageModule
from Blocks.Architectures.Shapes import at_least, times

SMALLEST, LARGEST = 4, 24  # pixels of the start's sides


class Generator(nn.Module):
    """Noise, or any vector, to an image in (−1, 1): (B, *input_shape) → (B, C, H, W), or flat (B, C·H·W) with `output_dim`, as an action is.

    Args:
        output_dim: C·H·W, as an actor asks its head for; the image is then put out flat.
        image_shape: (C, H, W); None = a square image of 1 or 3 channels with `output_dim` numbers.
        out_channels: of the layer before the image; it doubles from layer to layer towards the start.
        tanh: squash the pixels; false where the actor itself does.

    Raises:
        ValueError: sides that are not 4 to 24 pixels doubled some times; `output_dim` and `image_shape` that do not fit, or neither."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, image_shape: Sequence[int] | None = None, out_channels: int = 64,
                 tanh: bool = True) -> None:
        super().__init__()
        at_least('DCGAN.Generator', 1, output_dim=output_dim, out_channels=out_channels)
        self.image_shape = shape_to_make(output_dim, image_shape)
        start, doublings = start_of('DCGAN.Generator', self.image_shape)
        width = math.prod(input_shape)
        layers: list[nn.Module] = [nn.Unflatten(1, (width, 1, 1))]
        for i in range(doublings + 1):
            last = i == doublings
            out = self.image_shape[0] if last else out_channels << (doublings - 1 - i)
            layers += [nn.ConvTranspose2d(width, out, 4, 2, 1, bias=False) if i else nn.ConvTranspose2d(width, out, start, bias=False),
                       *([] if last else [nn.BatchNorm2d(out), nn.ReLU(inplace=True)])]
            width = out
        self.layers = nn.Sequential(*layers, *([nn.Tanh()] if tanh else []))
        self.layers.apply(init_dcgan)
        self.flat = output_dim is not None
        self.output_shape: tuple[int, ...] = (math.prod(self.image_shape),) if self.flat else self.image_shape

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x.flatten(1))
        return x.flatten(1) if self.flat else x


class Discriminator(ImageModule):
    """An image, or the same flat, to how real it is, as a logit: (B, C, H, W) or (B, C·H·W) → (B, output_dim).

    Args:
        out_channels: of the first layer; it doubles from layer to layer.

    Raises:
        ValueError: no image, or sides that are not 4 to 24 pixels doubled some times."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int = 1, out_channels: int = 64) -> None:
        super().__init__(input_shape)
        at_least('DCGAN.Discriminator', 1, output_dim=output_dim, out_channels=out_channels)
        start, halvings = start_of('DCGAN.Discriminator', self.input_shape)
        width, layers = self.input_shape[0], []  # type: int, list[nn.Module]
        for i in range(halvings):
            out = out_channels << i
            layers += [nn.Conv2d(width, out, 4, 2, 1, bias=False), *([nn.BatchNorm2d(out)] if i else []), nn.LeakyReLU(0.2, inplace=True)]
            width = out
        self.finish(nn.Sequential(*layers, nn.Conv2d(width, output_dim, start, bias=False), nn.Flatten()), None, (output_dim,))
        self.layers.apply(init_dcgan)


def shape_to_make(output_dim: int | None, shape: Sequence[int] | None) -> tuple[int, int, int]:
    """(C, H, W) of what a generator makes, from either or both. Raises: ValueError."""
    option = 'give image_shape=[C,H,W]'
    if shape is None:
        if output_dim is None:
            raise ValueError(f'DCGAN.Generator: nothing says which image to make; {option}')
        for channels in (1, 3):
            side = math.isqrt(output_dim // channels)
            if channels * side * side == output_dim:
                return channels, side, side
        raise ValueError(f'DCGAN.Generator: output_dim={output_dim} is no square image of 1 or 3 channels; {option}')
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f'DCGAN.Generator: image_shape={list(shape)}: expected [C,H,W]')
    channels, height, width = shape
    if output_dim not in (None, channels * height * width):
        raise ValueError(f'DCGAN.Generator: image_shape={list(shape)} has {channels * height * width} numbers, output_dim={output_dim} asks for others')
    return channels, height, width


def start_of(name: str, shape: tuple[int, int, int]) -> tuple[tuple[int, int], int]:
    """The sides before all doublings, and how many there are. Raises: ValueError when the sides cannot be made so."""
    height, width = shape[1:]
    doublings = 0
    while height % 2 == width % 2 == 0 and min(height, width) >= 2 * SMALLEST:
        height, width, doublings = height // 2, width // 2, doublings + 1
    if min(height, width) < SMALLEST or max(height, width) > LARGEST:
        raise ValueError(f'{name}: an image of {times(shape[1:])}: expected sides of {SMALLEST} to {LARGEST} pixels times the same power of two, as '
                         '28, 32, 64 and 84 are')
    return (height, width), doublings


def init_dcgan(module: nn.Module) -> None:
    """The paper's weights: N(0, 0.02); of batch norm N(1, 0.02), as in its code."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
