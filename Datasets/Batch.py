"""What the replay hands out: plain dataclasses of tensors."""
from dataclasses import dataclass, field

import torch


@dataclass
class Sequence:
    """Consecutive transitions from each drawn one on, padded with zeros behind an episode's end or the newest row.

    obs: (B, horizon + 1, *stacked), a view whose stacks overlap in memory: copy before writing;  action: (B, horizon, ...);
    reward: (B, horizon) float32, clipped like the n-step reward;
    mask: (B, horizon) float32, 1 where the transition belongs to the drawn one's episode;
    obs_mask: (B, horizon + 1) float32, 1 where the observation does: also the final one behind the last transition, if it was stored.
    """
    obs: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    mask: torch.Tensor
    obs_mask: torch.Tensor


@dataclass
class Batch:
    """B drawn transitions.

    obs, next_obs: (B, *stacked), next_obs min(nstep, steps left) later. Where an episode ended without a stored final observation (`discount` is 0)
    next_obs ends in whatever follows: after a lost life the true next frame; None: nothing follows any of them;
    action: (B, ...);  reward: (B,) float32, Σ γᵏ r over those steps;  discount: (B,) float32, γ^steps, 0 where there is nothing to bootstrap from;
    indices: (B,) int64 on the CPU, for `write`;  weight: (B,) float32, None: all 1;  label: (B,) if the replay has such a column;  extras: (B, ...) each.
    """
    obs: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    discount: torch.Tensor
    next_obs: torch.Tensor | None
    indices: torch.Tensor
    weight: torch.Tensor | None
    label: torch.Tensor | None = None
    sequence: Sequence | None = None
    extras: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Rollout:
    """The newest T transitions of each of N lanes, in time order.

    obs: (N, T, *stacked);  action: (N, T, ...);  reward (raw, clipped if the replay clips): (N, T) float32;
    terminated, truncated, first: (N, T) bool;  discount: (N, T) float32: γ, 0 after a transition with nothing to bootstrap from;
    bootstrap_obs: (N, *stacked), follows the newest transition (meaningless where its discount is 0).
    Inside the rollout the observation after transition t is `obs[:, t + 1]`, except after a truncation: those (K of them, the newest included) are
    final_obs: (K, *stacked) with final_index: (K,) int64 into the flattened (N * T);
    extras: (N, T, ...) each, (N, U, ...) for the U unrolls that the T transitions touch where `every` > 1;  indices: (N, T) int64 on the CPU.
    """
    obs: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor
    first: torch.Tensor
    discount: torch.Tensor
    bootstrap_obs: torch.Tensor
    final_obs: torch.Tensor
    final_index: torch.Tensor
    indices: torch.Tensor
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
