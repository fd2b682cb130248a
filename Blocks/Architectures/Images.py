"""The base of what sees images."""
from __future__ import annotations

from torch import Tensor, nn

from Blocks.Architectures.Pools import AvgPool, Pool
from Blocks.Architectures.Shapes import as_image, at_least, image_shape, tried


class ImageModule(nn.Module):
    """Images (B, C, H, W), or the same flat (B, C·H·W), through `layers` → a map, or a vector (B, output_dim) through a pool and a linear behind it.

    A subclass calls `super().__init__(input_shape)`, builds its layers and hands them to `finish`.

    Attributes:
        input_shape: (C, H, W). output_shape: (C, H, W), or (output_dim,).

    Raises:
        ValueError: the input is no image, or too small."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.input_shape = image_shape(type(self).__name__, input_shape)

    def finish(self, layers: nn.Module, output_dim: int | None, shape: tuple[int, ...] | None = None, pool: type[Pool] = AvgPool) -> None:
        """Takes the layers. shape: of the map that they make, where it is known; else they are tried on an image. pool: what `output_dim` puts behind."""
        self.layers = layers
        try:
            shape = shape or tried(layers, self.input_shape)
        except RuntimeError:
            raise ValueError(f'{type(self).__name__}: an image of {self.input_shape} is too small for its kernels and strides') from None
        at_least(type(self).__name__, 1, output_dim=output_dim)
        self.head = None if output_dim is None else pool(shape, output_dim)
        self.output_shape: tuple[int, ...] = shape if self.head is None else self.head.output_shape

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(as_image(x, self.input_shape, type(self).__name__))
        return x if self.head is None else self.head(x)
