"""Random network distillation (Burda et al. 2018, 1810.12894): what a network cannot yet predict of another, random one is new.

Deviations from the released code: the predictor sees only the samples that its loss keeps, which is the same loss for a part of the work.
"""
from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

import Parallel
from Blocks.Architectures.Linear import Linear
from Blocks.Block import init_orthogonal_relu
from Blocks.Exploration.Bonus import Bonus, Seen
from Blocks.Normalisers import RunningMoments
from Utils import follow, generator, require

WIDTH = 512  # features that are predicted
CLIP = 5.0  # of the standardised input


class Features(nn.Module):
    """(B, *shape) → (B, 512): three convolutions for images, three linears for vectors, and a linear behind. hidden: layers of 512 before that one."""

    def __init__(self, shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if len(shape) == 3:
            channels = shape[0]
            for out, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
                layers += [nn.Conv2d(channels, out, kernel, stride), nn.LeakyReLU(inplace=True)]
                channels = out
            layers.append(nn.Flatten())
            with torch.no_grad():
                width = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
        else:
            width = math.prod(shape)
            for out in (64, 128, 256):
                layers += [Linear(width, out), nn.LeakyReLU(inplace=True)]
                width = out
        for _ in range(hidden):
            layers += [Linear(width, WIDTH), nn.ReLU(inplace=True)]
            width = WIDTH
        self.layers, self.last = nn.Sequential(*layers), Linear(width, WIDTH)
        self.apply(init_orthogonal_relu)
        if len(shape) == 3:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        with torch.autocast(x.device.type, enabled=False):  # differences of two such features are small: bf16 would round them away
            return self.last(x.float())


class RND(Bonus):
    """Mean square of what the predictor makes of the next observation less what the random target does.

    Args:
        input: 'obs': the newest frame, or the vector, of the next observation. 'encoder': what the agent's encoder makes of it, without gradient.
            'encoder_ema': what a slow copy of the encoder does.
        ema_tau: by which that copy follows, once for each pass over a rollout (each update of an agent that draws).
        update_proportion: share of the samples that the predictor learns from; None: 32 / num_envs, at most 1."""

    def __init__(self, input: Literal['obs', 'encoder', 'encoder_ema'] = 'obs', ema_tau: float = 0.01, update_proportion: float | None = None, seed: int = 0,
                 **settings: Any) -> None:
        super().__init__(seed=seed, **settings)
        where = f'explore.{self.name}'
        require(input in ('obs', 'encoder', 'encoder_ema'), f'{where}.input', input, 'obs, encoder or encoder_ema')
        require(0 < ema_tau <= 1, f'{where}.ema_tau', ema_tau, 'more than 0, at most 1')
        require(update_proportion is None or 0 < update_proportion <= 1, f'{where}.update_proportion', update_proportion, 'more than 0, at most 1')
        self.input, self.ema_tau = input, ema_tau
        self.update_proportion = min(1.0, 32 / self.total_envs) if update_proportion is None else update_proportion
        self.slow_encoder = self.parts.encoder.frozen_copy() if input == 'encoder_ema' else None
        if input != 'obs':
            self.seen_shape = tuple(self.parts.encoder.repr_shape)
        try:
            self.target = Features(self.seen_shape, 0).requires_grad_(False)
            self.predictor = Features(self.seen_shape, 2)
        except RuntimeError:
            raise ValueError(f'explore={self.name}: observations of {self.seen_shape} are too small for its convolutions; '
                             f'explore.{self.name}.input=encoder has the agent\'s own') from None
        self.moments = RunningMoments(self.seen_shape, count=1e-4)
        self.keeps = generator(seed, where, 'keeps')
        self.last: tuple[Tensor, ...] = ()  # input and features that the last bonuses were worked out from

    def see(self, obs: Tensor) -> Tensor:
        if self.input == 'obs':
            return super().see(obs)
        encoder = self.slow_encoder or self.parts.encoder
        return torch.cat([encoder(self.parts.aug.evaluate(part)).float() for part in obs.split(1024)])  # type: ignore[operator]

    def observe(self, seen: Tensor) -> None:
        self.moments.update(seen)

    def standardised(self, seen: Tensor) -> Tensor:
        """Within ±5: (B, *seen_shape) float32. The mean goes in two steps: what float32 holds of it, then the rest, or a bright pixel that hardly ever
        changes, of deviation 0.002, would drown in rounding."""
        coarse = self.moments.mean.float()
        rest = (self.moments.mean - coarse).float()
        return (seen.float() - coarse).sub_(rest).mul_(self.moments.var.rsqrt().float()).clamp_(-CLIP, CLIP)

    def bonus(self, seen: Seen) -> Tensor:
        x = self.standardised(seen.next)
        predicted, target = self.predictor(x), self.target(x)
        self.last = x, predicted.detach(), target
        return (predicted - target).square().mean(1)

    def told(self) -> dict[str, Tensor]:
        """How far the input and the features vary over a batch, mean over their numbers, how large they get, and the statistics of what is seen."""
        told = {'seen_mean': self.moments.mean.mean(), 'seen_var': self.moments.var.mean()}
        for name, x in zip(('input', 'predicted', 'target'), self.last, strict=True):
            told |= {f'{name}_var': x.var(0, correction=0).mean(), f'{name}_max': x.abs().max()}
        self.last = ()
        return told

    def loss(self, seen: Seen) -> Tensor | None:
        keep = torch.rand(len(seen.next), generator=self.keeps) < self.update_proportion
        of_all = Parallel.sum_up(keep.sum())  # kept in all processes
        if not of_all:
            return None
        x = self.standardised(seen.next[keep.to(seen.next.device)] if keep.any() else seen.next[:1])
        with torch.no_grad():
            target = self.target(x)
        share = float(keep.sum() * Parallel.world_size / of_all)  # of a mean over what all of them keep
        return (self.predictor(x) - target).square().mean() * share

    def follow(self) -> None:
        if self.slow_encoder is not None:
            follow(self.slow_encoder, self.parts.encoder, self.ema_tau)

    def streams(self) -> dict[str, Any]:
        return super().streams() | {'keeps': self.keeps.get_state()}

    def load_streams(self, state: Any) -> None:
        super().load_streams(state)
        self.keeps.set_state(state['keeps'])
