"""Image augmentations: what learning sees differently from acting. `output_shape` tells the encoder's input; `evaluate` is the acting form."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from Utils import require


class Null(nn.Module):
    """No augmentation."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output_shape = tuple(input_shape)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x

    def evaluate(self, x: Tensor) -> Tensor:
        return x


class RandomShift(Null):
    """Shifts every image by whole pixels, up to `pad` each way, edges repeated (DrQ, 2004.13649; DrQ-v2, 2107.09645).

    All channels of a sample move together. An index gather: bit-exact for any dtype, never interpolated."""

    def __init__(self, input_shape: tuple[int, ...], pad: int = 4) -> None:
        super().__init__(input_shape)
        if len(input_shape) != 3:
            raise ValueError(f'Aug=RandomShift sees images (C, H, W), not {tuple(input_shape)}')
        require(pad >= 0, 'recipes.aug.pad', pad, '0 or more')
        self.pad = pad

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x: (B, C, H, W) → the same shape and dtype; offsets uniform on {−pad … pad}², one a sample."""
        b, c, h, w = x.shape
        offset = torch.randint(0, 2 * self.pad + 1, (2, b, 1), generator=generator, device=generator.device if generator else None).to(x.device) - self.pad
        rows = (torch.arange(h, device=x.device) + offset[0]).clamp_(0, h - 1)   # (B, H)
        columns = (torch.arange(w, device=x.device) + offset[1]).clamp_(0, w - 1)  # (B, W)
        pixels = (rows[:, :, None] * w + columns[:, None, :]).view(b, 1, h * w)
        return x.reshape(b, c, h * w).gather(2, pixels.expand(b, c, h * w)).view(b, c, h, w)


class RandomCrop(Null):
    """A window of `size`² pixels, drawn anew for every image when learning, the middle one when acting (CURL, 2004.04136; RAD, 2004.14990).

    All channels of a sample share it. An image of that size passes as it is. Every position is as likely, the last one included: CURL's own code
    never draws it."""

    def __init__(self, input_shape: tuple[int, ...], size: int = 84) -> None:
        super().__init__(input_shape)
        if len(input_shape) != 3 or min(input_shape[1:]) < size:
            raise ValueError(f'Aug=RandomCrop size={size}: expected images (C, H, W) of at least that size, not {tuple(input_shape)}')
        self.size = size
        self.output_shape = (input_shape[0], size, size)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x: (B, C, H, W) → (B, C, size, size), any dtype."""
        b, c, h, w = x.shape
        rooms = torch.tensor([h - self.size + 1, w - self.size + 1])
        if rooms.max() == 1:
            return x
        device = generator.device if generator else None
        top, left = (torch.randint(0, int(room), (b, 1, 1), generator=generator, device=device).to(x.device) for room in rooms)
        span = torch.arange(self.size, device=x.device)
        pixels = ((top + span[:, None]) * w + left + span).view(b, 1, self.size ** 2)
        return x.reshape(b, c, h * w).gather(2, pixels.expand(b, c, -1)).view(b, c, self.size, self.size)

    def evaluate(self, x: Tensor) -> Tensor:
        top, left = ((length - self.size) // 2 for length in x.shape[-2:])
        return x[..., top:top + self.size, left:left + self.size]


class Intensity(Null):
    """Multiplies each stacked image by 1 + scale · clip(N(0, 1), −2, 2) (SPR, 2007.05929 §A): float output, 0–255 nominal, not clamped."""

    def __init__(self, input_shape: tuple[int, ...], scale: float = 0.05) -> None:
        super().__init__(input_shape)
        self.scale = scale

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn((x.shape[0], *[1] * (x.dim() - 1)), generator=generator, device=generator.device if generator else None).to(x.device)
        return x * (1 + self.scale * noise.clamp_(-2, 2))


class ShiftIntensity(Null):
    """RandomShift, then Intensity: SPR's pair."""

    def __init__(self, input_shape: tuple[int, ...], pad: int = 4, scale: float = 0.05) -> None:
        super().__init__(input_shape)
        self.shift, self.intensity = RandomShift(input_shape, pad), Intensity(input_shape, scale)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.intensity(self.shift(x, generator), generator)


class AmplitudeNoise(Null):
    """Views of vectors: every sample is scaled by one factor from [1 − scale, 1 + scale] (random amplitude scaling, RAD 2004.14990), and each element
    moved by Gaussian noise of standard deviation `noise`."""

    def __init__(self, input_shape: tuple[int, ...], scale: float = 0.2, noise: float = 0.01) -> None:
        super().__init__(input_shape)
        self.scale, self.noise = scale, noise

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x: (B, ...) float32."""
        device = generator.device if generator else None
        factor = 1 + self.scale * (2 * torch.rand((len(x), *[1] * (x.dim() - 1)), generator=generator, device=device) - 1)
        return x * factor.to(x.device) + self.noise * torch.randn(x.shape, generator=generator, device=device).to(x.device)
