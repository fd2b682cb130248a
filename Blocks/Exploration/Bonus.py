"""What every exploration bonus is: a number for each transition, the larger the less the agent has seen of its like.

Bonuses shrink as they learn and have no natural scale. They are divided by the running deviation of their own discounted return, filtered over time in
every lane and never reset, as episodes end for the task and not for what is new (Burda et al. 2018, 1810.12894, §2.4).

An agent that learns from rollouts asks for the bonuses of one when it is complete, gives them a value head and a discount of their own, and teaches the
bonus with every minibatch. For any other agent they are worked out once, when a row of the replay closes, stored raw and added, scaled, to its rewards
when it is drawn; the bonus then learns from a batch of its own after each update.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import Parallel
from Blocks.Auxiliary import Parts
from Blocks.Block import Block
from Blocks.Normalisers import RunningMoments
from Datasets.Batch import Batch
from Datasets.Replay import Replay
from Utils import derive_seed, optimise, require


class ForwardFilter(RunningMoments):
    """Scale of a stream of bonuses: the deviation of F ← γ F + bonus, one F for each lane.

    Args:
        num_envs: lanes.
        discount: γ."""

    filtered: Tensor

    def __init__(self, num_envs: int, discount: float) -> None:
        super().__init__(count=1e-4)
        self.register_buffer('filtered', torch.zeros(num_envs, dtype=torch.float64))
        self.discount = discount

    @torch.no_grad()
    def observe(self, bonus: Tensor) -> None:
        """bonus: (N, T), consecutive steps."""
        returns = torch.empty_like(bonus, dtype=torch.float64)
        for t in range(bonus.shape[1]):
            self.filtered.mul_(self.discount).add_(bonus[:, t])
            returns[:, t] = self.filtered
        self.update(returns.flatten())

    @property
    def std(self) -> Tensor:
        return self.var.sqrt()


@dataclass
class Seen:
    """Transitions as a bonus looks at them.

    now, next: (B, *seen_shape), before and after; action: (B, …). At an episode's end `next` is what the lane shows next, the first observation of
    another episode."""

    now: Tensor
    action: Tensor
    next: Tensor

    def __getitem__(self, part: Tensor) -> Seen:
        return Seen(self.now[part], self.action[part], self.next[part])


class Bonus(Block):
    """Base of all exploration bonuses. A subclass makes its networks in its constructor and defines `bonus`, and `loss` if it learns.

    Args:
        parts: of the agent.
        name: in metrics and on the command line, `explore.<name>.…`.
        seed: of the bonus's own streams.
        num_envs: lanes of this process. total_envs: of all processes.
        weight: of the bonus: of its advantages where the agent has a value head for them, else of the bonus in the reward.
        extrinsic_weight: of the advantages of rewards, where the agent has a value head for bonuses.
        discount: of bonuses: of the filter, and of their value head.
        warmup_steps: random steps of each lane before the run, from which `observe` learns. They are not counted.
        batch_size, lr: None is the agent's.

    Attributes:
        seen_shape: of what `see` returns. scale: by which raw bonuses are multiplied where they are added to rewards, `weight` included."""

    def __init__(self, *, parts: Parts, name: str = 'explore', seed: int = 0, num_envs: int = 1, total_envs: int | None = None, weight: float = 1.0,
                 extrinsic_weight: float = 2.0, discount: float = 0.99, warmup_steps: int = 0, batch_size: int | None = None,
                 lr: float | None = None) -> None:
        super().__init__()
        where = f'explore.{name}'
        for key, share in (('weight', weight), ('extrinsic_weight', extrinsic_weight)):
            require(0 <= share < math.inf, f'{where}.{key}', share, '0 or more')
        require(0 <= discount < 1, f'{where}.discount', discount, 'a number from 0 to below 1')
        require(warmup_steps >= 0, f'{where}.warmup_steps', warmup_steps, '0 or more')
        require(batch_size is None or batch_size >= 1, f'{where}.batch_size', batch_size, '1 or more')
        require(lr is None or 0 <= lr < math.inf, f'{where}.lr', lr, '0 or more')
        self.parts, self.name, self.weight, self.extrinsic_weight, self.discount = parts, name, weight, extrinsic_weight, discount
        self.num_envs, self.total_envs = num_envs, total_envs or num_envs
        self.warmup_steps, self.batch_size, self.lr = warmup_steps, batch_size, lr
        self.draws = np.random.default_rng(derive_seed(seed, where, 'draws'))
        self.filter = ForwardFilter(num_envs, discount)
        self.scale = 0.0
        spec = parts.obs_spec
        self.seen_shape: tuple[int, ...] = tuple(spec.shape)

    # --- for subclasses

    def see(self, obs: Tensor) -> Tensor:
        """What the bonus looks at: the newest frame of observations (B, *stacked shape) → (B, *seen_shape)."""
        return obs[:, -self.parts.obs_spec.shape[0]:] if self.parts.obs_spec.is_image else obs

    def observe(self, seen: Tensor) -> None:
        """Takes (B, *seen_shape) into running statistics, if there are any: after the bonuses of these were told, before anything is learned from them."""

    def bonus(self, seen: Seen) -> Tensor:
        """Raw bonuses (B,) float32, 0 or more. Called without gradient, once for each transition, in time order in every lane."""
        raise NotImplementedError

    def loss(self, seen: Seen) -> Tensor | None:
        """A scalar of the transitions of a batch; None: there is nothing to learn from them."""
        return None

    def told(self) -> dict[str, Tensor]:
        """Metrics of what `bonus` was last called with."""
        return {}

    def follow(self) -> None:
        """After a pass over a rollout, or an update of an agent that draws: copies that follow the agent's encoder."""

    def __str__(self) -> str:
        """What a run says of the bonus when it begins."""
        return f'explore.{self.name}: {type(self).__name__}'

    # --- what agents call

    def start(self, *, lr: float, batch_size: int, draws: bool = True, grad_clip: float | None = None, **numbers: Any) -> Bonus:
        """Makes the optimiser. The agent's numbers hold where the bonus has none of its own; see Block.equip for the others.

        Args:
            draws: batches of its own; else it learns from minibatches of the agent's."""
        if draws:
            self.batch_size = Parallel.share(self.batch_size or batch_size, f'explore.{self.name}.batch_size')
        self.grad_clip = grad_clip
        require(type(self).bonus is not Bonus.bonus, f'explore.{self.name}', type(self).__name__, 'a subclass of Bonus that defines bonus(seen)')
        return self.equip({}, 'explore', lr=self.lr if self.lr is not None else lr, **numbers)

    @torch.no_grad()
    def warmed(self, obs: Tensor) -> None:
        """Observations of random play (B, *stacked shape) before the run."""
        self.observe(self.see(obs))

    def told_of(self, seen: Seen) -> Tensor:
        """What `bonus` says of transitions. Raises: ValueError: not a finite number, 0 or more, for each of them (values are looked at on a CPU only)."""
        bonus = self.bonus(seen)
        shown = f'a tensor {bonus.dtype} {tuple(bonus.shape)}' if isinstance(bonus, Tensor) else type(bonus).__name__
        good = isinstance(bonus, Tensor) and bonus.shape == (len(seen.next),) and not bonus.is_complex()
        if good and bonus.device.type == 'cpu' and not ((bonus >= 0) & (bonus < math.inf)).all():
            good, shown = False, f'{bonus[~((bonus >= 0) & (bonus < math.inf))][0].item():g}'
        if not good:
            raise ValueError(f'explore.{self.name}: {type(self).__name__}.bonus returned {shown}; expected a tensor ({len(seen.next)},), a finite number '
                             'of 0 or more for each transition')
        return bonus.float()

    @torch.no_grad()
    def closed(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """Rows that close, one in each lane: → raw bonuses (N,). The statistics take them in."""
        seen = Seen(self.see(obs), action, self.see(next_obs))
        bonus = self.told_of(seen)
        self.filter.observe(bonus[:, None])
        self.scale = self.weight / float(self.filter.std)
        self.observe(seen.next)
        return bonus

    @torch.no_grad()
    def rolled(self, seen: Seen, lanes: int, chunk: int = 1024) -> tuple[Tensor, dict[str, Tensor]]:
        """A rollout, lane after lane: → normalised bonuses (lanes, T), metrics. The filter takes it in first, the other statistics afterwards."""
        parts = torch.arange(len(seen.next), device=seen.next.device).split(chunk)
        raw = torch.cat([self.told_of(seen[part]) for part in parts]).view(lanes, -1)
        self.filter.observe(raw)
        self.observe(seen.now)
        scaled = raw / self.filter.std.float()
        metrics = {'bonus': scaled.mean(), 'bonus_max': scaled.max(), 'bonus_raw': raw.mean(), 'scale': 1 / self.filter.std, **self.told()}
        return scaled, {f'{self.name}_{key}': value for key, value in metrics.items()}

    def learn(self, seen: Seen, agent: Any) -> dict[str, Tensor]:
        """One step on the loss of transitions. agent: for its precision. → metrics."""
        with agent.autocast():
            loss = self.loss(seen)
        if not (loss is None or (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad)):
            shown = f'a tensor {tuple(loss.shape)}{"" if loss.requires_grad else " without gradient"}' if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f'explore.{self.name}: {type(self).__name__}.loss returned {shown}; expected a scalar tensor with a gradient, or None')
        if Parallel.any_of(loss is None) or loss is None:  # what one process cannot learn from none does: they share the gradient
            return {}
        optimise(loss, self, name=f'{self.name}_loss', grad_clip=self.grad_clip)
        return {f'{self.name}_loss': loss.detach()}

    def learn_drawn(self, replay: Replay, agent: Any) -> dict[str, Tensor]:
        """One step on a batch of the bonus's own. → metrics."""
        assert self.batch_size is not None
        batch: Batch = replay.sample(self.batch_size, rng=self.draws)
        assert batch.next_obs is not None
        agent.mode(training=False)
        with torch.no_grad():
            seen = Seen(self.see(batch.obs), batch.action, self.see(batch.next_obs))
        agent.mode(training=True)
        metrics = self.learn(seen, agent)
        self.follow()
        return metrics | {f'{self.name}_scale': torch.tensor(self.scale)}

    def streams(self) -> dict[str, Any]:
        """The state of the random stream, plain, and what else a run goes on with."""
        return {'draws': self.draws.bit_generator.state, 'scale': self.scale}

    def load_streams(self, state: Mapping[str, Any]) -> None:
        self.draws.bit_generator.state = dict(state['draws'])
        self.scale = state['scale']


