"""Losses and targets that agents share: pure functions, tested against numbers worked out by hand."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import Parallel


def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """y = R + D · V(next): reward (B,) n-step, discount (B,) γⁿ and 0 where terminated."""
    return reward + discount * next_value


def next_value_discrete(target_q: Tensor, online_q: Tensor | None = None) -> Tensor:
    """Value of the best next action, the lowest over the target ensemble.

    target_q: (ensemble, B, A); online_q: the same from the online network, which then picks the action (double DQN, 1509.06461) → (B,)."""
    pick = (target_q if online_q is None else online_q).mean(0).argmax(-1)
    lowest = target_q[0] if target_q.shape[0] == 1 else target_q.min(0).values
    return lowest.gather(-1, pick[:, None]).squeeze(-1)


def td_loss(q: Tensor, target_q: Tensor, huber: bool = True, weight: Tensor | None = None) -> Tensor:
    """Mean over the batch, sum over the ensemble. q: (ensemble, B); target_q: (B,).

    Huber with delta 1 clips the gradient of the error to ±1, as the Nature paper does; else the square."""
    target = target_q.expand_as(q)
    loss = F.smooth_l1_loss(q, target, reduction='none') if huber else F.mse_loss(q, target, reduction='none')
    if weight is not None:
        loss = loss * weight
    return loss.mean(1).sum(0)


def gather_actions(q: Tensor, action: Tensor) -> Tensor:
    """q: (ensemble, B, A), action: (B,) int64 → (ensemble, B)."""
    return q.gather(-1, action.expand(q.shape[0], -1)[..., None]).squeeze(-1)


def clipped(reward: Tensor, clip: float | None) -> Tensor:
    return reward if clip is None else torch.clamp(reward, -clip, clip)


def advantages(reward: Tensor, value: Tensor, next_value: Tensor, discount: Tensor, ended: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, 1506.02438, eq. 16): A = δ + γλ A′, δ = r + γ V(s′) − V(s).

    reward, value, next_value: (N, T) float32; next_value of the true next observation, also where a time limit ended the episode;
    discount: (N, T) γ, 0 where nothing is to come; ended: (N, T) bool, the sum ends there.  → (N, T)."""
    delta = reward + discount * next_value - value
    keep = discount * lam * ~ended
    advantage, later = torch.empty_like(delta), torch.zeros_like(delta[:, 0])
    for t in range(delta.shape[1] - 1, -1, -1):
        advantage[:, t] = later = delta[:, t] + keep[:, t] * later
    return advantage


def standardised(advantage: Tensor) -> Tensor:
    """To mean 0 and deviation 1 over the batch (B,), which is that of all processes together."""
    if Parallel.world_size == 1:
        return (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    rest = advantage - Parallel.mean(advantage.mean())
    deviation = (Parallel.sum_up(rest.square().sum()) / (len(rest) * Parallel.world_size - 1)).sqrt()
    return rest / (deviation + 1e-8)


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
    """−E[min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)] (1707.06347, eq. 7), and the share of ratios that lie outside. log_ratio, advantage: (B,)."""
    ratio = log_ratio.exp()
    loss = -torch.min(ratio * advantage, torch.clamp(ratio, 1 - clip, 1 + clip) * advantage).mean()
    return loss, ((ratio.detach() - 1).abs() > clip).float().mean()


def clipped_value_loss(value: Tensor, before: Tensor, target: Tensor, clip: float | None) -> Tensor:
    """½ mean square of value − target; with a clip, of the worse of value and value within ±clip of what it was `before` the update.

    All (B,), or (B, heads): the sum over heads."""
    loss = (value - target).square()
    if clip is not None:
        loss = torch.max(loss, (before + (value - before).clamp(-clip, clip) - target).square())
    return 0.5 * loss.mean(0).sum()


def label_reward(action: Tensor, label: Tensor) -> Tensor:
    """What a prediction is worth, (B,) float32: −error.

    action: (B, K) in [−1, 1], tanh of the logits, whose cross-entropy is the error; or (B,) int64, the class itself: 1 if it is right, else 0.
    label: (B,) int64."""
    if not action.is_floating_point():
        return (action == label).float()
    edge = 1 - 1e-6  # where atanh is finite in float32
    return -F.cross_entropy(torch.atanh(action.float().clamp(-edge, edge)), label, reduction='none')
