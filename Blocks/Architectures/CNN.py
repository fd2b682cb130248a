"""Plain convolutional eyes: (B, C, H, W) → (B, channels, height, width)."""
from __future__ import annotations

from torch import Tensor, nn

from Blocks.Architectures.Images import ImageModule


class CNN(ImageModule):
    """`depth` + 1 convolutions of `kernel_size`, the first with `stride`, ReLU after each, no padding: DrQ-v2's eyes by default.

    Args:
        output_dim: ends in a vector: mean over positions, linear.
        padding: pixels of zeros on every side, before each convolution.
        batch_norm: normalise after every convolution, which then has no bias."""

    redrawn = True

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, out_channels: int = 32, depth: int = 3, kernel_size: int = 3,
                 stride: int = 2, padding: int = 0, batch_norm: bool = False) -> None:
        super().__init__(input_shape)
        layers: list[nn.Module] = []
        for i in range(depth + 1):
            layers += [nn.Conv2d(out_channels if i else self.input_shape[0], out_channels, kernel_size, 1 if i else stride, padding, bias=not batch_norm),
                       *([nn.BatchNorm2d(out_channels)] if batch_norm else []), nn.ReLU(inplace=True)]
        self.finish(nn.Sequential(*layers), output_dim)


class NatureCNN(ImageModule):
    """The convolutions of Mnih et al. 2015: 32 of 8×8 stride 4, 64 of 4×4 stride 2, 64 of 3×3; 84×84 → (64, 7, 7).

    Args:
        output_dim: ends in a vector: mean over positions, linear.
        last_kernel: of the third convolution.
        width: multiplies the channels.
        layer_norm: normalise over channels and space after every convolution."""

    redrawn = True

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, width: float = 1.0, layer_norm: bool = False,
                 last_kernel: int = 3) -> None:
        super().__init__(input_shape)
        layers: list[nn.Module] = []
        channels = self.input_shape[0]
        for out, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, last_kernel, 1)):
            out = int(out * width)
            layers += [nn.Conv2d(channels, out, kernel, stride), *([nn.GroupNorm(1, out)] if layer_norm else []), nn.ReLU(inplace=True)]
            channels = out
        self.finish(nn.Sequential(*layers), output_dim)


class RNDCNN(NatureCNN):
    """NatureCNN whose third kernel is 4×4: the policy's eyes in Burda et al. 2018 (1810.12894); 84×84 → (64, 6, 6)."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None) -> None:
        super().__init__(input_shape, output_dim, last_kernel=4)


class Residual(nn.Module):
    """x + convolution of ReLU of convolution of ReLU of x, 3×3, the size kept."""

    redrawn = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ImpalaCNN(ImageModule):
    """The deep network of IMPALA (Espeholt et al. 2018, 1802.01561): three times a convolution, a maximum pool of stride 2 and two residual blocks.

    64×64 → (32, 8, 8).

    Args:
        output_dim: ends in a vector: mean over positions, linear.
        width: multiplies the channels."""

    redrawn = True

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, width: float = 1.0) -> None:
        super().__init__(input_shape)
        layers: list[nn.Module] = []
        channels = self.input_shape[0]
        for out in (16, 32, 32):
            out = int(out * width)
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.MaxPool2d(3, 2, 1), Residual(out), Residual(out)]
            channels = out
        self.finish(nn.Sequential(*layers, nn.ReLU(inplace=True)), output_dim)
