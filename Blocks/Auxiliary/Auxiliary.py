"""What every auxiliary loss is: a scalar of the encoder of an agent that knows nothing of it, with heads, optimiser and random streams of its own.

After each update of the agent the loss draws a batch of its own and steps its optimiser, which holds its heads and the agent's encoder. Adam takes
the scale out of a loss, so a factor on it would do nothing: `weight` is the share of the learning rate with which the encoder moves. At 0 the heads
still learn, and tell how much of what they predict the representation holds; the agent trains as without them, to the bit.

With `grad` sum or project the loss joins the agent's own steps instead: at each of them it draws a batch, and its gradient, times `weight`, is added to
the agent's gradient of the encoder. Its optimiser then holds the heads alone.
"""
from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import Parallel
from Blocks.Architectures import LinearNorm
from Blocks.Block import Block
from Blocks.Encoders import Encoder
from Datasets.Replay import Batch, Replay
from Datasets.Specs import ActionSpec, ObsSpec
from Utils import build, derive_seed, follow, generator, optimise, require

WIDE = 512  # a representation wider than this is brought down to LATENT for the heads
LATENT = 50


@dataclass
class Parts:
    """What an agent shows of itself to auxiliary losses.

    encoder: what they train. target_encoder: its momentum copy, where the agent has one. aug: what learning sees of an observation.
    obs_spec, action_spec: of the environment."""

    encoder: Encoder
    target_encoder: Encoder | None
    aug: nn.Module
    obs_spec: ObsSpec
    action_spec: ActionSpec


