"""Creator: turns critic outputs over candidate actions into a policy, so that one value agent plays discrete and continuous tasks.

The candidates are all actions (discrete) or samples of an actor (continuous)."""
from __future__ import annotations

import torch
from torch import Tensor


class Creator:
    """Categorical policy over K candidates from an ensemble of their values.

    Args:
        q: (ensemble, B, K) values of the candidates.
        optimism: weight of the ensemble's standard deviation; candidates are ranked by u = (1 − optimism) · mean + optimism · std.
        temperature: of the softmax; annealed by the agent."""

    def __init__(self, q: Tensor, temperature: Tensor | float = 1.0, optimism: float = 0.0) -> None:
        u = q.mean(0)
        if optimism:
            u = (1 - optimism) * u + optimism * q.std(0, unbiased=False)
        self.u, self.temperature = u, temperature

    @property
    def best(self) -> Tensor:
        """(B,) int64: the candidate with the highest u."""
        return self.u.argmax(-1)

    @property
    def probs(self) -> Tensor:
        """(B, K): softmax(u / T)."""
        return torch.softmax(self.u / self.temperature, -1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """(B,) int64, drawn from `probs`."""
        return torch.multinomial(self.probs.cpu(), 1, generator=generator).squeeze(-1).to(self.u.device)

    def epsilon_greedy(self, epsilon: float, generator: torch.Generator) -> Tensor:
        """(B,) int64: uniform with probability epsilon, else the best."""
        best = self.best.cpu()
        explore = torch.rand(best.shape, generator=generator) < epsilon
        return torch.where(explore, torch.randint(self.u.shape[-1], best.shape, generator=generator), best)
