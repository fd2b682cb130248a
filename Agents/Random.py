"""Uniform random actions: the floor of every comparison."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from Agents.Agent import Agent
from Datasets.Replay import Replay
from Datasets.Specs import ActionSpec
from Environment import Step


class Random(Agent):
    def __init__(self, *, action_spec: ActionSpec, **settings: Any) -> None:
        super().__init__(**settings)
        self.action_spec = action_spec

    def act(self, step: Step, state: Any = None, greedy: bool = False) -> tuple[Tensor, dict[str, Tensor], Any]:
        return uniform_action(self.action_spec, step.obs.shape[0], self.evaluating if greedy else self.acting), {}, state

    def learn(self, replay: Replay) -> dict[str, Tensor]:
        return {}


def uniform_action(action_spec: ActionSpec, num_envs: int, random: torch.Generator) -> Tensor:
    """(N,) int64 or (N, A) float32 in [−1, 1)."""
    if action_spec.num_actions is not None:
        return torch.randint(action_spec.num_actions, (num_envs,), generator=random)
    return torch.rand((num_envs, *action_spec.shape), generator=random) * 2 - 1
