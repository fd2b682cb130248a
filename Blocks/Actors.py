"""Actor: representation → distribution over continuous actions in (−1, 1)."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from Blocks.Block import Block
from Datasets.Specs import ActionSpec
from Utils import build

EPSILON = 1e-6  # actions stay within ±(1 − EPSILON)


class TruncatedNormal:
    """Gaussian noise around a mean in (−1, 1), clamped to the open box with a straight-through gradient (DrQ-v2).

    mean: (B, A); stddev: scalar or (B, A)."""

    def __init__(self, mean: Tensor, stddev: Tensor | float) -> None:
        self.mean, self.stddev = mean, stddev

    def sample(self, noise: Tensor, clip: float | None = None) -> Tensor:
        """noise: standard normal, (B, A) or (K, B, A). The gradient with respect to the mean is 1 also where the clamp is active."""
        noise = noise * self.stddev
        if clip is not None:
            noise = noise.clamp(-clip, clip)
        action = self.mean + noise
        return action.clamp(-1 + EPSILON, 1 - EPSILON).detach() + (action - action.detach())  # the second term is exactly 0: nothing is rounded past the box

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density of the untruncated Gaussian, summed over action dimensions: (…, B)."""
        stddev = torch.as_tensor(self.stddev, dtype=self.mean.dtype, device=self.mean.device)
        return (-0.5 * ((action - self.mean) / stddev) ** 2 - stddev.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


class Actor(Block):
    """Trunk and policy head with a tanh mean; the standard deviation comes from a schedule."""

    def __init__(self, repr_shape: tuple[int, ...], action_spec: ActionSpec, recipe: Mapping[str, Any], *, trunk: str = 'Null', pi_head: str = 'MLP',
                 trunk_dim: int = 50, **given: Any) -> None:
        super().__init__()
        self.trunk = build(recipe.get('trunk'), trunk, 'recipes.actor.trunk', input_shape=repr_shape, output_dim=trunk_dim, **given)
        self.pi_head = build(recipe.get('pi_head'), pi_head, 'recipes.actor.pi_head', input_shape=tuple(self.trunk.output_shape),
                             output_dim=action_spec.size, **given)

    def forward(self, representation: Tensor, stddev: Tensor | float) -> TruncatedNormal:
        """representation: (B, *repr_shape) → distribution with mean (B, A) in (−1, 1), float32."""
        return TruncatedNormal(torch.tanh(self.pi_head(self.trunk(representation)).float()), stddev)
