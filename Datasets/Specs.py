"""What a suite shows and what it accepts: plain, frozen descriptions that agents, blocks and the replay are built from."""
import math
from dataclasses import dataclass

import numpy as np
import torch

STACK_PADS = ('zeros', 'repeat')


@dataclass(frozen=True)
class ObsSpec:
    """One observation of one environment.

    Args:
        shape: of ONE frame, (C, H, W) for images or (D,) for vectors.
        dtype: torch.uint8 for images, torch.float32 for vectors.
        low, high: smallest and largest value of an element (may be infinite for vectors).
        frame_stack: how many frames, oldest first, an agent sees at once.
        stack_pad: what stands before an episode's first frame: 'zeros' (Atari) or 'repeat' of the first frame (DMC).
        mean, std: of each channel (or element of a vector) over the data, where they are known; in the units of the observation.

    Raises:
        ValueError: a shape that is neither (C, H, W) nor (D,), a stack below 1, or an unknown padding.
    """
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.uint8
    low: float = 0.0
    high: float = 255.0
    frame_stack: int = 1
    stack_pad: str = 'zeros'
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'shape', tuple(int(size) for size in self.shape))
        if len(self.shape) not in (1, 3):
            raise ValueError(f'obs shape {self.shape}: expected (C, H, W) or (D,)')
        if self.frame_stack < 1:
            raise ValueError(f'frame_stack={self.frame_stack}: expected 1 or more')
        if self.stack_pad not in STACK_PADS:
            raise ValueError(f'stack_pad={self.stack_pad}: expected one of {", ".join(STACK_PADS)}')

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """Shape an agent sees: (C * frame_stack, H, W) or (D * frame_stack,)."""
        return (self.shape[0] * self.frame_stack, *self.shape[1:])

    @property
    def numpy_dtype(self) -> np.dtype:
        return torch.empty(0, dtype=self.dtype).numpy().dtype


@dataclass(frozen=True)
class ActionSpec:
    """One action of one environment.

    Args:
        shape: () for a discrete action (an index below `num_actions`), (A,) for a continuous one.
        num_actions: number of choices; None for continuous actions.
        low, high: range of each element of a continuous action as agents give it; suites rescale to the simulator's own units.

    Raises:
        ValueError: a discrete spec without a positive `num_actions`, or an empty range.
    """
    shape: tuple[int, ...] = ()
    num_actions: int | None = None
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, 'shape', tuple(int(size) for size in self.shape))
        if self.num_actions is not None and self.num_actions < 1:
            raise ValueError(f'num_actions={self.num_actions}: expected 1 or more, or None for continuous actions')
        if self.num_actions is None and not self.shape:
            raise ValueError('action shape () without num_actions: a continuous action has shape (A,), a discrete one needs num_actions')
        if not self.low < self.high:
            raise ValueError(f'action range [{self.low}, {self.high}]: expected low < high')

    @property
    def discrete(self) -> bool:
        return self.num_actions is not None

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64 if self.discrete else torch.float32

    @property
    def size(self) -> int:
        """Number of elements of one action: 1 if discrete, A if continuous."""
        return math.prod(self.shape)
