"""Actor: representation → distribution over actions."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from Blocks.Block import Block
from Datasets.Specs import ActionSpec
from Utils import build

EPSILON = 1e-6  # actions stay within ±(1 − EPSILON)


class TruncatedNormal:
    """Gaussian noise around a mean in (−1, 1), clamped to the open box with a straight-through gradient (DrQ-v2).

    mean: (B, A); stddev: scalar or (B, A); logits: (B, A), whose tanh the mean is."""

    def __init__(self, mean: Tensor, stddev: Tensor | float, logits: Tensor | None = None) -> None:
        self.mean, self.stddev, self.logits = mean, stddev, logits

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


class TanhNormal:
    """A Gaussian squashed by tanh into (−1, 1) (SAC, 1801.01290 appendix C). mean, log_std: (B, A), before the squash."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean, log_std

    @property
    def logits(self) -> Tensor:
        """(B, A): as scores of classes."""
        return self.mean

    @property
    def best(self) -> Tensor:
        """(B, A): the squashed mean."""
        return torch.tanh(self.mean)

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """noise: standard normal (B, A) → action (B, A), and the log of its density (B,), with the gradient of both."""
        before = self.mean + noise * self.log_std.exp()
        # log(1 − tanh²x) = 2 (log 2 − x − softplus(−2x)), exact where 1 − tanh²x rounds to 0
        squash = 2 * (math.log(2) - before - F.softplus(-2 * before))
        return torch.tanh(before), (-0.5 * noise.square() - self.log_std - squash).sum(-1) - 0.5 * math.log(2 * math.pi) * noise.shape[-1]


class Categorical:
    """A choice among K actions. logits: (B, K)."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.log_probs = logits, torch.log_softmax(logits, -1)

    @property
    def probs(self) -> Tensor:
        return self.log_probs.exp()

    @property
    def best(self) -> Tensor:
        """(B,) int64: the likeliest."""
        return self.log_probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """(B,): of actions (B,) int64."""
        return self.log_probs.gather(-1, action[:, None]).squeeze(-1)

    def entropy(self) -> Tensor:
        """(B,)."""
        return -(self.probs * self.log_probs).sum(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """(B,) int64."""
        return torch.multinomial(self.probs.cpu(), 1, generator=generator).squeeze(-1).to(self.log_probs.device)


class DiagonalNormal:
    """A Gaussian over all real actions, its components independent. mean: (B, A); log_std: (A,) or (B, A)."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean, log_std.expand_as(mean)

    @property
    def best(self) -> Tensor:
        """(B, A)."""
        return self.mean

    def sample(self, generator: torch.Generator) -> Tensor:
        """(B, A)."""
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device).to(self.mean.device)
        return self.mean + noise * self.log_std.exp()

    def log_prob(self, action: Tensor) -> Tensor:
        """(B,): the log density of (B, A)."""
        return (-0.5 * ((action - self.mean) / self.log_std.exp()).square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """(B,)."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class OpenActor(Block):
    """Trunk and policy head of a policy that is not squashed: a Categorical, or a Gaussian with a standard deviation that no observation changes.

    Args:
        log_std: of the Gaussian at the start."""

    def __init__(self, repr_shape: tuple[int, ...], action_spec: ActionSpec, recipe: Mapping[str, Any], *, trunk: str = 'Null', pi_head: str = 'MLP',
                 trunk_dim: int = 50, log_std: float = 0.0, **given: Any) -> None:
        super().__init__()
        self.trunk = build(recipe.get('trunk'), trunk, 'recipes.actor.trunk', input_shape=repr_shape, output_dim=trunk_dim, **given)
        self.pi_head = build(recipe.get('pi_head'), pi_head, 'recipes.actor.pi_head', input_shape=tuple(self.trunk.output_shape),
                             output_dim=action_spec.num_actions or action_spec.size, **given)
        self.log_std = None if action_spec.discrete else torch.nn.Parameter(torch.full(action_spec.shape, float(log_std)))

    def forward(self, representation: Tensor) -> Categorical | DiagonalNormal:
        """representation: (B, *repr_shape) → the policy, float32."""
        out = self.pi_head(self.trunk(representation)).float()
        return Categorical(out) if self.log_std is None else DiagonalNormal(out, self.log_std)


class StochasticActor(Block):
    """Trunk and policy head of a policy with an entropy of its own: a TanhNormal over continuous actions, a Categorical over discrete ones.

    Args:
        log_std: smallest and largest log standard deviation; a tanh maps the head's output between them.
        image_shape: actions are images of this shape: the head draws their mean alone, and the deviation is the smallest."""

    def __init__(self, repr_shape: tuple[int, ...], action_spec: ActionSpec, recipe: Mapping[str, Any], *, trunk: str = 'Null', pi_head: str = 'MLP',
                 trunk_dim: int = 50, log_std: tuple[float, float] = (-10.0, 2.0), image_shape: tuple[int, ...] | None = None, **given: Any) -> None:
        super().__init__()
        self.discrete, self.log_std, self.draws = action_spec.discrete, log_std, image_shape is not None
        given = given | ({'image_shape': image_shape} if image_shape else {})
        self.trunk = build(recipe.get('trunk'), trunk, 'recipes.actor.trunk', input_shape=repr_shape, output_dim=trunk_dim, **given)
        self.pi_head = build(recipe.get('pi_head'), pi_head, 'recipes.actor.pi_head', input_shape=tuple(self.trunk.output_shape),
                             output_dim=action_spec.num_actions or (1 if self.draws else 2) * action_spec.size, **given)

    def forward(self, representation: Tensor) -> Any:
        """representation: (B, *repr_shape) → TanhNormal or Categorical, float32."""
        out = self.pi_head(self.trunk(representation)).float()
        if self.discrete:
            return Categorical(out)
        low, high = self.log_std
        if self.draws:
            return TanhNormal(out, torch.full_like(out, low))
        mean, raw = out.chunk(2, -1)
        return TanhNormal(mean, low + 0.5 * (high - low) * (torch.tanh(raw) + 1))


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
        logits = self.pi_head(self.trunk(representation)).float()
        return TruncatedNormal(torch.tanh(logits), stddev, logits)
