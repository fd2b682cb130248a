"""What plugs into any agent: auxiliary losses on its encoder, and a bonus for exploration on its rewards."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import Parallel
from Blocks.Augmentations import Null
from Blocks.Auxiliary import Auxiliary, JoiningLoss, Parts
from Blocks.Encoders import Encoder
from Blocks.Exploration.Bonus import Bonus
from Datasets.Layout import Extra
from Datasets.Replay import Replay
from Datasets.Specs import ActionSpec, ObsSpec
from Utils import build, derive_seed, optimise, require


class Plugged(nn.Module):
    """The part of an agent that knows of plugs, so that its own `learn` need not.

    Args:
        pretrain_steps: agent steps in which auxiliary losses alone learn.

    Attributes:
        auxiliaries: by name. steps_per_learn: steps of each for one `learn`.
        bonus: what rewards exploration besides the environment, if anything.
        intrinsic: the agent asks for the bonuses of its rollouts itself; else they come with the rewards that it reads from the replay."""

    seed: int
    device: torch.device
    step: int
    update_count: int
    extras: dict[str, Any] = {}
    steps_per_learn = 1
    intrinsic = False

    def __init__(self, pretrain_steps: int = 0) -> None:
        super().__init__()
        self.pretrain_steps = pretrain_steps
        self.auxiliaries = nn.ModuleDict()
        self.bonus: Bonus | None = None
        self.parts_of_it: list[nn.Module] = []  # all modules, flat, once they are known

    def learn(self, replay: Replay) -> dict[str, Tensor]:
        raise NotImplementedError

    def mode(self, training: bool) -> None:
        raise NotImplementedError

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        raise NotImplementedError

    def parts(self, obs_spec: ObsSpec, action_spec: ActionSpec) -> Parts:
        """What auxiliary losses may train. An agent whose encoder is not called so says here which it is.

        Raises: ValueError: it has none."""
        encoder = getattr(self, 'encoder', None)
        if not isinstance(encoder, Encoder):
            raise ValueError(f'{type(self).__name__} has no encoder to train or look through; give it one (self.encoder, a Blocks.Encoders.Encoder) or '
                             'define parts()')
        return Parts(encoder, getattr(self, 'target_encoder', None), getattr(self, 'aug', None) or Null(obs_spec.stacked_shape), obs_spec, action_spec)

    def parts_for(self, plug: str, obs_spec: ObsSpec, action_spec: ActionSpec) -> Parts:
        """`parts`; where there are none, the line says for which plug."""
        try:
            return self.parts(obs_spec, action_spec)
        except ValueError as error:
            raise ValueError(f'{plug}: {error}') from None

    def attach(self, losses: Mapping[str, Mapping[str, Any]], obs_spec: ObsSpec, action_spec: ActionSpec, **numbers: Any) -> None:
        """Auxiliary losses that `improve` steps after each update.

        Args:
            losses: recipes by name.
            numbers: of the run: lr, batch_size and so on (see Auxiliary.start).

        Raises:
            ValueError: an unknown loss or argument, or an agent without anything to train."""
        require(not self.pretrain_steps or any(recipe.get('weight', 1) for recipe in losses.values()), 'pretrain_steps', self.pretrain_steps,
                'an auxiliary loss that trains the encoder, such as aux=byol; or 0')
        if not losses:
            return
        self.parts_of_it, parts = [], self.parts_for(f'aux={",".join(losses)}', obs_spec, action_spec)
        with torch.random.fork_rng():
            for name, recipe in losses.items():
                torch.manual_seed(derive_seed(self.seed, 'aux', name))
                loss = build(recipe, '', f'aux.{name}', parts=parts, name=name, seed=self.seed)
                if not isinstance(loss, Auxiliary):
                    raise ValueError(f'aux={recipe.get("_target_")}: expected a subclass of Blocks.Auxiliary.Auxiliary')
                self.auxiliaries[name] = loss.to(self.device).start(**numbers)
                require(not loss.joins or hasattr(parts.encoder, 'optim'), f'aux.{name}.grad', recipe.get('grad'),
                        f'own: the encoder of {type(self).__name__} has no optimiser of its own whose steps a loss could join')

    def reward_exploration(self, bonuses: Mapping[str, Mapping[str, Any]], obs_spec: ObsSpec, action_spec: ActionSpec, num_envs: int, **numbers: Any) -> None:
        """A bonus that is rewarded besides what the environment rewards.

        Args:
            bonuses: recipes by name: one, or none.
            num_envs: lanes of this process.
            numbers: of the run: lr, batch_size and so on (see Bonus.start).

        Raises:
            ValueError: an unknown bonus or argument."""
        for name, recipe in bonuses.items():
            self.parts_of_it, parts = [], self.parts_for(f'explore={name}', obs_spec, action_spec)
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(self.seed, 'explore', name))
                bonus = build(recipe, '', f'explore.{name}', parts=parts, name=name, seed=self.seed, num_envs=num_envs,
                              total_envs=num_envs * Parallel.world_size)
            if not isinstance(bonus, Bonus):
                raise ValueError(f'explore={recipe.get("_target_")}: expected a subclass of Blocks.Exploration.Bonus')
            self.bonus = bonus.to(self.device).start(draws=not self.intrinsic, **numbers)
            if not self.intrinsic:
                self.extras = self.extras | {'bonus': Extra(mutable=False)}

    def bonuses(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> dict[str, Tensor]:
        """The bonuses of rows that close, as a column for the replay; none where the agent asks for those of a rollout at once."""
        if self.bonus is None or self.intrinsic:
            return {}
        self.mode(training=False)
        with self.autocast():
            return {'bonus': self.bonus.closed(obs, action, next_obs)}

    @property
    def losses(self) -> dict[str, Auxiliary]:
        """The auxiliary losses by name."""
        return dict(self.auxiliaries.items())  # type: ignore[arg-type]

    @property
    def horizon(self) -> int:
        """Transitions of the longest sequence that an auxiliary loss draws."""
        return max((loss.horizon for loss in self.losses.values()), default=0)

    def improve(self, replay: Replay) -> dict[str, Tensor]:
        """`learn`, and a step of each auxiliary loss. → metrics of all."""
        self.mode(training=True)
        if self.step <= self.pretrain_steps and self.pretrain_steps:
            return self.pretrain(replay)
        added = None if self.intrinsic else self.bonus
        if added is not None:
            replay.bonus_scale = added.scale
        with self.joined(replay) as metrics:
            metrics |= self.learn(replay)
        if added is not None:
            metrics |= added.learn_drawn(replay, self)
        return metrics | self.step_losses(replay)

    def pretrain(self, replay: Replay) -> dict[str, Tensor]:
        """An update of the auxiliary losses alone. → their metrics."""
        with self.joined(replay) as metrics:
            for _ in range(self.steps_per_learn):
                self.update_count += 1
                if encoder := self.joined_encoder:
                    optimise(torch.zeros((), requires_grad=True), encoder, grad_clip=getattr(self, 'grad_clip', None))
        return metrics | self.step_losses(replay)

    def step_losses(self, replay: Replay) -> dict[str, Tensor]:
        """The steps of the auxiliary losses that join none of the agent's. → metrics."""
        metrics: dict[str, Tensor] = {}
        for loss in self.losses.values():
            for _ in range(0 if loss.joins else self.steps_per_learn):
                metrics |= loss.learn(replay, self)
        return metrics

    @property
    def joined_encoder(self) -> Encoder | None:
        """The encoder whose steps auxiliary losses join, if any does."""
        return next((loss.parts.encoder for loss in self.losses.values() if loss.joins), None)

    @contextlib.contextmanager
    def joined(self, replay: Replay) -> Iterator[dict[str, Tensor]]:
        """An update whose steps of the encoder are joined by the auxiliary losses that asked for it; they leave their metrics behind."""
        metrics: dict[str, Tensor] = {}
        encoder = self.joined_encoder
        if encoder is None:
            yield metrics
            return
        joining = [JoiningLoss(loss, replay, self) for loss in self.losses.values() if loss.joins]
        encoder.joining = joining
        try:
            yield metrics
        finally:
            encoder.joining = ()
        for loss in joining:
            metrics |= loss.metrics
