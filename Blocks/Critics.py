"""Critics: values of actions, an ensemble of heads over one trunk; values of states."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from Blocks.Block import Block
from Datasets.Specs import ActionSpec
from Utils import build


class ValueCritic(Block):
    """V of a state: trunk and head.

    Args: as of Critic, and
        values: of rewards, and of what else has a value of its own."""

    def __init__(self, repr_shape: tuple[int, ...], recipe: Mapping[str, Any], *, trunk: str = 'Null', v_head: str = 'MLP', trunk_dim: int = 50,
                 values: int = 1, **given: Any) -> None:
        super().__init__()
        self.trunk = build(recipe.get('trunk'), trunk, 'recipes.critic.trunk', input_shape=repr_shape, output_dim=trunk_dim, **given)
        self.v_head = build(recipe.get('q_head'), v_head, 'recipes.critic.q_head', input_shape=tuple(self.trunk.output_shape), output_dim=values, **given)

    def forward(self, representation: Tensor) -> Tensor:
        """representation: (B, *repr_shape) → (B, values) float32."""
        return self.v_head(self.trunk(representation)).float()


class Critic(Block):
    """Q of every action (discrete), or of the one given (continuous).

    Args:
        repr_shape: of the encoder's representation.
        trunk, q_head: default names of the parts; the recipe's own win.
        image_shape: actions are images of this shape and are judged alone, whatever the representation.
        given: more arguments offered to the parts (hidden_dim, depth, …)."""

    def __init__(self, repr_shape: tuple[int, ...], action_spec: ActionSpec, recipe: Mapping[str, Any], *, trunk: str = 'Null', q_head: str = 'MLP',
                 num_critics: int = 1, trunk_dim: int = 50, image_shape: tuple[int, ...] | None = None, **given: Any) -> None:
        super().__init__()
        self.discrete, self.image_shape = action_spec.discrete, image_shape
        self.trunk = build(recipe.get('trunk'), trunk, 'recipes.critic.trunk', input_shape=repr_shape, output_dim=trunk_dim, **given)
        shape = tuple(self.trunk.output_shape)
        if image_shape:
            shape = image_shape
        elif not self.discrete:
            shape = (math.prod(shape) + action_spec.size,)
        self.heads = nn.ModuleList(
            build(recipe.get('q_head'), q_head, 'recipes.critic.q_head', input_shape=shape, output_dim=action_spec.num_actions or 1, **given)
            for _ in range(num_critics))

    def forward(self, representation: Tensor, action: Tensor | None = None) -> Tensor:
        """representation: (B, *repr_shape); action: (B, A) for continuous spaces → (ensemble, B, actions) or (ensemble, B), float32."""
        if self.image_shape:
            assert action is not None
            images = action.unflatten(-1, self.image_shape)
            # stored and generated images, a half each, pass apart: in one batch, batch norm would tell them by their mixture and the generator's alone by none
            half = len(images) // 2
            parts = [images[:half], images[half:]] if self.training and half else [images]
            return torch.stack([torch.cat([head(part) for part in parts]) for head in self.heads]).squeeze(-1).float()
        h = self.trunk(representation)
        if self.discrete:
            return torch.stack([head(h) for head in self.heads]).float()
        assert action is not None
        h = torch.cat([h.flatten(1), action.to(h.dtype)], -1)
        return torch.stack([head(h) for head in self.heads]).squeeze(-1).float()
