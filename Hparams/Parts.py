"""Whether the parts that were asked for exist and take what they are given: agent, recipes and suite, before any of them is built."""
from __future__ import annotations

import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from Agents.Agent import Agent
from Blocks.Auxiliary import Auxiliary
from Blocks.Exploration import Bonus
from Datasets.Suites import MODULES
from Datasets.Suites.Names import LABELLED
from Hparams.Check import defaults
from Utils import Args, accepted, check_arguments, locate, refuse_unknown, schedule

WORDS = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a name', type(None): 'null'}
SCHEDULE = re.compile(r'\w+\(.*\)')


def check_parts(args: Args) -> None:
    """Refuses unknown parts and arguments, and arguments of a wrong type; whole numbers written as 1e5 become integers.

    Raises: ValueError. ImportError: a simulator is not installed."""
    target = locate(args.agent['_target_'], 'Agent')
    if not (inspect.isclass(target) and issubclass(target, Agent)):
        raise ValueError(f'Agent={args.agent["_target_"]}: expected a subclass of Agents.Agent.Agent')
    refuse_unknown(args.agent, target, 'agent')
    check_types(args.agent, target, 'agent')
    for group, base in (('aux', Auxiliary), ('explore', Bonus)):
        for name, recipe in args[group].items():
            check_plug(group, name, recipe, base)
    for where, recipe in recipes(args.recipes, 'recipes'):
        check_arguments(recipe, where)
        check_types(recipe, locate(recipe['_target_'], where), where)
    module = import_module(f'Datasets.Suites.{MODULES[args.suite]}')
    suite = getattr(module, MODULES[args.suite])
    known = [name for function in (module.make, suite) for name in parameters(function) if name not in ('task', 'num_envs', 'train', 'num_threads')]
    for option in args.environment:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=3, cutoff=0.4) or known
            raise ValueError(f'environment.{option}: task={args.suite}/… has no such option; nearest: {", ".join(close)}')
    for function in (module.make, suite):
        check_types(args.environment, function, 'environment', optional=True)


def check_plug(group: str, name: str, recipe: Any, base: type) -> None:
    where = f'{group}.{name}'
    if not (isinstance(recipe, dict) and recipe.get('_target_')):
        many = f', or {group}=[…,{name}]' if group == 'aux' else ''
        raise ValueError(f'{where}: no {"loss" if group == "aux" else "bonus"} of that name was chosen; write {group}={name}{many}')
    plug = locate(str(recipe['_target_']), where)
    if not (inspect.isclass(plug) and issubclass(plug, base)):
        raise ValueError(f'{where}: expected a subclass of {base.__module__.rpartition(".")[0]}.{base.__name__} ({where}._target_)')
    if lacking := {'parts', 'name', 'seed', 'weight'} - accepted(plug)[0]:
        raise ValueError(f'{where}: {plug.__name__} does not take {", ".join(sorted(lacking))}; its constructor must take **settings and hand them on '
                         'to super().__init__')
    refuse_unknown(recipe, plug, where, hide=('parts', 'name', 'seed', 'num_envs', 'total_envs'))
    check_types(recipe, plug, where)


# what agents take from the top level and nothing else reads
AGENTS_OWN = ('batch_size', 'lr', 'weight_decay', 'lr_decay_steps', 'grad_clip', 'ema', 'ema_decay', 'trunk_dim', 'hidden_dim', 'layer_norm', 'adam_beta',
              'adam_eps', 'encoder', 'encoder_hidden_dim', 'encoder_layers', 'normalise_obs')


