"""Parts that add no weights."""
from __future__ import annotations

import math

from torch import Tensor, nn


class Null(nn.Module):
    """Leaves its input as it is."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output_shape = tuple(input_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Flatten(nn.Module):
    """(B, *input_shape) → (B, product of input_shape)."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output_shape = (math.prod(input_shape),)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)
