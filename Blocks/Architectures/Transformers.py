"""Attention: ViT on patches of an image; Transformer and Perceiver on the positions of a map or the numbers of a vector.

The blocks are torch's, with the norm before attention and MLP, GELU, and a LayerNorm at the end."""
from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from Blocks.Architectures.Images import ImageModule
from Blocks.Architectures.Linear import Linear
from Blocks.Architectures.Pools import AvgPool, CLSPool
from Blocks.Architectures.Shapes import as_image, at_least, divides, map_shape, times


def blocks(name: str, dim: int, heads: int | None, depth: int, hidden_dim: int | None, dropout: float) -> nn.Sequential:
    """`depth` transformer blocks: (B, T, dim) → the same. heads: None = gcd(8, dim). hidden_dim: of their MLPs; None = 4 · dim. Raises: ValueError."""
    heads = math.gcd(8, dim) if heads is None else heads
    at_least(name, 0, depth=depth)
    at_least(name, 1, hidden_dim=hidden_dim)
    divides(name, 'heads', heads, f'{dim} channels', dim)
    layers = [nn.TransformerEncoderLayer(dim, heads, hidden_dim or 4 * dim, dropout, 'gelu', batch_first=True, norm_first=True) for _ in range(depth)]
    return nn.Sequential(*layers, nn.LayerNorm(dim))


def learned(*shape: int) -> nn.Parameter:
    """A learned token or positions, (1, T, D)."""
    return nn.Parameter(nn.init.normal_(torch.empty(1, *shape), std=0.02))


class ViT(ImageModule):
    """Vision transformer (Dosovitskiy et al., 2010.11929) with learned positions: (B, C, H, W) → its tokens as a map of h × w patches.

    With pool_type=mean the map is (B, out_channels, h, w). With pool_type=cls there is a class token before the patches, which no grid has a place for:
    (B, out_channels, 1, h·w + 1), so that pool=CLSPool finds it at the first position.

    Args:
        output_dim: ends in a vector: the class token or the mean over the patches, linear.
        patch_size: pixels of a patch's side.
        out_channels: width of a token.
        heads: of the attention.
        depth: blocks.
        hidden_dim: of the blocks' MLPs; None = 4 · out_channels.
        dropout: in the blocks. emb_dropout: on the tokens before them.

    Raises:
        ValueError: the patch does not divide the image, or heads the width; an unknown pool_type."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, patch_size: int = 4, out_channels: int = 32, heads: int = 8,
                 depth: int = 3, hidden_dim: int | None = None, dropout: float = 0.1, emb_dropout: float = 0.1,
                 pool_type: Literal['cls', 'mean'] = 'cls') -> None:
        super().__init__(input_shape)
        channels, *sides = self.input_shape
        if pool_type not in ('cls', 'mean'):
            raise ValueError(f'ViT: pool_type={pool_type}: expected cls or mean')
        divides('ViT', 'patch_size', patch_size, f'an image of {times(sides)}', *sides)
        height, width = (side // patch_size for side in sides)
        cls = pool_type == 'cls'
        tokens = Tokens(channels, out_channels, patch_size, (1, height * width + 1) if cls else (height, width), cls, emb_dropout,
                        blocks('ViT', out_channels, heads, depth, hidden_dim, dropout))
        self.finish(tokens, output_dim, (out_channels, *tokens.grid), CLSPool if cls else AvgPool)


class Tokens(nn.Module):
    """Patches to tokens, a class token before them if asked for, positions, blocks: (B, C, H, W) → (B, D, *grid)."""

    def __init__(self, channels: int, dim: int, patch_size: int, grid: tuple[int, int], cls: bool, dropout: float, blocks: nn.Sequential) -> None:
        super().__init__()
        self.grid = grid
        self.patches = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.cls = learned(1, dim) if cls else None
        self.positions = learned(math.prod(grid), dim)
        self.dropout, self.blocks = nn.Dropout(dropout), blocks

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), -1, -1).to(x.dtype), x], 1)
        x = self.blocks(self.dropout(x + self.positions))
        return x.transpose(1, 2).unflatten(2, self.grid)


class Transformer(nn.Module):
    """Transformer encoder with learned positions over the positions of a map, (B, C, H, W) → (B, out_channels, H, W), or the numbers of a vector,
    (B, D) → (B, out_channels, 1, D). Attention grows with the square of the positions: for raw images choose ViT.

    Args:
        output_dim: ends in a vector: mean over positions, linear.
        out_channels: width of a token; None = C, or 32 where there are fewer than 8 channels to normalise over.
        heads: of the attention; None = the greatest common divisor of 8 and the width.
        depth: blocks.
        hidden_dim: of the blocks' MLPs; None = 4 · out_channels.
        dropout: in the blocks.

    Raises:
        ValueError: neither map nor vector; heads do not divide the width."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, out_channels: int | None = None, heads: int | None = None,
                 depth: int = 3, hidden_dim: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        at_least('Transformer', 1, output_dim=output_dim, out_channels=out_channels)
        self.input_shape = map_shape('Transformer', input_shape)
        channels, *self.grid = self.input_shape
        dim = out_channels or (32 if channels < 8 else channels)
        self.embed = nn.Identity() if dim == channels else Linear(channels, dim)
        self.positions = learned(math.prod(self.grid), dim)
        self.blocks = blocks('Transformer', dim, heads, depth, hidden_dim, dropout)
        self.head = None if output_dim is None else AvgPool((dim, *self.grid), output_dim)
        self.output_shape = (dim, *self.grid) if self.head is None else self.head.output_shape

    def forward(self, x: Tensor) -> Tensor:
        x = as_image(x, self.input_shape, 'Transformer').flatten(2).transpose(1, 2)
        x = self.blocks(self.embed(x) + self.positions).transpose(1, 2).unflatten(2, self.grid)
        return x if self.head is None else self.head(x)


