"""ConvNeXt, after A ConvNet for the 2020s (Liu et al., 2201.03545): torchvision's network, for any channels and small images."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from Blocks.Architectures.Images import ImageModule
from Blocks.Architectures.Pools import AvgPool
from Blocks.Architectures.Shapes import at_least, rising, stages, times
from Blocks.Vision import import_torchvision

EPSILON = 1e-6  # of the layer norms
LAYER_SCALE = 1e-6  # what a block's branch is multiplied by at first


class ConvNeXt(ImageModule):
    """Patches, then stages of 7×7 depthwise and pointwise convolutions, each on half the sides: (B, C, H, W) → (B, dims[-1], h, w).

    Args:
        output_dim: ends in a vector: mean over positions, LayerNorm, linear.
        dims: channels of the stages.
        depths: blocks of the stages.
        patch_size: pixels of a patch's side; None = 4 as in the paper, or 2 where 4 would leave nothing for the last stage (ConvNeXtTiny below 32 pixels).
        stochastic_depth: probability that the last block is skipped, in training; it rises from 0 linearly.

    Raises:
        ValueError: the image is too small, or stages that do not go together."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, dims: Sequence[int] = (96, 192, 32), depths: Sequence[int] = (1, 1, 3),
                 patch_size: int | None = None, stochastic_depth: float = 0.0) -> None:
        super().__init__(input_shape)
        name, (channels, *sides) = type(self).__name__, self.input_shape
        stages(name, dims, depths)
        at_least(name, 1, patch_size=patch_size)
        halvings = 2 ** (len(dims) - 1)
        patch = patch_size or (4 if min(sides) >= 4 * halvings else 2)
        if min(sides) < patch * halvings:
            raise ValueError(f'{name}: an image of {times(sides)} is too small for patch_size={patch} and {len(dims)} stages: '
                             f'expected sides of {patch * halvings} or more')
        convnext, probabilities = import_torchvision('models.convnext'), rising(stochastic_depth, sum(depths))
        layers: list[nn.Module] = [nn.Sequential(nn.Conv2d(channels, dims[0], patch, patch), convnext.LayerNorm2d(dims[0], eps=EPSILON))]
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            if i:
                layers.append(nn.Sequential(convnext.LayerNorm2d(dims[i - 1], eps=EPSILON), nn.Conv2d(dims[i - 1], dim, 2, 2)))
            layers.append(nn.Sequential(*(convnext.CNBlock(dim, LAYER_SCALE, next(probabilities)) for _ in range(depth))))
        self.finish(nn.Sequential(*layers), output_dim, (dims[-1], *(side // patch // halvings for side in sides)), AvgNormPool)
        for module in self.modules():  # torchvision's initialisation
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class ConvNeXtTiny(ConvNeXt):
    """28 million weights: (B, C, H, W) → (B, 768, h, w); h and w are a 32nd of the sides, a 16th for images below 32 pixels. See `ConvNeXt`."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, patch_size: int | None = None, stochastic_depth: float = 0.0) -> None:
        super().__init__(input_shape, output_dim, (96, 192, 384, 768), (3, 3, 9, 3), patch_size, stochastic_depth)


class AvgNormPool(AvgPool):
    """The mean over all positions, LayerNorm, linear: ConvNeXt's head."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None) -> None:
        super().__init__(input_shape, output_dim)
        self.norm = nn.LayerNorm(self.input_shape[0], eps=EPSILON)

    def pool(self, x: Tensor) -> Tensor:
        return self.norm(super().pool(x))
