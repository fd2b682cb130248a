"""Pools: a feature map (B, C, H, W) becomes a vector (B, C). With `output_dim` a linear stands behind, so that each is a trunk or head as well."""
from __future__ import annotations

import math

from torch import Tensor, nn

from Blocks.Architectures.Linear import Linear
from Blocks.Architectures.Shapes import as_image, at_least, divides, image_shape

ADVICE = 'behind a part that ends in a vector choose pool=Flatten, and for a pool as trunk pool=Null'


class Pool(nn.Module):
    """Base of pools: (B, C, H, W) → (B, C), or (B, output_dim).

    Raises:
        ValueError: the input is no map."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None) -> None:
        super().__init__()
        at_least(type(self).__name__, 1, output_dim=output_dim)
        self.input_shape = image_shape(type(self).__name__, input_shape, 'maps (C, H, W)', ADVICE)
        self.linear = None if output_dim is None else Linear(self.input_shape[0], output_dim)
        self.output_shape = (output_dim or self.input_shape[0],)

    def pool(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(as_image(x, self.input_shape, type(self).__name__))
        return x if self.linear is None else self.linear(x)


class AvgPool(Pool):
    """The mean over all positions."""

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class MaxPool(Pool):
    """The largest of every channel."""

    def pool(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


class CLSPool(Pool):
    """The first position: the class token of a `ViT` with pool_type=cls."""

    def pool(self, x: Tensor) -> Tensor:
        return x[:, :, 0, 0]


class AttentionPool(Pool):
    """`depth` times x ← x + attention(LayerNorm(x)) over the positions, then their mean. Where a position lies makes no difference.

    Args:
        heads: of the attention; None = the greatest common divisor of 8 and the channels.

    Raises:
        ValueError: heads do not divide the channels."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, heads: int | None = None, depth: int = 1) -> None:
        super().__init__(input_shape, output_dim)
        channels, heads = self.input_shape[0], heads if heads is not None else math.gcd(8, self.input_shape[0])
        at_least('AttentionPool', 1, depth=depth)
        divides('AttentionPool', 'heads', heads, f'{channels} channels', channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(depth))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(channels, heads, batch_first=True) for _ in range(depth))

    def pool(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            y = norm(x)
            x = x + attention(y, y, y, need_weights=False)[0]
        return x.mean(1)