class Perceiver(nn.Module):
    """Perceiver (Jaegle et al., 2103.03206) with one cross-attention: learned latents attend to the positions of a map (B, C, H, W), or to the numbers
    of a vector (B, D), then to one another; their mean is the output, (B, out_channels). Positions are told by Fourier features.

    Args:
        output_dim: a linear behind the mean.
        out_channels: width of a latent.
        latents: how many.
        heads: of the attention; None = the greatest common divisor of 8 and the width.
        depth: blocks of self-attention among the latents.
        hidden_dim: of the MLPs; None = 4 · out_channels.
        dropout: in all blocks.
        bands: frequencies per axis, from one to half of its positions.

    Raises:
        ValueError: neither map nor vector; heads do not divide the width."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, out_channels: int = 32, latents: int = 32, heads: int | None = None,
                 depth: int = 3, hidden_dim: int | None = None, dropout: float = 0.0, bands: int = 4) -> None:
        super().__init__()
        at_least('Perceiver', 1, output_dim=output_dim, out_channels=out_channels, latents=latents, bands=bands)
        self.input_shape, dim = map_shape('Perceiver', input_shape), out_channels
        self.blocks = blocks('Perceiver', dim, heads, depth, hidden_dim, dropout)
        positions = fourier(self.input_shape[1:], bands)
        self.positions: Tensor
        self.register_buffer('positions', positions, persistent=False)
        seen = self.input_shape[0] + positions.shape[1]
        self.latents = learned(latents, dim)
        self.norm, self.norm_seen = nn.LayerNorm(dim), nn.LayerNorm(seen)
        self.attention = nn.MultiheadAttention(dim, heads or math.gcd(8, dim), dropout, kdim=seen, vdim=seen, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), Linear(dim, hidden_dim or 4 * dim), nn.GELU(), nn.Dropout(dropout), Linear(hidden_dim or 4 * dim, dim),
                                 nn.Dropout(dropout))
        self.linear = None if output_dim is None else Linear(dim, output_dim)
        self.output_shape = (output_dim or dim,)

    def forward(self, x: Tensor) -> Tensor:
        x = as_image(x, self.input_shape, 'Perceiver').flatten(2).transpose(1, 2)
        x = self.norm_seen(torch.cat([x, self.positions.to(x.dtype).expand(len(x), -1, -1)], -1))
        latents = self.latents.expand(len(x), -1, -1)
        latents = latents + self.attention(self.norm(latents), x, x, need_weights=False)[0]
        x = self.blocks(latents + self.mlp(latents)).mean(1)
        return x if self.linear is None else self.linear(x)


def fourier(grid: tuple[int, int], bands: int) -> Tensor:
    """Of every position (y, x), each in [−1, 1]: the coordinates, and sin(π f p) and cos(π f p) of each for `bands` frequencies f from 1 to half of the
    positions → (H·W, 2 + 4 · bands) float32. An axis of one position has coordinate 0. Source: 2103.03206, section 3.2."""
    axes = []
    for size in grid:
        position = torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1)
        angle = math.pi * position[:, None] * torch.linspace(1, max(size / 2, 1), bands)
        axes.append(torch.cat([position[:, None], angle.sin(), angle.cos()], 1))
    height, width = grid
    return torch.cat([axes[0].repeat_interleave(width, 0), axes[1].repeat(height, 1)], 1)
