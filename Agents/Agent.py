"""What every agent is: it acts, it learns, and it can be saved and restored exactly."""
from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from Agents.Plugged import Plugged
from Blocks.Block import Block
from Blocks.Normalisers import LANE_BUFFERS
from Datasets.Replay import Replay
from Datasets.Specs import ActionSpec, ObsSpec
from Environment import Step
from Utils import derive_seed, generator, has_bf16, require


class Agent(Plugged):
    """Base of all agents. Subclasses define `act` and `learn`; blocks, generators and counters set as attributes are saved by `state()`.

    Args:
        seed: of the agent's own random streams.
        device, precision, compile: where and how the update runs.
        pretrain_steps: see Plugged, which has what plugs into any agent.

    Attributes:
        obs_spec, action_spec: what it sees and does; `make_agent` sets them.
        step: agent steps so far; the run sets it, schedules read it. update_count: learning updates so far.
        extras: columns that `act` adds to the replay, name → Datasets.Layout.Extra.
        rollout_steps: transitions of every lane that `learn` takes from the end of the replay; 0 where it draws.
        overlap: the agent may learn while the simulator works on its last action; on-policy agents say False."""

    obs_spec: ObsSpec
    action_spec: ActionSpec
    overlap = True
    rollout_steps = 0

    def __init__(self, *, seed: int = 0, device: str | torch.device = 'cpu', precision: str = 'fp32', compile: bool = False,
                 pretrain_steps: int = 0) -> None:
        super().__init__(pretrain_steps)
        require(precision in ('fp32', 'bf16', 'auto'), 'precision', precision, 'fp32, bf16 or auto')
        self.device, self.compile_update = torch.device(device), compile
        self.precision = precision if precision != 'auto' else 'bf16' if has_bf16(self.device) else 'fp32'
        self.step, self.update_count = 0, 0
        self.acting, self.learning = generator(seed, 'acting'), generator(seed, 'learning', device=self.device)
        self.evaluating = generator(seed, 'evaluating')  # begun anew by every evaluation
        self.seed = seed

    def act(self, step: Step, state: Any = None, greedy: bool = False) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Chooses actions for all lanes. → action (N,) int64 or (N, A) float32; extras for the replay; the recurrent state.

        greedy: evaluation; draws nothing from the agent's streams."""
        raise NotImplementedError

    def learn(self, replay: Replay) -> dict[str, Tensor]:
        """One update from the replay. → metrics, 0-dim tensors."""
        raise NotImplementedError

    def mode(self, training: bool) -> None:
        """Batch norm, dropout and the like as in learning, or as in acting."""
        if self.training != training:
            if not self.parts_of_it:
                frozen = {id(part) for block in self.blocks().values() if block.frozen for part in block.modules()}
                self.parts_of_it = [module for module in self.modules() if id(module) not in frozen]
            for module in self.parts_of_it:
                module.__dict__['training'] = training  # at every step of small agents, `train` would be felt

    def predict(self, obs: Tensor, classes: int) -> Tensor:
        """Scores of the classes (N, K) float32, the highest of the class it takes each observation for. obs: (N, *stacked shape)."""
        nothing = torch.zeros(len(obs), device=obs.device)
        action, _, _ = self.act(Step(obs, nothing == 0, nothing, nothing), greedy=True)
        return action.float() if action.is_floating_point() else F.one_hot(action, classes).float()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 on convolutions and linears when precision=bf16; losses and weights stay float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == 'bf16')

    def maybe_compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled if compile=true. Raises: ValueError when this machine lacks what compiling for the CPU takes."""
        if self.compile_update and self.device.type == 'cpu' and not can_compile():
            raise ValueError('compile=true on a CPU needs a C++ compiler and the headers of Python: apt install g++ python3-dev')
        return torch.compile(function) if self.compile_update else function

    def blocks(self) -> dict[str, Block]:
        return {name: module for name, module in self.named_modules() if isinstance(module, Block)}

    def generators(self) -> dict[str, torch.Generator]:
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Generator)}

    def weights(self) -> dict[str, Tensor]:
        """What acting needs: parameters and buffers."""
        return self.state_dict()

    def state(self) -> dict[str, Any]:
        """Everything, as tensors and plain Python: weights, optimisers, schedules, random streams, counters."""
        blocks = self.blocks()
        return {
            'weights': self.state_dict(),
            'optims': {name: block.optim.state_dict() for name, block in blocks.items() if hasattr(block, 'optim')},
            'schedulers': {name: block.scheduler.state_dict() for name, block in blocks.items() if block.scheduler is not None},
            **self.own_state(),
            'step': self.step, 'update_count': self.update_count}

    def own_state(self) -> dict[str, Any]:
        """Of several processes of a run, what this one has for itself: random streams, and statistics of its lanes."""
        return {'generators': {name: value.get_state() for name, value in self.generators().items()},
                'auxiliaries': {name: loss.streams() for name, loss in self.losses.items()},
                'bonus': self.bonus.streams() if self.bonus is not None else None,
                'lanes': {name: value for name, value in self.state_dict().items() if name.rpartition('.')[2] in LANE_BUFFERS}}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """The inverse of `own_state`."""
        for name, random_state in state['generators'].items():
            getattr(self, name).set_state(random_state)
        for name, streams in state['auxiliaries'].items():
            self.losses[name].load_streams(streams)
        if self.bonus is not None:
            self.bonus.load_streams(state['bonus'])
        self.load_lanes(state['lanes'])

    def reseed(self) -> None:
        """Random streams that no earlier session had, where it was of other processes: they depend on how far the run has come."""
        seed = derive_seed(self.seed, 'resumed', self.step, self.update_count)
        for name, value in self.generators().items():
            value.manual_seed(derive_seed(seed, name))
        plugs: list[Any] = [*self.losses.values(), *([self.bonus] if self.bonus is not None else [])]
        for plug in plugs:
            plug.draws = np.random.default_rng(derive_seed(seed, plug.name))
            for name, value in vars(plug).items():
                if isinstance(value, torch.Generator):
                    value.manual_seed(derive_seed(seed, plug.name, name))

    def load_lanes(self, lanes: Mapping[str, Tensor]) -> None:
        """Statistics of lanes, (lanes, …) each, by name. Raises: ValueError: of another number of lanes."""
        own = self.state_dict()
        for name, value in lanes.items():
            if value.shape != own[name].shape:
                raise ValueError(f'the saved agent has statistics of {len(value)} lanes, this one of {len(own[name])}: resume with the num_envs of the run')
            own[name].copy_(value)

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; strict. Learning rates and the like stay those this agent was built with, unless a schedule moves them.

        Raises: ValueError when the saved agent has other parts or shapes."""
        if set(state['auxiliaries']) != set(self.auxiliaries):
            frozen = ' (recipes.encoder.freeze=true leaves losses out)' if any(block.frozen for block in self.blocks().values()) else ''
            raise ValueError(f'the saved agent has the auxiliary losses {sorted(state["auxiliaries"])}, this one {sorted(self.auxiliaries)}{frozen}')
        if (state.get('bonus') is None) != (self.bonus is None):
            raise ValueError(f'the saved agent has {"no " if self.bonus else "a "}bonus for exploration, this one has {"one" if self.bonus else "none"}: '
                             'resume with the explore= that the run was begun with')
        ours, saved = ({key: value.shape for key, value in side.items() if self.plug_of(key) and key.rpartition('.')[2] not in LANE_BUFFERS}
                       for side in (self.state_dict(), state['weights']))
        if differing := sorted(key for key in ours.keys() | saved.keys() if ours.get(key) != saved.get(key)):
            plug, part = self.plug_of(differing[0]), differing[0].split('.')[2 if differing[0].startswith('auxiliaries') else 1]
            raise ValueError(f'{plug} has another {part} than the saved one: resume with the options of {plug} that the run was begun with')
        self.load_weights(state['weights'])
        for name, streams in state['auxiliaries'].items():
            self.losses[name].load_streams(streams)
        if self.bonus is not None:
            self.bonus.load_streams(state['bonus'])
        blocks = self.blocks()
        for kind, attribute in (('optims', 'optim'), ('schedulers', 'scheduler')):
            own = {name for name, block in blocks.items() if getattr(block, attribute, None) is not None}
            if set(state[kind]) != own:
                raise ValueError(f'the saved agent has {kind} of {sorted(state[kind])}, this one of {sorted(own)}')
        for name, optim in state['optims'].items():
            try:
                blocks[name].load_optim(optim)
            except ValueError as error:
                raise ValueError(f'{self.plug_of(name) or name}: {error}; resume with the options that the run was begun with') from None
        for name, scheduler in state['schedulers'].items():
            blocks[name].scheduler.load_state_dict(scheduler)  # type: ignore[union-attr]
        for name, random_state in state['generators'].items():
            getattr(self, name).set_state(random_state)
        self.step, self.update_count = state['step'], state['update_count']

    def plug_of(self, key: str) -> str:
        """The name on the command line of the plug that a key of the state belongs to; '' if to none."""
        first, _, rest = key.partition('.')
        return f'aux.{rest.partition(".")[0]}' if first == 'auxiliaries' else f'explore.{self.bonus.name}' if first == 'bonus' and self.bonus else ''

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Those of plugs are taken as far as both sides have them, in the same shape. Raises: ValueError: other parts or shapes."""
        plugs = ('auxiliaries.', 'bonus.')
        def optional(name: str) -> bool:  # statistics of lanes begin anew where there are others
            return name.startswith(plugs) or name.rpartition('.')[2] in LANE_BUFFERS
        own = {name: value for name, value in self.state_dict().items() if optional(name)}
        given = {name: value for name, value in weights.items() if not optional(name) or (name in own and own[name].shape == value.shape)}
        ours, there = ({key: tuple(value.shape) for key, value in side.items()} for side in (self.state_dict(), own | given))
        if differing := [key for key in ours | there if ours.get(key) != there.get(key)]:
            first, others = differing[0], f', and {len(differing) - 1} others' if differing[1:] else ''
            raise ValueError(f'the saved weights do not fit this agent: {first} is {there.get(first, "missing")} there and {ours.get(first, "missing")} here'
                             f'{others}; give it the encoder=, sizes and parts that they were saved with')
        self.load_state_dict(own | given, strict=True)
        for name, loss in self.losses.items():
            loss.begin_copies({key.split('.')[2] for key in given if key.startswith(f'auxiliaries.{name}.')})


def can_compile() -> bool:
    """Whether torch.compile finds a C++ compiler and Python's headers."""
    return bool(shutil.which(os.environ.get('CXX', 'g++'))) and Path(sysconfig.get_path('include'), 'Python.h').exists()
