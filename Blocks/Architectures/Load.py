"""A part of a saved agent as a part of another."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


class Load(nn.Module):
    """What a run has trained, to go on with: `Eyes=load +recipes.encoder.eyes.path=RUN +recipes.encoder.eyes.attr=encoder.eyes`.

    Args:
        path: a run's folder, or a checkpoint in it.
        attr: the part, as an attribute of the agent; it tells its output_shape.
        freeze: leave it as it is.

    Raises:
        ValueError: no such run or part, or one that sees another shape."""

    def __init__(self, input_shape: tuple[int, ...], path: str, attr: str, freeze: bool = False) -> None:
        super().__init__()
        from Agents.Build import saved_agent  # this file is a part of agents
        with torch.random.fork_rng():
            part: object = saved_agent(Path(path), torch.device('cpu'))
        for name in attr.split('.'):
            part = getattr(part, name, getattr(part, name.lower(), None))
        shape = getattr(part, 'output_shape', None)
        if not isinstance(part, nn.Module) or shape is None:
            raise ValueError(f'attr={attr}: the agent of {path} has no such part that tells its output_shape; try encoder.eyes')
        self.part, self.output_shape = part.requires_grad_(not freeze), tuple(shape)
        try:
            self.part(torch.zeros(2, *input_shape))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f'path={path} attr={attr}: it does not fit an input of {tuple(input_shape)}: {" ".join(str(error).split())[:200]}') from None

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)
