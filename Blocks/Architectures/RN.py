"""Relation network, after A simple neural network module for relational reasoning (Santoro et al., 1706.01427)."""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from Blocks.Architectures.MLP import MLP
from Blocks.Architectures.Shapes import as_image, at_least, map_shape, times


class RN(nn.Module):
    """f(mean over all pairs (i, j) of g(oᵢ, oⱼ)), where o is the channels at a position of a map (B, C, H, W) and its coordinates y, x in [−1, 1]:
    → (B, hidden_dim), or (B, output_dim). A vector (B, D) is D positions of one channel.

    The paper sums over the pairs; the mean keeps the scale when the map has another size.

    Args:
        hidden_dim: width of the hidden layers of f and g.
        depth: hidden layers of g; f has one.
        max_pairs: how many pairs are not too many: each costs `hidden_dim` numbers per image and layer.

    Raises:
        ValueError: neither map nor vector, or one of too many positions."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, hidden_dim: int = 256, depth: int = 2, max_pairs: int = 1 << 17) -> None:
        super().__init__()
        at_least('RN', 1, output_dim=output_dim, hidden_dim=hidden_dim, depth=depth, max_pairs=max_pairs)
        self.input_shape = map_shape('RN', input_shape)
        channels, *grid = self.input_shape
        pairs = math.prod(grid) ** 2
        if pairs > max_pairs:
            raise ValueError(f'RN: {times(grid)} positions make {pairs} pairs, more than max_pairs={max_pairs}: let it follow eyes that leave fewer, '
                             'such as Eyes=NatureCNN')
        y, x = (torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in grid)
        self.coordinates: Tensor
        self.register_buffer('coordinates', torch.cartesian_prod(y, x), persistent=False)
        self.g = MLP((2 * (channels + 2),), hidden_dim=hidden_dim, depth=depth)
        self.f = MLP((hidden_dim,), output_dim, hidden_dim)
        self.output_shape = self.f.output_shape

    def forward(self, x: Tensor) -> Tensor:
        x = as_image(x, self.input_shape, 'RN').flatten(2).transpose(1, 2)
        objects = torch.cat([x, self.coordinates.to(x.dtype).expand(len(x), -1, -1)], -1)
        batch, count, _ = objects.shape
        first = objects.unsqueeze(2).expand(-1, -1, count, -1)
        pairs = torch.cat([first, first.transpose(1, 2)], -1)
        return self.f(self.g(pairs.flatten(0, 2)).unflatten(0, (batch, count * count)).mean(1))
