"""The base of Encoder, Actor and Critic: a module with its own optimiser and learning-rate schedule."""
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from Utils import build


class Joining(Protocol):
    """A loss of somebody else's that joins the steps of a block's optimiser."""

    def gradient(self, own: Tensor, parameters: list[Tensor]) -> Tensor:
        """What is to be added to `own`, the block's gradient, flat over its parameters. It may use their `grad`."""

    def follow(self) -> None:
        """The step has been taken."""


class Block(nn.Module):
    optim: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    joining: Sequence[Joining] = ()
    frozen = False

    def freeze(self) -> Self:
        """Its weights, and the moments of its batch norms, stay as they are or as they are loaded."""
        self.frozen = True
        return self.requires_grad_(False).eval()

    def equip(self, recipe: Mapping[str, Any], where: str, *, lr: float, weight_decay: float = 0.0, eps: float = 1e-8, lr_decay_steps: int = 0,
              betas: tuple[float, float] = (0.9, 0.999), parameters: list[Any] | None = None) -> Self:
        """Gives the block its optimiser (AdamW, fused where torch can) and schedule (cosine over `lr_decay_steps` updates, if any).

        Args:
            recipe: the block's recipe; its `optim` and `scheduler` replace the defaults.
            where: the recipe's config key.
            parameters: what the optimiser steps, as torch takes them; the block's own by default."""
        parameters = [p for p in self.parameters() if p.requires_grad] if parameters is None else parameters
        if not parameters:  # a part without weights: nothing to step
            parameters = [nn.Parameter(torch.zeros(()))]
        optim = dict(recipe.get('optim') or {})
        fused = {} if optim.get('_target_') else {'fused': True}
        self.optim = build(optim, 'AdamW', f'{where}.optim', params=parameters, lr=lr, weight_decay=weight_decay, eps=eps,
                           betas=betas, **fused)
        chosen = recipe.get('scheduler') or {}
        if chosen.get('_target_'):
            self.scheduler = build(chosen, '', f'{where}.scheduler', optimizer=self.optim)
        elif lr_decay_steps:
            self.scheduler = CosineDecay(self.optim, lr_decay_steps)
        return self

    def join(self) -> None:
        """Adds to the block's gradient those of the losses that join its step."""
        parameters: list[Tensor] = [p for group in self.optim.param_groups for p in group['params']]
        own = torch.cat([torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in parameters])
        whole = torch.stack([own, *(loss.gradient(own, parameters) for loss in self.joining)]).sum(0)
        for p, part in zip(parameters, whole.split([p.numel() for p in parameters]), strict=True):
            p.grad = torch.empty_like(p).copy_(part.view(p.shape))

    def load_optim(self, state: dict[str, Any]) -> None:
        """Takes over moments and step counts. The numbers of the command line stay, unless a schedule moves the saved ones.

        Raises: ValueError: it is of other parameters."""
        own = [[p.numel() for p in group['params']] for group in self.optim.param_groups]
        if [len(group) for group in own] != [len(group['params']) for group in state['param_groups']]:
            raise ValueError(f'the saved optimiser has {[len(group["params"]) for group in state["param_groups"]]} parameters, this one {list(map(len, own))}')
        sizes = [size for group in own for size in group]
        for index, moments in state['state'].items():
            for value in moments.values():  # a fused optimiser would write beyond the end
                if isinstance(value, Tensor) and value.numel() not in (1, sizes[int(index)]):
                    raise ValueError(f'the saved optimiser holds {value.numel()} numbers of a parameter that has {sizes[int(index)]}')
        if self.scheduler is None:
            own = self.optim.state_dict()['param_groups']
            state = state | {'param_groups': [mine | {'params': saved['params']} for mine, saved in zip(own, state['param_groups'], strict=True)]}
        self.optim.load_state_dict(state)

    def frozen_copy(self) -> Self:
        """A copy without gradients or optimiser: a target network or a moving average."""
        own: dict[str, Any] = {name: self.__dict__.pop(name) for name in ('optim', 'scheduler', 'joining') if name in self.__dict__}
        twin = copy.deepcopy(self).requires_grad_(False)
        self.__dict__.update(own)
        return twin


class CosineDecay(torch.optim.lr_scheduler.CosineAnnealingLR):
    """To 0 along a cosine, and no further: torch's own would climb again."""

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch < self.T_max:
            super().step()


def redraw(module: nn.Module, init: Callable[[nn.Module], None]) -> None:
    """Gives a block an agent's own initialisation, as far as its parts leave that to agents (`redrawn = True`): plain convolutions and linears do, while
    parts with an initialisation of their own, a user's and those that were trained before keep their weights."""
    for part in module.children():
        if getattr(part, 'redrawn', False):
            part.apply(init)
        elif isinstance(part, (Block, nn.ModuleList)):
            redraw(part, init)


def init_delta_orthogonal(module: nn.Module) -> None:
    """As `init_orthogonal`, but only the middle tap of a convolution is drawn and the others are 0 (1806.05393; SAC-AE's and CURL's initialisation)."""
    if not isinstance(module, nn.Conv2d) or not all(size % 2 for size in module.kernel_size):
        return init_orthogonal(module)
    with torch.no_grad():
        module.weight.zero_()
        height, width = (size // 2 for size in module.kernel_size)
        module.weight[:, :, height, width] = nn.init.orthogonal_(torch.empty(module.weight.shape[:2]), nn.init.calculate_gain('relu'))
        if module.bias is not None:
            module.bias.zero_()


def init_orthogonal_relu(module: nn.Module) -> None:
    """Orthogonal weights of gain √2, zero biases, in every layer (PPO's initialisation; its last layers are scaled afterwards)."""
    init_orthogonal(module, nn.init.calculate_gain('relu'))


def scale_last(part: nn.Module, gain: float) -> None:
    """Gives the last linear of a part that was drawn with gain √2 another gain."""
    linears = [module for module in part.modules() if isinstance(module, nn.Linear)]
    if getattr(part, 'redrawn', False) and linears:
        with torch.no_grad():
            linears[-1].weight.mul_(gain / nn.init.calculate_gain('relu'))


def init_orthogonal(module: nn.Module, linear_gain: float = 1.0) -> None:
    """Orthogonal weights, gain √2 for convolutions and `linear_gain` for linears, zero biases (DrQ-v2's and UnifiedML's initialisation)."""
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight, linear_gain)
    elif isinstance(module, nn.Conv2d):
        with torch.no_grad():  # by way of a copy: orthogonal_ wants plain memory, not channels-last
            module.weight.copy_(nn.init.orthogonal_(torch.empty(module.weight.shape), nn.init.calculate_gain('relu')))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