class Auxiliary(Block):
    """Base of all auxiliary losses. A subclass makes its heads in its constructor and defines `loss`.

    Args:
        parts: of the agent.
        name: in metrics and on the command line, `aux.<name>.…`.
        seed: of the loss's own streams.
        weight: share of the learning rate with which the encoder moves; the heads move with all of it. With grad sum or project the factor of the loss.
        grad: 'own': a step of its own after each update of the agent. 'sum': it joins each of the agent's steps of the encoder. 'project': it does so
            without the part of its gradient that opposes the agent's.
        horizon: transitions in `batch.sequence`; None is what the loss needs.
        batch_size, lr: None is the agent's.
        tau: the momentum copies follow by this much after each step, those of the heads too. None: the agent's own copy of its encoder, moved as the
            agent moves it, and 0.05 for heads (and for the encoder where the agent keeps no copy).
        latent_dim: width to which a linear layer of the loss's own brings the representation; None: 50 where it is wider than 512, else as it is.
        views: name of the augmentation; None: for images the agent's, or RandomShift where it has none; for vectors what the loss says.

    Attributes:
        latent_dim: width of what `encode` and `target` return. action_dim: width of what `actions` returns."""

    needs_horizon = 0
    needs_samples = 1  # of a batch
    vector_views = 'Null'

    def __init__(self, *, parts: Parts, name: str = 'aux', seed: int = 0, weight: float = 1.0, grad: Literal['own', 'sum', 'project'] = 'own',
                 horizon: int | None = None, batch_size: int | None = None, lr: float | None = None, tau: float | None = None, latent_dim: int | None = None,
                 views: str | None = None) -> None:
        super().__init__()
        where = f'aux.{name}'
        self.parts, self.name, self.weight = parts, name, weight
        self.horizon = self.needs_horizon if horizon is None else horizon
        require(0 <= weight < math.inf, f'{where}.weight', weight, '0 or more')
        require(grad in ('own', 'sum', 'project'), f'{where}.grad', grad, 'own, sum or project')
        self.joins, self.projects = bool(weight) and grad != 'own', grad == 'project'
        require(self.horizon >= self.needs_horizon, f'{where}.horizon', horizon, f'{self.needs_horizon} or more')
        require(batch_size is None or batch_size >= 1, f'{where}.batch_size', batch_size, '1 or more')
        require(lr is None or 0 <= lr < math.inf, f'{where}.lr', lr, '0 or more')
        require(latent_dim is None or latent_dim >= 1, f'{where}.latent_dim', latent_dim, '1 or more')
        require(tau is None or 0 < tau <= 1, f'{where}.tau', tau, 'more than 0, at most 1')
        self.batch_size, self.lr, self.tau = batch_size, lr, tau
        self.draws, self.views = np.random.default_rng(derive_seed(seed, where, 'draws')), generator(seed, where, 'views')
        width = int(np.prod(parts.encoder.repr_shape))
        self.squeeze = LinearNorm((width,), latent_dim or LATENT) if latent_dim or width > WIDE else None
        self.latent_dim = (latent_dim or LATENT) if self.squeeze else width
        self.action_dim = parts.action_spec.num_actions or parts.action_spec.size
        self.view = self._augmentation(views, where)
        self.own_target = None if tau is None and parts.target_encoder is not None else parts.encoder.frozen_copy()
        self.copies: list[tuple[str, str]] = []  # attributes: momentum copy, what it follows
        self.target_squeeze = self.momentum('squeeze') if self.squeeze else None

    def _augmentation(self, views: str | None, where: str) -> Any:
        spec = self.parts.obs_spec
        if views is None and spec.is_image and type(self.parts.aug).__name__ != 'Null':
            return self.parts.aug
        name = views or ('RandomShift' if spec.is_image else self.vector_views)
        try:
            made = build({'_target_': name}, '', f'{where}.views', input_shape=spec.stacked_shape)
        except ValueError as error:
            raise ValueError(f'{where}.views: {str(error).removeprefix("Aug=").removeprefix(f"{where}.views=")}') from None
        require(hasattr(made, 'output_shape'), f'{where}.views', name, 'one of Blocks.Augmentations, or one that tells its output_shape')
        seen = tuple(self.parts.aug.output_shape)  # type: ignore[arg-type]
        require(tuple(made.output_shape) == seen, f'{where}.views', name, f'an augmentation that shows the encoder {seen}, not {made.output_shape}')
        return made

    # --- for subclasses

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """→ a scalar, and metrics. `batch.sequence` is there if the loss has a horizon."""
        raise NotImplementedError

    def see(self, obs: Tensor) -> Tensor:
        """A view of observations, drawn anew at each call from the loss's own stream."""
        return self.view(obs, self.views)

    def encode(self, obs: Tensor) -> Tensor:
        """What the encoder makes of a view: (B, latent_dim) float32, with gradient."""
        latent = self.parts.encoder(obs).flatten(1)
        return (latent if self.squeeze is None else self.squeeze(latent)).float()

    @torch.no_grad()
    def target(self, obs: Tensor) -> Tensor:
        """The same of the momentum copies, without gradient."""
        latent = self.target_encoder(obs).flatten(1)
        return (latent if self.target_squeeze is None else self.target_squeeze(latent)).float()

    @property
    def target_encoder(self) -> Encoder:
        found = self.own_target or self.parts.target_encoder
        assert found is not None
        return found

    def momentum(self, attribute: str) -> nn.Module:
        """A copy of one of the loss's own parts that follows it; assign it to `target_<attribute>`."""
        online = getattr(self, attribute)
        twin = copy.deepcopy(online).requires_grad_(False)
        self.copies.append((f'target_{attribute}', attribute))
        return twin

    def actions(self, action: Tensor) -> Tensor:
        """Actions as vectors: (…, action_dim) float32, one-hot where they are discrete."""
        spec = self.parts.action_spec
        return F.one_hot(action, spec.num_actions).float() if spec.num_actions else action.float()

    def __str__(self) -> str:
        """What a run says of the loss when it begins."""
        return f'aux.{self.name}: {type(self).__name__} on {self.latent_dim} numbers' + (f', horizon {self.horizon}' if self.horizon else '')

    # --- the step

    def start(self, *, lr: float, batch_size: int, recipe: Mapping[str, Any] = {}, weight_decay: float = 0.0, grad_clip: float | None = None,
              **numbers: Any) -> Auxiliary:
        """Makes the optimiser, over the heads and, unless it joins the agent's steps, the agent's encoder. The agent's numbers hold where the loss has
        none of its own.

        Args:
            recipe: of the agent's encoder: the loss has an optimiser and a schedule as that has.
            weight_decay: of the heads; the encoder's is the agent's business.
            numbers: see Block.equip."""
        lr, self.grad_clip = self.lr if self.lr is not None else lr, grad_clip
        self.batch_size = Parallel.share(self.batch_size or batch_size, f'aux.{self.name}.batch_size')
        require(self.batch_size >= self.needs_samples, f'aux.{self.name}.batch_size', self.batch_size, f'{self.needs_samples} or more (batch norm)')
        require(type(self).loss is not Auxiliary.loss, f'aux.{self.name}', type(self).__name__, 'a subclass of Auxiliary that defines loss(batch)')
        eyes = [p for p in self.parts.encoder.parameters() if p.requires_grad]
        require(bool(eyes) or not self.weight, f'aux.{self.name}.weight', self.weight,
                '0, as this encoder has nothing to train; or an encoder that has: encoder=ofe, encoder=mlp')
        heads = [p for p in self.parameters() if p.requires_grad]
        groups = [{'params': params, 'lr': rate, 'weight_decay': decay}
                  for params, rate, decay in ((heads, lr, weight_decay), ([] if self.joins else eyes, lr * self.weight, 0.0)) if params]
        return self.equip(recipe, 'recipes.encoder', lr=lr, parameters=groups, **numbers)

    def learn(self, replay: Replay, agent: Any) -> dict[str, Tensor]:
        """One step on a batch of the loss's own. agent: for its precision. → metrics by name."""
        metrics = self.step(replay, agent)
        self.follow()
        return metrics

    def step(self, replay: Replay, agent: Any) -> dict[str, Tensor]:
        """`learn`, but for the momentum copies."""
        assert self.batch_size is not None
        batch = replay.sample(self.batch_size, horizon=self.horizon, rng=self.draws)
        eyes = (self.parts.encoder, self.parts.target_encoder)
        seen = [] if self.weight else [(buffer, buffer.clone()) for part in eyes if part for buffer in part.buffers()]
        with torch.random.fork_rng([agent.device] if agent.device.type == 'cuda' else []), agent.autocast():
            torch.manual_seed(int(self.draws.integers(2 ** 63)))  # of losses and eyes that draw from torch's own stream
            value, metrics = self.checked(self.loss(batch))
        optimise(value, self, name=f'{self.name}_loss', grad_clip=self.grad_clip)
        for buffer, before in seen:  # of batch norm: an encoder that the loss does not train does not see its batches either
            buffer.copy_(before)
        return {f'{self.name}_loss': value.detach()} | {f'{self.name}_{key}': torch.as_tensor(metric).detach() for key, metric in metrics.items()}

    def checked(self, told: Any) -> tuple[Tensor, Mapping[str, Any]]:
        """What `loss` returned, metrics or not. Raises: ValueError: no scalar with a gradient."""
        value, metrics = told if isinstance(told, tuple) and len(told) == 2 else (told, {})
        if not (isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad and isinstance(metrics, Mapping)):
            shown = f'a tensor {tuple(value.shape)}{"" if value.requires_grad else " without gradient"}' if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f'aux.{self.name}: {type(self).__name__}.loss returned {shown}; expected a scalar tensor with a gradient, alone or with a '
                             'dict of metrics')
        return value.squeeze(), metrics

    def begin_copies(self, loaded: Collection[str]) -> None:
        """After weights were loaded that held only the parts that begin with `loaded`: copies that they lacked begin as what they follow."""
        for twin, online in [('own_target', self.parts.encoder), *((twin, getattr(self, online)) for twin, online in self.copies)]:
            if getattr(self, twin, None) is not None and twin not in loaded:
                follow(getattr(self, twin), online, 1)

    def follow(self) -> None:
        """Moves the momentum copies that are the loss's own by tau."""
        tau = 0.05 if self.tau is None else self.tau
        if self.own_target is not None:
            follow(self.own_target, self.parts.encoder, tau)
        for twin, online in self.copies:
            follow(getattr(self, twin), getattr(self, online), tau)

    def streams(self) -> dict[str, Any]:
        """The states of the random streams, plain."""
        return {'draws': self.draws.bit_generator.state, 'views': self.views.get_state()}

    def load_streams(self, state: dict[str, Any]) -> None:
        self.draws.bit_generator.state = state['draws']
        self.views.set_state(state['views'])


