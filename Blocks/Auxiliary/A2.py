"""A2 (He et al. 2022, "Reinforcement Learning with Automated Auxiliary Loss Search", 2210.06041): masks say what of a short sequence predicts what.

Elements are s_t … s_{t+H−1}, a_t … a_{t+H−1}, r_t … r_{t+H−1} and the last state s_{t+H}. A mask has a character for each: `input_s="1000"` puts s_t
into the source. The encoder sees the source's states, its momentum copy the target's; actions and rewards enter as they are. Both are laid out by
kind: states in order of time, actions, rewards, last state.
Deviations from the released code: sequences stay inside an episode (there they run into the next); the encoder is in one optimiser (there in two that
both step it); `mse` with negatives works (there it raises).
"""
from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Blocks.Auxiliary.Auxiliary import Auxiliary
from Datasets.Replay import Batch
from Datasets.Replay import Sequence as Window
from Utils import require

SIMILARITIES = ('mse', 'nmse', 'inner_product', 'bilinear', 'cosine', 'contrastive')
KINDS = ('s', 'a', 'r', 's_')
TARGETS = ('momentum', 'online', 'detached')


def decode(mask: Any, length: int, key: str) -> tuple[int, ...]:
    """The positions of a mask's ones.

    Args:
        mask: '1000', a list of 0 and 1, or the number that YAML or Hydra made of the text, as far as nothing was lost; None has no ones.
        length: how many elements there are.
        key: where it is set.

    Raises:
        ValueError: another length, other characters, or a number that leading zeros were lost from (0111 in YAML is octal, 73)."""
    if mask is None:
        return ()
    text = ''.join(map(str, mask)) if isinstance(mask, (list, tuple)) else str(mask)
    if isinstance(mask, (list, tuple)) and any(str(one) not in ('0', '1') for one in mask):
        raise ValueError(f'{key}={mask}: expected a list of {length} zeros and ones')
    if isinstance(mask, bool) or not re.fullmatch(f'[01]{{{length}}}', text):
        hint = ''
        if type(mask) in (int, float) and (len(text) < length or set(text) - {'0', '1'}):
            hint = f'; write it in quotes, {key}="{"0" * (length - 1)}1": YAML takes 0111 for an octal number'
        elif length > 1 and text and not set(text) - {'0', '1'}:
            hint = ', as many as the horizon: with another horizon every mask is to be given'
        raise ValueError(f'{key}={mask}: expected {length} characters, each 0 or 1{hint}')
    return tuple(position for position, one in enumerate(text) if one == '1')


