"""Plain convolutional eyes: (B, C, H, W) → (B, channels, height, width)."""
from __future__ import annotations

import torch
from torch import Tensor, nn


def image_output(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape a stack of convolutions makes of `input_shape`. Raises: ValueError when the image is too small or is no image."""
    if len(input_shape) != 3:
        raise ValueError(f'{type(module).__name__} sees images (C, H, W), not {tuple(input_shape)}; for vectors choose Eyes=Null or Eyes=MLP')
    try:
        with torch.no_grad():
            return tuple(module(torch.zeros(1, *input_shape)).shape[1:])
    except RuntimeError:
        raise ValueError(f'{type(module).__name__}: an image of {tuple(input_shape)} is too small for its kernels and strides') from None


class CNN(nn.Module):
    """`depth` + 1 convolutions of `kernel_size`, the first with `stride`, ReLU after each, no padding: DrQ-v2's eyes by default."""

    def __init__(self, input_shape: tuple[int, ...], out_channels: int = 32, depth: int = 3, kernel_size: int = 3, stride: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(depth + 1):
            layers += [nn.Conv2d(out_channels if i else input_shape[0], out_channels, kernel_size, 1 if i else stride), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.output_shape = image_output(self, input_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class NatureCNN(nn.Module):
    """The convolutions of Mnih et al. 2015: 32 of 8×8 stride 4, 64 of 4×4 stride 2, 64 of 3×3; 84×84 → (64, 7, 7).

    Args:
        width: multiplies the channels.
        layer_norm: normalise over channels and space after every convolution."""

    def __init__(self, input_shape: tuple[int, ...], width: float = 1.0, layer_norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = input_shape[0]
        for out, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
            out = int(out * width)
            layers += [nn.Conv2d(channels, out, kernel, stride), *([nn.GroupNorm(1, out)] if layer_norm else []), nn.ReLU(inplace=True)]
            channels = out
        self.layers = nn.Sequential(*layers)
        self.output_shape = image_output(self, input_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