def without_use(args: Args, agent: type[Agent], images: bool) -> Iterator[str]:
    """A line for each setting that is not at its default and makes no difference. images: what the task shows."""
    known, anything = accepted(agent)
    for key in AGENTS_OWN:
        if args[key] != defaults()[key] and not (key == 'batch_size' and (args.aux or args.explore)):
            if key not in known and not anything:
                yield f'{key}={args[key]} makes no difference: {agent.__name__} does not take it'
            elif key in ('encoder_hidden_dim', 'encoder_layers') and images:
                yield f'{key}={args[key]} makes no difference: it is of the encoders for vectors'
    if rollout := (args.agent.get('rollout_steps') or 0) * args.num_envs:
        if args.explore_steps:
            yield f'explore_steps={args.explore_steps} makes no difference: {agent.__name__} learns from what its policy does'
        for name in (name for name, recipe in args.explore.items() if recipe.get('batch_size')):
            yield f'explore.{name}.batch_size={args.explore[name].batch_size} makes no difference: {agent.__name__} teaches a bonus with its own minibatches'
        if 0 < args.train_steps < args.seed_steps + rollout and args.learn_per_steps:
            yield f'train_steps={args.train_steps} is less than one rollout, agent.rollout_steps × num_envs = {rollout}: nothing will be learned'
    if args.recipes['encoder'].get('freeze') and args.generate:
        yield 'recipes.encoder.freeze=true makes no difference: generators see noise alone (generate=true)'
    for name, recipe in args.aux.items() if args.recipes['encoder'].get('freeze') else ():
        if recipe.get('weight', 1):
            yield f'aux={name} makes no difference: recipes.encoder.freeze=true (aux.{name}.weight=0 trains its heads alone)'
    for key in ('RL', 'supervise') if args.generate else ():
        if not args[key]:
            yield f'{key}=False makes no difference: generate=true learns from images alone'
    for key in ('Eyes', 'pool', 'Aug') if args.generate else ():
        if args[key] is not None:
            yield f'{key}={args[key]} makes no difference: generators see noise alone (generate=true)'
    for key in ('classifier', 'metrics') if not args.generate else ():
        if args.generation[key]:
            yield f'generation.{key}={args.generation[key]} makes no difference without generate=true'
    for key in ('frame_stack', 'action_repeat', 'nstep', 'log_video') if args.suite in LABELLED else ():
        if args[key] != (1 if key != 'log_video' else False):
            yield f'{key}={args[key]} makes no difference: an episode on a data set is one step'
    if args.image_size is not None and not images:
        yield f'image_size={args.image_size} makes no difference: the task shows vectors'


def recipes(tree: Mapping[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every recipe that names its part, with its key."""
    for key, value in tree.items():
        if isinstance(value, dict):
            if value.get('_target_'):
                yield f'{where}.{key}', value
            yield from recipes(value, f'{where}.{key}')


def check_types(values: dict[str, Any], target: Callable[..., Any], where: str, optional: bool = False) -> None:
    """Compares values with the annotations of the parameters that take them; what these do not say is let through.

    Args:
        optional: null leaves any of them at its default."""
    hints = parameters(target)
    for key, value in values.items():
        parameter = hints.get(key)
        if parameter is None or (optional and value is None):
            continue
        allowed = alternatives(parameter.annotation)
        if not any(fits(value, kind) for kind in allowed):
            if int in allowed and isinstance(value, float) and value.is_integer():
                values[key] = int(value)
                continue
            expected = ' or '.join(dict.fromkeys(WORDS.get(kind) or ', '.join(map(str, typing.get_args(kind))) for kind in allowed))
            raise ValueError(f'{where}.{key}={value}: expected {expected}')
        if isinstance(parameter.default, str) and SCHEDULE.fullmatch(parameter.default):
            schedule(value, f'{where}.{key}')


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters by name, those that it hands on to base classes included, their annotations resolved where that is possible."""
    found: dict[str, inspect.Parameter] = {}
    for function in ([vars(c)['__init__'] for c in target.__mro__ if '__init__' in vars(c)] if inspect.isclass(target) else [target]):
        try:
            signature = inspect.signature(function, eval_str=True).parameters
        except (NameError, TypeError, ValueError):  # an annotation that only a type checker can resolve; a built-in
            continue
        found = {name: p for name, p in signature.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name != 'self'} | found
        if not any(p.kind is p.VAR_KEYWORD for p in signature.values()):  # hands nothing on to its base
            break
    return found


def alternatives(annotation: Any) -> list[Any]:
    """The types of a union, or the one there is."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return [kind for one in typing.get_args(annotation) for kind in alternatives(one)] if union else [type(None) if annotation is None else annotation]


def fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if kind not in WORDS:  # none of the plain types: its constructor knows best
        return True
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