@torch.no_grad()
def spread(x: Tensor) -> Tensor:
    """Whether representations (B, D) have collapsed: about 1 where their directions are even, 0 where they are all the same. It is the deviation over the
    batch of unit vectors, mean over the D numbers, times √D."""
    return F.normalize(x.float(), dim=1).std(0).mean() * math.sqrt(x.shape[1])


class JoiningLoss:
    """An auxiliary loss during an update of the agent whose steps it joins (Blocks.Block.Joining)."""

    def __init__(self, loss: Auxiliary, replay: Replay, agent: Any) -> None:
        self.loss, self.replay, self.agent = loss, replay, agent
        self.steps, self.total = 0, dict[str, Tensor]()

    def gradient(self, own: Tensor, parameters: list[Tensor]) -> Tensor:
        """The loss's gradient, over all processes, times its weight; with `project` without its part along `own` where the two oppose:
        g − min(0, g · own / |own|²) own. Its heads take their step."""
        for p in parameters:
            p.grad = None
        metrics = self.loss.step(self.replay, self.agent)
        Parallel.average_gradients(parameters)
        mine = torch.cat([torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in parameters])
        dot, square = mine @ own, own @ own
        opposed = dot < 0
        tiny = torch.finfo(own.dtype).tiny
        metrics |= {f'{self.loss.name}_cosine': dot / (square.sqrt() * mine.norm()).clamp_min(tiny)}
        if self.loss.projects:
            mine = mine - torch.where(opposed, dot / square.clamp_min(tiny), 0.0) * own
            metrics |= {f'{self.loss.name}_projected': opposed.float()}
        self.steps += 1
        self.total = {key: self.total.get(key, 0) + value for key, value in metrics.items()}
        return mine * self.loss.weight

    def follow(self) -> None:
        self.loss.follow()

    @property
    def metrics(self) -> dict[str, Tensor]:
        """Means over the update's steps. Raises: ValueError: there was none."""
        if not self.steps:
            raise ValueError(f'aux.{self.loss.name}.grad: {type(self.agent).__name__} took no step of its encoder that a loss could join; grad=own')
        return {key: value / self.steps for key, value in self.total.items()}