class A2(Auxiliary):
    """Any loss of the search space.

    Args:
        horizon: H.
        input_s, input_a, input_r, input_s_: masks of the source, H characters each, `input_s_` one.
        output_s, output_a, output_r, output_s_: of the target.
        similarity: 'mse'; 'nmse', of normalised rows; 'inner_product', 'bilinear' and 'cosine', cross-entropy to the diagonal of the batch's similarities;
            'contrastive' is bilinear with negatives.
        negatives: the batch's other targets count: those off the diagonal, which are 0 else; for mse and nmse the distance to another sample's
            target is subtracted.
        target: 'momentum' copy of the encoder, the 'online' encoder with its gradient (may collapse), or that 'detached'.
        embed_actions, embed_rewards: pass them through an encoder of their own, linear, linear, layer norm, tanh.

    Raises:
        ValueError: a mask of another length, an empty target, or a source without a state, from which the encoder would learn nothing."""

    needs_horizon = 1
    needs_samples = 2

    def __init__(self, horizon: int, input_s: Any, input_a: Any, input_r: Any, input_s_: Any, output_s: Any, output_a: Any, output_r: Any, output_s_: Any,
                 similarity: str = 'mse', negatives: bool = False, target: str = 'momentum', embed_actions: bool = False, embed_rewards: bool = False,
                 **settings: Any) -> None:
        super().__init__(horizon=horizon, **settings)
        where = f'aux.{self.name}'
        require(similarity in SIMILARITIES, f'{where}.similarity', similarity, ' or '.join(SIMILARITIES))
        require(target in TARGETS, f'{where}.target', target, ' or '.join(TARGETS))
        masks = {'input': (input_s, input_a, input_r, input_s_), 'output': (output_s, output_a, output_r, output_s_)}
        self.chosen: dict[str, dict[str, tuple[int, ...]]] = {}
        for side, values in masks.items():
            picked = {kind: decode(value, 1 if kind == 's_' else horizon, f'{where}.{side}_{kind}') for kind, value in zip(KINDS, values, strict=True)}
            picked['s_'] = tuple(horizon for _ in picked['s_'])
            self.chosen[side] = picked
        source, goal = self.chosen['input'], self.chosen['output']
        require(bool(source['s'] or source['s_']), f'{where}.input_s', input_s, 'a state in the source (input_s or input_s_): nothing else trains the encoder')
        require(any(goal.values()), f'{where}.output_s', output_s, 'something in the target')
        self.similarity, self.negatives = ('bilinear', True) if similarity == 'contrastive' else (similarity, negatives)
        self.target_kind = target
        self.embed_action = self.embedder(self.action_dim) if embed_actions else None
        self.embed_reward = self.embedder(1) if embed_rewards else None
        self.target_embed_action, self.target_embed_reward = (self.momentum(name) if getattr(self, name) else None for name in ('embed_action', 'embed_reward'))
        self.source_dim, self.target_dim = self.width(source), self.width(goal)
        self.predictor = nn.Sequential(nn.Linear(self.source_dim, 2 * self.source_dim), nn.BatchNorm1d(2 * self.source_dim), nn.ReLU(),
                                       nn.Linear(2 * self.source_dim, self.target_dim))
        self.bilinear = nn.Parameter(torch.rand(self.target_dim, self.target_dim)) if self.similarity == 'bilinear' else None

    def embedder(self, width: int) -> nn.Sequential:
        latent = self.latent_dim
        return nn.Sequential(nn.Linear(width, latent), nn.Linear(latent, latent), nn.LayerNorm(latent), nn.Tanh())

    def width(self, chosen: dict[str, tuple[int, ...]]) -> int:
        actions, rewards = (self.latent_dim if embed else width for embed, width in ((self.embed_action, self.action_dim), (self.embed_reward, 1)))
        return self.latent_dim * (len(chosen['s']) + len(chosen['s_'])) + actions * len(chosen['a']) + rewards * len(chosen['r'])

    @property
    def formula(self) -> str:
        """Such as h(g(s_t), a_t, r_t) → g'(s_t+1)."""
        def text(chosen: dict[str, tuple[int, ...]], encoder: str) -> str:
            at = [f't+{i}' if i else 't' for i in range(self.horizon + 1)]
            states = [f'{encoder}(s_{at[i]})' for i in chosen['s']]
            raw = [f'{kind}_{at[i]}' for kind in 'ar' for i in chosen[kind]]
            return ', '.join([*states, *raw, *(f'{encoder}(s_{at[i]})' for i in chosen['s_'])])
        return f"h({text(self.chosen['input'], 'g')}) → {text(self.chosen['output'], 'g′')}"

    def __str__(self) -> str:
        return f'{super().__str__()}: {self.formula}'

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        window = batch.sequence
        assert window is not None
        source, goal = self.chosen['input'], self.chosen['output']
        # a state that stands on both sides is seen in the same view
        views = {i: self.see(window.obs[:, i]) for i in sorted({*source['s'], *source['s_'], *goal['s'], *goal['s_']})}
        prediction = self.predictor(self.assembled(source, window, self.encoded(self.encode, views, source), self.embed_action, self.embed_reward))
        if self.target_kind == 'momentum':
            with torch.no_grad():
                target = self.assembled(goal, window, self.encoded(self.target, views, goal), self.target_embed_action, self.target_embed_reward)
        else:
            target = self.assembled(goal, window, self.encoded(self.encode, views, goal), self.embed_action, self.embed_reward)
            target = target.detach() if self.target_kind == 'detached' else target
        there = self.there(window)
        value = similarity_loss(prediction.float(), target.float(), there, self.similarity, self.negatives, self.bilinear)
        return value, {'whole': there.mean()}

    def encoded(self, encode: Any, views: dict[int, Tensor], chosen: dict[str, tuple[int, ...]]) -> dict[int, Tensor]:
        """Latents of the chosen states, in one pass."""
        wanted = [*chosen['s'], *chosen['s_']]
        return dict(zip(wanted, encode(torch.cat([views[i] for i in wanted])).chunk(len(wanted)), strict=True)) if wanted else {}

    def assembled(self, chosen: dict[str, tuple[int, ...]], window: Window, latents: dict[int, Tensor], embed_action: Any, embed_reward: Any) -> Tensor:
        """(B, width): states, actions, rewards, last state."""
        actions = [self.actions(window.action[:, i]) for i in chosen['a']]
        rewards = [window.reward[:, i, None] for i in chosen['r']]
        actions = actions if embed_action is None else [embed_action(action) for action in actions]
        rewards = rewards if embed_reward is None else [embed_reward(reward) for reward in rewards]
        return torch.cat([*(latents[i] for i in chosen['s']), *actions, *rewards, *(latents[i] for i in chosen['s_'])], 1)

    def there(self, window: Window) -> Tensor:
        """(B,) float32, 1 where everything that was chosen lies within the episode."""
        there = torch.ones_like(window.mask[:, 0])
        for chosen in self.chosen.values():
            for i in (*chosen['s'], *chosen['s_']):
                there = there * window.obs_mask[:, i]
            for i in (*chosen['a'], *chosen['r']):
                there = there * window.mask[:, i]
        return there


def similarity_loss(prediction: Tensor, target: Tensor, there: Tensor, similarity: str, negatives: bool, bilinear: Tensor | None = None) -> Tensor:
    """How unlike predictions and targets are, over the samples that are there.

    Args:
        prediction, target: (B, n).
        there: (B,), 0 for samples that do not count, neither as such nor as negatives.
        similarity, negatives: see `A2`.
        bilinear: (n, n), W of y′ W yᵀ; rows are targets, columns predictions.

    Returns:
        A scalar; 0 where no sample counts. Source: 2210.06041's released code, the metrics' table."""
    count = there.sum().clamp(min=1)
    if similarity in ('nmse', 'cosine'):
        prediction, target = F.normalize(prediction, dim=1), F.normalize(target, dim=1)
    if similarity in ('mse', 'nmse'):
        each = (prediction - target).square().mean(1)
        if negatives:  # each sample's neighbour in the batch
            other = (prediction - target.roll(1, 0)).square().mean(1)
            return (each * there).sum() / count - (other * there * there.roll(1, 0)).sum() / count
        return (each * there).sum() / count
    products = prediction @ target.T if bilinear is None else target @ bilinear @ prediction.T
    eye = torch.eye(len(products), device=products.device, dtype=torch.bool)
    if not negatives:
        products = products * eye
    products = products.masked_fill(~eye & (there == 0), float('-inf'))
    each = F.cross_entropy(products, torch.arange(len(products), device=products.device), reduction='none')
    return (each * there).sum() / count
