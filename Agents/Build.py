"""From plain values to an agent, and from a checkpoint to the agent that it holds."""
from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import torch
import yaml

import Checkpoint
import Parallel
from Agents.Agent import Agent
from Blocks.Normalisers import LANE_BUFFERS
from Datasets.Specs import ActionSpec, ObsSpec
from Hparams.Check import defaults
from Utils import Args, accepted, build, derive_seed, filled, locate


def make_agent(args: Args, obs_spec: ObsSpec, action_spec: ActionSpec, device: torch.device) -> Agent:
    """The agent takes what it knows by name from the configuration's top level, and its own numbers from `agent`.

    Raises:
        ValueError: parts that do not exist or do not fit. MemoryError: it does not fit into memory."""
    torch.manual_seed(derive_seed(args.seed, 'initialisation'))
    common = {key: value for key, value in args.items() if not isinstance(value, dict)} | {'device': device}
    common['seed'] = derive_seed(args.seed, 'agent', *([Parallel.rank] if Parallel.rank else []))
    common['num_envs'] = lanes = len(Parallel.lanes(args.num_envs))
    names, anything = accepted(locate(args.agent['_target_'], 'agent'))
    if 'batch_size' in names or anything:
        common['batch_size'] = Parallel.share(args.batch_size, 'batch_size')
    if args.generate:
        if not obs_spec.is_image:
            raise ValueError(f'generate=true: task={args.suite}/{args.task_name} shows vectors {obs_spec.shape}, expected images')
        action_spec = ActionSpec((math.prod(obs_spec.stacked_shape),))
    recipes = filled(args.recipes, list(obs_spec.stacked_shape))
    if args.encoder == 'auto' and not obs_spec.is_image and any(loss.get('weight', 1) for loss in args.aux.values()):
        common['encoder'] = 'ofe'  # vectors need no encoder, an auxiliary loss does
    try:
        agent = build(args.agent, '', 'agent', obs_spec=obs_spec, action_spec=action_spec, recipes=recipes, intrinsic=bool(args.explore), **common)
        agent.obs_spec, agent.action_spec = obs_spec, action_spec
        numbers = {key: args[key] for key in ('lr', 'batch_size', 'weight_decay', 'lr_decay_steps', 'grad_clip')}
        numbers |= {'eps': args.adam_eps, 'betas': (args.adam_beta, 0.999)}
        frozen = bool(args.recipes.encoder.get('freeze'))  # losses that would train it are left out
        if frozen and args.pretrain_steps:
            raise ValueError(f'pretrain_steps={args.pretrain_steps}: recipes.encoder.freeze=true leaves nothing to train; choose one of the two')
        losses = {name: recipe for name, recipe in args.aux.items() if not (frozen and recipe.get('weight', 1))}
        agent.attach(losses, obs_spec, action_spec, recipe=recipes['encoder'], **numbers)
        agent.reward_exploration(args.explore, obs_spec, action_spec, lanes, **numbers)
        Parallel.sync_batch_norms(agent)
        Parallel.broadcast(agent, without=LANE_BUFFERS)  # the same weights everywhere, whatever the machine
        return agent
    except RuntimeError as error:  # torch has no class of its own for this
        if re.search('memory|overflow', str(error)):
            raise MemoryError(f'{args.agent_name} does not fit into memory: {str(error).splitlines()[0]}') from error
        raise


def saved_agent(path: Path, device: torch.device) -> Agent:
    """The agent of a run, with the weights of a checkpoint.

    Args:
        path: a run's folder, or a checkpoint in it; config.yaml lies beside it.

    Raises:
        ValueError, OSError: there is none, or it is of another version."""
    file = Checkpoint.weights_file(path)
    state, config = Checkpoint.read(file, device), file.parent / 'config.yaml'
    if 'specs' not in state:
        raise ValueError(f'{file}: it does not say what its agent sees; it was saved before checkpoints did')
    if not config.is_file():
        raise ValueError(f'{file}: config.yaml, which says what its agent is made of, does not lie beside it')
    specs = state['specs']
    obs_spec = ObsSpec(**specs['obs'] | {'dtype': getattr(torch, specs['obs']['dtype'])})
    known = {key: value for key, value in defaults().items() if '.' not in key}  # a run of an earlier version lacks keys that came since
    with Parallel.alone():
        agent = make_agent(Args(known | yaml.safe_load(config.read_text())), obs_spec, ActionSpec(**specs['action']), device)
    agent.load_weights(state['agent']['weights'])
    return agent


def described(spec: ObsSpec | ActionSpec) -> dict[str, Any]:
    """A specification as plain values."""
    return {name: str(value).removeprefix('torch.') if isinstance(value, torch.dtype) else value for name, value in dataclasses.asdict(spec).items()}
