"""ConvMixer, after Patches Are All You Need? (Trockman & Kolter, 2201.09792)."""
from __future__ import annotations

from torch import Tensor, nn

from Blocks.Architectures.Images import ImageModule
from Blocks.Architectures.Shapes import at_least, times


class ConvMixer(ImageModule):
    """Patches, then `depth` times a depthwise convolution with a skip and a pointwise one: (B, C, H, W) → (B, out_channels, H // patch, W // patch).

    What is left of the image right of and below the last whole patch is not seen.

    Args:
        output_dim: ends in a vector: mean over positions, linear.
        kernel_size: of the depthwise convolutions.
        patch_size: pixels of a patch's side.

    Raises:
        ValueError: the image is smaller than a patch."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, out_channels: int = 32, depth: int = 3, kernel_size: int = 9,
                 patch_size: int = 7) -> None:
        super().__init__(input_shape)
        at_least('ConvMixer', 1, out_channels=out_channels, kernel_size=kernel_size, patch_size=patch_size)
        channels, *sides = self.input_shape
        if min(sides) < patch_size:
            raise ValueError(f'ConvMixer: patch_size={patch_size} is larger than an image of {times(sides)}; expected {min(sides)} or less')
        layers = [*activated(nn.Conv2d(channels, out_channels, patch_size, patch_size), out_channels)]
        for _ in range(depth):
            depthwise = nn.Conv2d(out_channels, out_channels, kernel_size, groups=out_channels, padding='same')
            layers += [Skip(*activated(depthwise, out_channels)), *activated(nn.Conv2d(out_channels, out_channels, 1), out_channels)]
        self.finish(nn.Sequential(*layers), output_dim, (out_channels, *(side // patch_size for side in sides)))


class Skip(nn.Sequential):
    """Its layers, and its input beside them."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def activated(convolution: nn.Conv2d, channels: int) -> tuple[nn.Module, ...]:
    return convolution, nn.GELU(), nn.BatchNorm2d(channels)
