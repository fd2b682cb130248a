"""torchvision's transforms (v2) by name, with parameters of their own for every sample: applied to a batch, a RandomHorizontalFlip would flip all or none.

What happens to a sample depends on the seed, the pass and its place in the data, and on nothing else: not on batches, nor on the processes that read.
Flips and crops, which nearly everybody uses, are done for a whole batch at once; all others one sample after the other.
"""
from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from Blocks.Vision import import_torchvision

DRAWS = 2  # random numbers that a transform has for each sample


class Transforms:
    """Some in a row.

    Args:
        recipe: name → arguments, `{'RandomHorizontalFlip': {}, 'RandomCrop': {'padding': 4}}`; a size that is not given is that of the image.
        shape: (C, H, W) of the images, which all transforms keep.
        seed: of the draws.
        where: config key, for messages.

    Raises:
        ValueError: no such transform, arguments that it does not take, or images of another shape."""

    def __init__(self, recipe: Mapping[str, Any], shape: tuple[int, ...], seed: int, where: str = 'replay.transform') -> None:
        if not isinstance(recipe, Mapping):
            raise ValueError(f'{where}={recipe}: expected names with arguments, "{{RandomHorizontalFlip:{{}}}}"')
        if recipe and len(shape) != 3:
            raise ValueError(f'{where}={next(iter(recipe))}: the data are vectors {shape}, transforms are for images')
        self.recipe, self.shape, self.seed, self.where = dict(recipe), shape, seed, where
        self.steps = [(name, self._made(name, arguments)) for name, arguments in recipe.items()]
        self.table: tuple[tuple[int, int], np.ndarray] = ((-1, 0), np.empty(0))
        probe = torch.zeros(2, *shape, dtype=torch.uint8)
        for step in range(len(self.steps)):
            self._tried(step, probe)

    def __bool__(self) -> bool:
        return bool(self.steps)

    def _made(self, name: str, arguments: Any) -> Any:
        v2 = import_torchvision('transforms.v2')
        kinds = {key: value for key, value in vars(v2).items() if inspect.isclass(value) and issubclass(value, v2.Transform) and value is not v2.Transform}
        if name not in kinds:
            close = difflib.get_close_matches(name, kinds, n=3, cutoff=0.4) or ['RandomHorizontalFlip', 'RandomCrop']
            raise ValueError(f'{self.where}={name}: torchvision.transforms.v2 has no such transform; nearest: {", ".join(close)}')
        if not (arguments is None or isinstance(arguments, Mapping)):
            raise ValueError(f'{self.where}.{name}={arguments}: expected its arguments by name, "{{{name}:{{}}}}"')
        arguments = dict(arguments or {})
        needed = inspect.signature(kinds[name]).parameters
        if 'size' in needed and needed['size'].default is inspect.Parameter.empty and 'size' not in arguments:
            arguments['size'] = list(self.shape[1:])
        try:
            return kinds[name](**arguments)
        except Exception as error:  # each has its own way of refusing
            raise ValueError(f'{self.where}.{name}: {" ".join(str(error).split())}') from error

    def _tried(self, step: int, images: Tensor) -> None:
        name = self.steps[step][0]
        with torch.random.fork_rng():
            try:
                seen = self._apply(step, images, np.full((len(images), DRAWS), 0.5))
            except Exception as error:
                raise ValueError(f'{self.where}.{name}: does not fit images {self.shape}: {" ".join(str(error).split())[:200]}') from error
        if seen.shape != images.shape:
            raise ValueError(f'{self.where}.{name}: makes {tuple(seen.shape[1:])} of images {self.shape}; expected one that keeps their shape '
                             '(image_size=N resizes all, the test images too)')

    def __call__(self, images: Tensor, epoch: int, index: np.ndarray, length: int) -> Tensor:
        """A batch of one pass.

        Args:
            images: (B, C, H, W) uint8.
            epoch: the pass.
            index: (B,) int64, places in the data.
            length: of the data.

        Returns:
            The same shape and dtype."""
        draws = self.draws(epoch, length)[index]
        for step in range(len(self.steps)):
            images = self._apply(step, images, draws[:, step])
        return images

    def draws(self, epoch: int, length: int) -> np.ndarray:
        """(length, transforms, DRAWS) uniform in [0, 1): what the samples of a pass have."""
        if self.table[0] != (epoch, length):
            self.table = (epoch, length), np.random.default_rng((self.seed, epoch)).random((length, len(self.steps), DRAWS))
        return self.table[1]

    def _apply(self, step: int, images: Tensor, draws: np.ndarray) -> Tensor:
        name, transform = self.steps[step]
        if name in ('RandomHorizontalFlip', 'RandomVerticalFlip'):
            flipped = torch.from_numpy(draws[:, 0] < transform.p)
            return torch.where(flipped[:, None, None, None], images.flip(-1 if name == 'RandomHorizontalFlip' else -2), images)
        if name == 'RandomCrop' and not transform.pad_if_needed and isinstance(transform.fill, (int, float)):
            return cropped(transform, images, draws)
        with torch.random.fork_rng(devices=[]):
            parts = []
            for image, draw in zip(images, draws, strict=True):
                torch.manual_seed(int(draw[0] * 2 ** 53))
                parts.append(as_bytes(transform(image)))
        return torch.stack(parts)


def cropped(transform: Any, images: Tensor, draws: np.ndarray) -> Tensor:
    """RandomCrop of a batch: padded by torchvision, then a window for each image."""
    v2 = import_torchvision('transforms.v2.functional')
    if transform.padding:
        left, right, top, bottom = transform.padding  # as RandomCrop keeps them, which `pad` takes in another order
        images = v2.pad(images, [left, top, right, bottom], fill=transform.fill, padding_mode=transform.padding_mode)
    (height, width), (h, w) = transform.size, images.shape[-2:]
    if h < height or w < width:
        raise ValueError(f'size={list(transform.size)} is more than the image with its padding, {h}×{w}')
    row, column = (torch.from_numpy((draws[:, k] * (room - size + 1)).astype(np.int64)) for k, room, size in ((0, h, height), (1, w, width)))
    rows, columns = row[:, None] + torch.arange(height), column[:, None] + torch.arange(width)
    return images[torch.arange(len(images))[:, None, None, None], torch.arange(images.shape[1])[None, :, None, None], rows[:, None, :, None],
                  columns[:, None, None, :]]


def as_bytes(image: Tensor) -> Tensor:
    """What a transform made of bytes: bytes as they are, floats in [0, 1] scaled back. Raises: ValueError: floats beyond."""
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point() or image.min() < 0 or image.max() > 1:
        raise ValueError(f'makes {image.dtype} from {image.min():g} to {image.max():g} of bytes; expected bytes, or floats from 0 to 1 '
                         '(the data are standardised anyway)')
    return (image * 255).round().to(torch.uint8)
