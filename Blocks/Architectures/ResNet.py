"""Residual networks (He et al., 1512.03385) of torchvision's blocks."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import nn

from Blocks.Architectures.Images import ImageModule
from Blocks.Architectures.Shapes import at_least, halved, stages
from Blocks.Vision import import_torchvision

Stem = Literal['auto', 'cifar', 'imagenet']
SMALL = 96  # pixels of the shorter side below which stem=auto keeps the resolution


class ResNet(ImageModule):
    """A stem and stages of residual blocks: (B, C, H, W) → (B, dims[-1], h, w). As it stands UnifiedML's MiniResNet, which keeps the resolution.

    Args:
        output_dim: ends in a vector: mean over positions, linear.
        dims: channels of the stem, then of each stage; a bottleneck puts out four times as many.
        depths: blocks of each stage.
        stride: of the first block of every stage but the first.
        kernel_size: of the convolutions that see neighbours; odd.
        stem: cifar is one convolution without stride, imagenet 7×7 with stride 2 and a max-pool, which leave a quarter of the sides; auto is cifar for
            images whose shorter side is below 96 pixels.
        zero_init_residual: every block begins as the identity (1706.02677).
        bottleneck: blocks of three convolutions, 1×1, 3×3 with the stride, 1×1, in place of two.

    Raises:
        ValueError: an unknown stem, an even kernel, or stages that do not go together."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, dims: Sequence[int] = (32, 32), depths: Sequence[int] = (3,),
                 stride: int = 2, kernel_size: int = 3, stem: Stem = 'cifar', zero_init_residual: bool = False, bottleneck: bool = False) -> None:
        super().__init__(input_shape)
        name, (channels, *sides) = type(self).__name__, self.input_shape
        stages(name, dims, depths, more=1)
        at_least(name, 1, stride=stride, kernel_size=kernel_size)
        if stem not in ('auto', 'cifar', 'imagenet'):
            raise ValueError(f'{name}: stem={stem}: expected auto, cifar or imagenet')
        if kernel_size % 2 == 0 or (bottleneck and kernel_size != 3):
            raise ValueError(f'{name}: kernel_size={kernel_size}: expected {"3, as a bottleneck has it" if bottleneck else "an odd number"}')
        shrinks = stem == 'imagenet' or (stem == 'auto' and min(sides) >= SMALL)
        first = nn.Conv2d(channels, dims[0], 7, 2, 3, bias=False) if shrinks else nn.Conv2d(channels, dims[0], kernel_size, 1, kernel_size // 2, bias=False)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv1=first, bn1=nn.BatchNorm2d(dims[0]), relu=nn.ReLU(inplace=True))
        if shrinks:
            layers['maxpool'] = nn.MaxPool2d(3, 2, 1)
            sides = [halved(halved(side)) for side in sides]
        width = dims[0]
        for i, (dim, depth) in enumerate(zip(dims[1:], depths, strict=True)):
            step = stride if i else 1
            layers[f'layer{i + 1}'] = stage(width, dim, depth, step, kernel_size, bottleneck)
            sides, width = [halved(side, step) for side in sides], dim * (4 if bottleneck else 1)
        self.finish(nn.Sequential(layers), output_dim, (width, *sides))
        for module in self.layers.modules():  # torchvision's initialisation; its batch norms are torch's own
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        if zero_init_residual:
            for parameter_name, parameter in self.layers.named_parameters():
                if parameter_name.endswith('.bn3.weight' if bottleneck else '.bn2.weight'):
                    nn.init.zeros_(parameter)


MiniResNet = ResNet


def stage(channels: int, dim: int, depth: int, stride: int, kernel_size: int, bottleneck: bool) -> nn.Sequential:
    """`depth` of torchvision's residual blocks, the first with the stride and, where the shape changes, a 1×1 convolution beside it."""
    resnet = import_torchvision('models.resnet')
    block, blocks = resnet.Bottleneck if bottleneck else resnet.BasicBlock, []
    out = dim * block.expansion
    for i in range(depth):
        step = 1 if i else stride
        beside = nn.Sequential(nn.Conv2d(channels, out, 1, step, bias=False), nn.BatchNorm2d(out)) if step != 1 or channels != out else None
        made = block(channels, dim, step, beside)
        if kernel_size != 3:
            made.conv1, made.conv2 = (nn.Conv2d(c.in_channels, dim, kernel_size, c.stride, kernel_size // 2, bias=False) for c in (made.conv1, made.conv2))
        blocks.append(made)
        channels = out
    return nn.Sequential(*blocks)


class ResNet18(ResNet):
    """11 million weights: (B, C, H, W) → (B, 512, h, w); sides of an eighth with stem=cifar, of a 32nd with imagenet. See `ResNet`."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, stem: Stem = 'auto', zero_init_residual: bool = False) -> None:
        super().__init__(input_shape, output_dim, (64, 64, 128, 256, 512), (2, 2, 2, 2), stem=stem, zero_init_residual=zero_init_residual)


class ResNet34(ResNet):
    """21 million weights: (B, C, H, W) → (B, 512, h, w). See `ResNet18`."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, stem: Stem = 'auto', zero_init_residual: bool = False) -> None:
        super().__init__(input_shape, output_dim, (64, 64, 128, 256, 512), (3, 4, 6, 3), stem=stem, zero_init_residual=zero_init_residual)


class ResNet50(ResNet):
    """24 million weights in bottlenecks: (B, C, H, W) → (B, 2048, h, w). The stride is on the 3×3, as in torchvision. See `ResNet18`."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, stem: Stem = 'auto', zero_init_residual: bool = False) -> None:
        super().__init__(input_shape, output_dim, (64, 64, 128, 256, 512), (3, 4, 6, 3), stem=stem, zero_init_residual=zero_init_residual, bottleneck=True)
