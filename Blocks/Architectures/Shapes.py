"""What architectures ask of shapes: is it an image, is it large enough, does one number divide another. Each answer that is no is one line."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

VECTORS = 'for vectors choose Eyes=Null or Eyes=MLP'


def image_shape(name: str, shape: Sequence[int], what: str = 'images (C, H, W)', advice: str = VECTORS) -> tuple[int, int, int]:
    """`shape` as (C, H, W). Raises: ValueError when it is something else; `name` is who says so and `advice` what to do about it."""
    if len(shape) != 3:
        raise ValueError(f'{name} sees {what}, not {tuple(shape)}; {advice}')
    channels, height, width = map(int, shape)
    at_least(name, 1, channels=channels, height=height, width=width)
    return channels, height, width


def map_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """A map as it is; a vector as D positions of one channel, (1, 1, D). Raises: ValueError for anything else."""
    return image_shape(name, (1, 1, *shape) if len(shape) == 1 else shape, 'maps (C, H, W) and vectors (D,)', 'choose what comes before it accordingly')


def as_image(x: Tensor, shape: tuple[int, int, int], name: str) -> Tensor:
    """x: (B, C, H, W), or flat (B, C·H·W) as an action that is an image → (B, C, H, W). Raises: ValueError when the flat size is another."""
    if x.dim() != 2:
        return x
    if x.shape[1] != math.prod(shape):
        raise ValueError(f'{name}: {x.shape[1]} numbers are no image of {times(shape)}, which has {math.prod(shape)}')
    return x.unflatten(1, shape)


def tried(layers: nn.Module, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The shape that `layers` make of an image, by trying. No random numbers are drawn and batch norm's moments stay."""
    layers.eval()
    try:
        with torch.no_grad():
            return tuple(layers(torch.zeros(1, *shape)).shape[1:])
    finally:
        layers.train()


def at_least(name: str, least: int, **values: int | None) -> None:
    """Raises: ValueError for the first of `values` that is smaller; None is none of them."""
    for key, value in values.items():
        if value is not None and value < least:
            raise ValueError(f'{name}: {key}={value}: expected {least} or more')


def stages(name: str, dims: Sequence[int], depths: Sequence[int], more: int = 0) -> None:
    """Refuses stages whose widths and numbers of blocks do not go together. more: how many more `dims` there are. Raises: ValueError."""
    if not depths or len(dims) != len(depths) + more or min(*dims, *depths, 1) < 1:
        expected = 'one more of dims than of depths' if more else 'as many of dims as of depths'
        raise ValueError(f'{name}: dims={list(dims)}, depths={list(depths)}: expected {expected}, all of them 1 or more')


def divides(name: str, key: str, value: int, what: str, *numbers: int) -> None:
    """Refuses a `value` that does not divide all `numbers`, and names those next to it that do. Raises: ValueError."""
    at_least(name, 1, **{key: value})
    common = math.gcd(*numbers)
    if common % value:
        good = [n for n in range(1, common + 1) if common % n == 0]
        near = [f(n for n in good if pick(n)) for f, pick in ((max, lambda n: n < value), (min, lambda n: n > value)) if any(map(pick, good))]
        raise ValueError(f'{name}: {key}={value} does not divide {what}; try {" or ".join(map(str, near))}')


def halved(size: int, stride: int = 2) -> int:
    """What a convolution of this stride leaves of a side when its padding is half its odd kernel."""
    return -(-size // stride)


def rising(probability: float, count: int) -> Iterator[float]:
    """`count` numbers from 0 to `probability` in equal steps. Raises: ValueError when it is none."""
    if not 0 <= probability < 1:
        raise ValueError(f'stochastic_depth={probability}: expected a probability below 1')
    return (probability * i / max(count - 1, 1) for i in range(count))


def times(shape: Sequence[int]) -> str:
    """3×32×32."""
    return '×'.join(map(str, shape))
