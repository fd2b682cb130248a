"""Encoder: observation → standardise → eyes → pool → projection → representation."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from Blocks.Block import Block
from Blocks.Normalisers import ObservationNormaliser
from Datasets.Specs import ObsSpec
from Utils import build

KINDS: dict[str, dict[str, Any]] = {  # what `encoder=` means: default names of the parts
    'identity': {'eyes': 'Null'},
    'nature': {'eyes': 'NatureCNN'},
    'cnn': {'eyes': 'CNN'},
    'pixel': {'eyes': 'CNN', 'projection': 'LinearNorm'},  # SAC-AE (1910.01741) and CURL
    'mlp': {'eyes': 'MLP', 'projection': 'LinearNorm'},
    'ofe': {'eyes': 'DenseMLP', 'projection': 'SquareNorm'}}  # densely connected, after OFENet (2003.01629)

NATURE_SIDE = 36  # pixels, the least that its convolutions take


def encoder_kind(name: str, obs_spec: ObsSpec, *, images: str, vectors: str, hidden_dim: int, layers: int) -> dict[str, Any]:
    """What `encoder=name` stands for, as arguments of `Encoder`.

    Args:
        images, vectors: what 'auto' is; for images too small for 'nature', 'cnn' takes its place.
        hidden_dim, layers: of the encoders mlp and ofe.

    Raises:
        ValueError: one that does not exist, or sees something else."""
    kind = (images if obs_spec.is_image else vectors) if name == 'auto' else name
    if name == 'auto' and kind == 'nature' and min(obs_spec.shape[1:]) < NATURE_SIDE:
        kind = 'cnn'
    fitting = ('nature', 'pixel', 'cnn') if obs_spec.is_image else ('identity', 'mlp', 'ofe')
    if kind not in fitting:
        raise ValueError(f'encoder={name}: expected auto or one of {", ".join(fitting)}; this task shows {"images" if obs_spec.is_image else "vectors"}')
    return KINDS[kind] | ({} if obs_spec.is_image else {'hidden_dim': hidden_dim, 'depth': layers})


class Encoder(Block):
    """Turns observations into the vector that heads read. Images are scaled to 0–1, or standardised where the specification knows their moments.

    Args:
        eyes, pool, projection: default names of the parts; the recipe's own win.
        projection_dim: width of a projection that does not know its own.
        centre: subtract 0.5 from images scaled to 0–1 (DrQ-v2).
        normalise: vectors by the running moments of what `observe` was shown.
        given: more arguments offered to the eyes (hidden_dim, layer_norm, …).

    Attributes:
        feature_shape: of the eyes' output. repr_shape: of the representation."""

    mean: Tensor
    std: Tensor

    def __init__(self, obs_spec: ObsSpec, recipe: Mapping[str, Any], *, eyes: str, pool: str = 'Flatten', projection: str = 'Null',
                 projection_dim: int = 50, centre: bool = False, normalise: bool = False, input_shape: tuple[int, ...] | None = None, **given: Any) -> None:
        super().__init__()
        self.is_image, self.centre, self.standardises = obs_spec.is_image, centre, obs_spec.mean is not None
        for name in ('mean', 'std') if self.standardises else ():
            moment = torch.tensor(getattr(obs_spec, name) * obs_spec.frame_stack)
            self.register_buffer(name, moment[:, None, None] if self.is_image else moment)
        shape = input_shape or obs_spec.stacked_shape
        self.eyes = build(recipe.get('eyes'), eyes, 'recipes.encoder.eyes', input_shape=shape, **given)
        if not hasattr(self.eyes, 'output_shape'):
            raise ValueError(f'recipes.encoder.eyes={type(self.eyes).__name__}: a part must tell its output_shape, (C, H, W) or (D,), as an attribute')
        self.feature_shape = tuple(self.eyes.output_shape)
        self.pool = build(recipe.get('pool'), pool, 'recipes.encoder.pool', input_shape=self.feature_shape)
        self.projection = build(recipe.get('projection'), projection, 'recipes.encoder.projection', input_shape=tuple(self.pool.output_shape),
                                output_dim=projection_dim)
        self.repr_shape = tuple(self.projection.output_shape)
        if normalise and self.is_image:
            raise ValueError('normalise_obs=true: this task shows images, which are scaled to 0–1 as they are')
        self.normaliser = ObservationNormaliser(shape) if normalise else None
        if self.is_image:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.3 × on CPU in fp32, more with bf16
        if recipe.get('freeze'):
            self.freeze()

    def prepare(self, obs: Tensor) -> Tensor:
        """obs: (B, C, H, W) uint8 or float 0–255, or (B, D) float32 → what the eyes read. An encoder and its copies may share it."""
        if not self.is_image:
            obs = (obs.float() - self.mean) / self.std if self.standardises else obs.float()
            return obs if self.normaliser is None else self.normaliser(obs)
        # bytes are transposed, not floats; in bf16 every byte value is exact
        dtype = torch.bfloat16 if torch.is_autocast_enabled(obs.device.type) else torch.float32
        x = channels_last(obs).to(dtype)
        if self.standardises:
            return ((x - self.mean) if x is obs else x.sub_(self.mean)).div_(self.std)
        x = x / 255 if x is obs else x.div_(255)  # in place, unless it is the caller's: a second big allocation costs more than the division
        return x - 0.5 if self.centre else x

    def represent(self, prepared: Tensor) -> Tensor:
        """→ representation (B, *repr_shape) of what `prepare` made."""
        return self.projection(self.pool(self.eyes(prepared)))

    def features(self, obs: Tensor) -> Tensor:
        """→ the eyes' output (B, *feature_shape)."""
        return self.eyes(self.prepare(obs))

    def project(self, features: Tensor) -> Tensor:
        """→ representation (B, *repr_shape) of what the eyes saw."""
        return self.projection(self.pool(features))

    def observe(self, obs: Tensor) -> None:
        """Takes (N, *stacked shape) observations of the task into the running moments, if there are any."""
        if self.normaliser is not None and not self.frozen:
            self.normaliser.update(obs)

    def forward(self, obs: Tensor) -> Tensor:
        """→ representation (B, *repr_shape)."""
        return self.represent(self.prepare(obs))


class NoiseEncoder(Encoder):
    """Sees nothing: as many standard normal vectors as there are observations, (B, dim), from torch's own stream. What generators begin with."""

    def __init__(self, obs_spec: ObsSpec, dim: int) -> None:
        super().__init__(replace(obs_spec, shape=(1,), mean=None, std=None), {}, eyes='Null')
        self.feature_shape = self.repr_shape = (dim,)

    def prepare(self, obs: Tensor) -> Tensor:
        return torch.randn((len(obs), *self.repr_shape), device=obs.device)


def channels_last(x: Tensor) -> Tensor:
    """x: (B, C, H, W), the same in channels-last memory. For few channels the detour over `stack` is faster than torch's own copy."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else torch.stack(x.unbind(1), -1).permute(0, 3, 1, 2)
