"""CoAtNet (Dai et al., 2106.04803): convolutions first, then attention with relative positions."""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Blocks.Architectures.Images import ImageModule
from Blocks.Architectures.Shapes import divides, halved, rising, stages, times
from Blocks.Vision import import_torchvision

SMALL = 64  # pixels of the shorter side below which the stem keeps the resolution
SMALLEST = 17  # pixels: four halvings leave two positions, the fewest among which attention can choose


class CoAtNet(ImageModule):
    """A stem of convolutions, two stages of torchvision's MBConv, two of transformer blocks; every stage halves the sides: (B, C, H, W) → (B, D, h, w).

    Sides are divided by 32, or by 16 for images whose shorter side is below 64 pixels (their stem has no stride), and rounded up.

    Args:
        output_dim: ends in a vector: mean over positions, linear.
        dims: channels of the stem and the four stages.
        depths: convolutions of the stem, then blocks of the four stages.
        head_dim: channels of an attention head.
        stochastic_depth: probability that the last block is skipped, in training; it rises from 0 linearly.

    Raises:
        ValueError: a side below 17 pixels, or stages that do not go together."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, dims: Sequence[int] = (64, 96, 192, 384, 768),
                 depths: Sequence[int] = (2, 2, 3, 5, 2), head_dim: int = 32, stochastic_depth: float = 0.0) -> None:
        super().__init__(input_shape)
        name, (channels, *sides) = type(self).__name__, self.input_shape
        stages(name, dims, depths)
        if len(dims) != 5:
            raise ValueError(f'{name}: dims={list(dims)}: expected five, of the stem and four stages')
        divides(name, 'head_dim', head_dim, f'the channels {dims[3]} and {dims[4]} of the attention', *dims[3:])
        if min(sides) < SMALLEST:
            raise ValueError(f'{name}: an image of {times(sides)} is too small: expected sides of {SMALLEST} or more')
        mbconv, probabilities = import_torchvision('models.maxvit').MBConv, rising(stochastic_depth, sum(depths[1:]))
        stride = 1 if min(sides) < SMALL else 2
        sides = [halved(side, stride) for side in sides]
        stem: list[nn.Module] = []
        for i in range(depths[0]):
            stem += [nn.Conv2d(dims[0] if i else channels, dims[0], 3, 1 if i else stride, 1, bias=False), nn.BatchNorm2d(dims[0]), nn.GELU()]
        layers = [nn.Sequential(*stem)]
        for i in range(1, 5):
            sides, blocks = [halved(side) for side in sides], []
            for j in range(depths[i]):
                before, step = (dims[i], 1) if j else (dims[i - 1], 2)
                blocks.append(mbconv(before, dims[i], 4, 0.25, step, nn.GELU, nn.BatchNorm2d, next(probabilities)) if i < 3
                              else AttentionBlock(before, dims[i], (sides[0], sides[1]), step, head_dim, next(probabilities)))
            layers.append(nn.Sequential(*blocks))
        self.finish(nn.Sequential(*layers), output_dim, (dims[4], *sides))


class AttentionBlock(nn.Module):
    """x ← shrink(x) + attention(shrink(LayerNorm(x))), x ← x + MLP(LayerNorm(x)); to shrink is a max-pool where there is a stride.

    (B, C, H, W) → (B, dim, *grid), (H, W) = stride · grid."""

    def __init__(self, channels: int, dim: int, grid: tuple[int, int], stride: int, head_dim: int, stochastic_depth: float) -> None:
        super().__init__()
        self.grid = grid
        self.shrink = nn.MaxPool2d(3, stride, 1) if stride > 1 else nn.Identity()
        self.beside = nn.Conv2d(channels, dim, 1) if channels != dim else nn.Identity()
        self.norm = nn.LayerNorm(channels)
        self.attention = RelativeAttention(channels, dim, grid, head_dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.skip = import_torchvision('ops').StochasticDepth(stochastic_depth, 'row')

    def forward(self, x: Tensor) -> Tensor:
        y = self.shrink(self.norm(x.movedim(1, -1)).movedim(-1, 1)).flatten(2).transpose(1, 2)
        x = self.beside(self.shrink(x)).flatten(2).transpose(1, 2)
        x = x + self.skip(self.attention(y))
        x = x + self.skip(self.mlp(x))
        return x.transpose(1, 2).unflatten(2, self.grid)


class RelativeAttention(nn.Module):
    """Self-attention whose logits have a learned term for every head and offset between positions: (B, T, channels) → (B, T, dim)."""

    def __init__(self, channels: int, dim: int, grid: tuple[int, int], head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv, self.merge = nn.Linear(channels, 3 * dim), nn.Linear(dim, dim)
        height, width = grid
        self.offsets = nn.Parameter(nn.init.trunc_normal_(torch.empty(dim // head_dim, (2 * height - 1) * (2 * width - 1)), std=0.02))
        y, x = torch.cartesian_prod(torch.arange(height), torch.arange(width)).unbind(1)
        index = (y[:, None] - y + height - 1) * (2 * width - 1) + x[:, None] - x + width - 1
        self.index: Tensor
        self.register_buffer('index', index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, self.offsets[:, self.index].to(q.dtype))
        return self.merge(x.transpose(1, 2).flatten(2))


class CoAtNet0(CoAtNet):
    """25 million weights: (B, C, H, W) → (B, 768, h, w). See `CoAtNet`."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, stochastic_depth: float = 0.0) -> None:
        super().__init__(input_shape, output_dim, (64, 96, 192, 384, 768), (2, 2, 3, 5, 2), stochastic_depth=stochastic_depth)


class CoAtNet1(CoAtNet):
    """42 million weights: (B, C, H, W) → (B, 768, h, w). See `CoAtNet`."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, stochastic_depth: float = 0.0) -> None:
        super().__init__(input_shape, output_dim, (64, 96, 192, 384, 768), (2, 2, 6, 14, 2), stochastic_depth=stochastic_depth)


class CoAtNet2(CoAtNet):
    """75 million weights: (B, C, H, W) → (B, 1024, h, w). See `CoAtNet`."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, stochastic_depth: float = 0.0) -> None:
        super().__init__(input_shape, output_dim, (128, 128, 256, 512, 1024), (2, 2, 6, 14, 2), stochastic_depth=stochastic_depth)


class CoAtNet3(CoAtNet):
    """168 million weights: (B, C, H, W) → (B, 1536, h, w). See `CoAtNet`."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, stochastic_depth: float = 0.0) -> None:
        super().__init__(input_shape, output_dim, (192, 192, 384, 768, 1536), (2, 2, 6, 14, 2), stochastic_depth=stochastic_depth)


class CoAtNet4(CoAtNet):
    """275 million weights: (B, C, H, W) → (B, 1536, h, w). See `CoAtNet`."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, stochastic_depth: float = 0.0) -> None:
        super().__init__(input_shape, output_dim, (192, 192, 384, 768, 1536), (2, 2, 12, 28, 2), stochastic_depth=stochastic_depth)
