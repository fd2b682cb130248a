"""Whether composed values make sense: keys, types, ranges, combinations. What does not is told in one line, with the nearest valid choices.

Imports neither torch nor a simulator's engine, so that a misspelt key is refused at once.
"""
from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from Datasets.Suites.Names import FIND, LABELLED, find_task

FOLDER = Path(__file__).parent

GROUPS = ('task', 'Agent', 'aux', 'explore', 'core')
PARTS = ('Aug', 'Eyes', 'pool', 'Pi_trunk', 'Q_trunk', 'Pi_head', 'Q_head', 'Generator', 'Discriminator', 'Optim', 'Scheduler')  # by short or dotted name
TEXTS = ('root', 'replay.path', 'load_path', 'plotting.reference', 'Dataset.root')  # paths; the name of one may be a number
PATTERNS = ('plotting.plot_experiments', 'plotting.plot_agents', 'plotting.plot_suites', 'plotting.plot_tasks')
CHOICES: dict[str, tuple[Any, ...]] = {'precision': ('fp32', 'bf16', 'auto'), 'replay.store': ('auto', 'map', 'ram', 'device'),
                                       'replay.sampler': (None, 'uniform', 'epoch'), 'obs': (None, 'pixels', 'state'),
                                       'profile': (None, 'torch', 'line', 'scalene'),
                                       'encoder': ('auto', 'pixel', 'nature', 'cnn', 'mlp', 'ofe', 'identity')}
PASSES = {'train_epochs': 'train_steps', 'evaluate_per_epochs': 'evaluate_per_steps', 'lr_decay_epochs': 'lr_decay_steps'}  # over data, and what they come to
FRACTIONS = ('lr', 'weight_decay', 'reward_clip', 'grad_clip', 'replay.wait')  # numbers whose default is whole or null
PACKAGES = {'line': ('line_profiler', 'line_profiler==5.1.0'), 'scalene': ('scalene', 'scalene==2.4.0')}  # of profile=: module, what pip installs
FREE = ('replay.transform.', 'Dataset.', 'TestDataset.')  # arguments of what the user names
COUNTS = ('frame_stack', 'action_repeat', 'image_size', 'evaluate_envs', 'plotting.steps', 'train_epochs', 'evaluate_per_epochs',
          'lr_decay_epochs', 'profile_updates')  # whole numbers whose default is null
ONE_OR_MORE = ('num_envs', 'batch_size', 'nstep', 'updates_per_learn', 'replay.capacity', 'evaluate_episodes', 'evaluate_envs', 'frame_stack',
               'action_repeat', 'image_size', 'hidden_dim', 'trunk_dim', 'encoder_hidden_dim', 'encoder_layers', 'video.fps', 'profile_updates')
ZERO_OR_MORE = ('train_steps', 'seed_steps', 'explore_steps', 'learn_per_steps', 'learn_steps_after', 'pretrain_steps', 'evaluate_per_steps',
                'log_per_steps', 'plot_per_steps', 'save_per_steps', 'load_per_steps', 'lr', 'weight_decay', 'lr_decay_steps', 'seed', 'replay.wait',
                'train_epochs', 'evaluate_per_epochs', 'lr_decay_epochs')
ABOVE_ZERO = ('reward_clip', 'grad_clip', 'adam_eps')
UP_TO_ONE = ('discount', 'ema_decay')


class ConfigError(ValueError):
    """What was asked for cannot be composed; the message is one line for the user."""


@cache
def defaults() -> dict[str, Any]:
    """args.yaml as plain containers, flattened to dotted keys."""
    tree: Any = OmegaConf.to_container(OmegaConf.load(FOLDER / 'args.yaml'))  # unlike plain YAML it reads 1e-4 as a number
    return {key: value for key, value in flatten(tree).items() if not key.startswith(('hydra.', 'defaults'))}


def check(values: dict[str, Any]) -> None:
    """Refuses what cannot be meant. Numbers written as 1e5 become integers where a whole number is. Raises: ConfigError."""
    check_keys(values)
    for key, value in flatten(values).items():
        if key in defaults():
            assign(values, key, typed(key, value, defaults()[key]))
    check_ranges(flatten(values))
    check_identity(values)
    check_obs(values)
    check_labels(values)
    if len(values['explore']) > 1:
        raise ConfigError(f'explore={",".join(values["explore"])}: expected one bonus for exploration')
    check_patterns(flatten(values))
    check_profile(values)
    if values['evaluate_envs'] is None:
        values['evaluate_envs'] = max(n for n in range(1, 9) if values['evaluate_episodes'] % n == 0)
    if values['evaluate_episodes'] % values['evaluate_envs']:
        raise ConfigError(f'evaluate_episodes={values["evaluate_episodes"]} cannot be shared out evenly over evaluate_envs={values["evaluate_envs"]}')
    if values['offline'] and values['train_steps'] and not (values['learn_per_steps'] or values['learn_steps_after']):
        raise ConfigError('offline=true with learn_per_steps=0 would do nothing: an offline run neither plays nor, so, learns')
    if values['offline'] and values['explore']:
        raise ConfigError(f'explore={min(values["explore"])}: a bonus is given for what is played, offline=true plays nothing; explore=none')
    if values['offline'] and values['agent'].get('rollout_steps'):
        raise ConfigError(f'offline=true: {values["agent_name"]} learns from what it has just played alone; another agent, or offline=false')
    if values['offline'] and values['replay']['load']:
        raise ConfigError('offline=true reads a stored replay where it lies, replay.load=true starts from a copy of one: choose one')
    if values['load'] and values['overwrite']:
        raise ConfigError('load=true resumes a run and overwrite=true replaces it: choose one')


# --- keys

def check_keys(values: dict[str, Any]) -> None:
    """Refuses keys that nothing reads (`+` lets any through), sections that are not sections, and gaps that `~` left. Raises: ConfigError."""
    known = defaults()
    sections = {key.rpartition('.')[0] for key in known if '.' in key} | {'recipes', 'agent', 'environment', 'aux', 'explore'}
    parts = {key.rpartition('.')[0] for key in known if key.startswith('recipes.') and key.endswith('._target_')}
    for key, value in flatten(values).items():
        if key in sections and not isinstance(value, dict):
            example = f'{key}._target_={value}' if key in parts else f'{key}.KEY=…'
            raise ConfigError(f'{key}={value}: that is a group of keys; write {example}')
        group = key.partition('.')[0]
        if group == 'recipes':
            if key not in known and not any(key.startswith(f'{part}.') for part in parts) and key not in sections:
                raise ConfigError(f'{key}: no such part; there are: {", ".join(sorted(parts))} (Hparams/args.yaml)')
        elif key not in known and group not in ('agent', 'environment', *GROUPS) and key not in ('agent_name', 'plugs') and not key.startswith(FREE):
            raise ConfigError(unknown_key(key))
    flat = flatten(values)
    for key in known:
        optional = key.startswith(('recipes.', 'agent', 'environment', 'aux', 'explore'))
        if key not in flat and not optional and not any(given.startswith(f'{key}.') for given in flat):
            raise ConfigError(f'{key} was taken out: give it a value instead of ~{key}')
    if not isinstance(values.get('agent'), dict) or not values['agent'].get('_target_'):
        raise ConfigError('agent._target_ was taken out: choose the agent with Agent=…')


def unknown_key(key: str, suite: str = '', agent: str = '') -> str:
    """The line for a key that does not exist; suite and agent: whose options are among the nearest."""
    known = [k for k in defaults() if not k.startswith('recipes')] + list(GROUPS)
    known += file_keys(f'task/{suite}', 'environment') + file_keys(f'Agent/{agent}', 'agent')
    if key.startswith(('aux.', 'explore.')):
        kind, group = key.partition('.')[0], '.'.join(key.split('.')[:2])
        known += [f'{group}.{name}' for file in (f'plug/{kind}', *(['plug/a2'] if kind == 'aux' else []), group.replace('.', '/')) for name in file_names(file)]
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or difflib.get_close_matches(key.split('.')[-1], known, n=3, cutoff=0.5)
    if key.startswith(('agent.', 'environment.', 'recipes.', 'aux.', 'explore.')):
        return f'{key}: not among the defaults' + (f'; nearest: {", ".join(close)}' if close else '') + f'; an argument of the constructor is given as +{key}=…'
    return f'{key}: no such key; nearest: {", ".join(close) or "see python Run.py --help"} (Hparams/args.yaml)'


def file_names(preset: str) -> list[str]:
    """The keys of a preset's file, if it has one."""
    file = FOLDER / f'{preset}.yaml'
    tree: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    return [key for key in tree if key not in ('defaults', '_target_')]


def file_keys(preset: str, group: str) -> list[str]:
    """The keys below `group` in a preset's file, if it has one."""
    file = FOLDER / f'{preset}.yaml'
    tree: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    return [f'{group}.{key}' for key in tree.get(group) or {} if key != '_target_']


# --- values

def typed(key: str, value: Any, default: Any) -> Any:
    """The value as its key wants it. Raises: ConfigError."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key in PARTS or key.endswith('._target_'):
        if value is not None and (not isinstance(value, str) or not value):
            raise ConfigError(f'{key}={value}: expected the name of a part, short or dotted')
    elif key in TEXTS or key == 'experiment':
        if not (isinstance(value, (str, int, float)) and str(value)) and (value is not None or default is not None):
            raise ConfigError(f'{key}={value}: expected {"a name" if key == "experiment" else "a path"}')
        return None if value is None else str(value)
    elif key in PATTERNS:
        return None if value is None else [str(name) for name in (value if isinstance(value, list) else [value])]
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f'{key}={value}: expected true or false')
    elif key in FRACTIONS or isinstance(default, float):
        if not number and (value is not None or default is not None):
            raise ConfigError(f'{key}={value}: expected a number')
    elif isinstance(default, int) or key in COUNTS or key in ('threads', 'env_threads', 'num_workers'):
        whole = number and math.isfinite(value) and value == int(value)
        if not whole and not (isinstance(default, str) and value == default) and not (default is None and value is None):
            raise ConfigError(f'{key}={value}: expected a whole number' + (f' or {default}' if isinstance(default, str) else ''))
        return int(value) if whole else value
    return value


def check_ranges(flat: Mapping[str, Any]) -> None:
    for keys, good, expected in ((ONE_OR_MORE, lambda x: x >= 1, '1 or more'), (ZERO_OR_MORE, lambda x: 0 <= x < math.inf, '0 or more'),
                                 (ONE_OR_MORE + ZERO_OR_MORE, lambda x: x < 2 ** 53, 'less than 2⁵³'),
                                 (ABOVE_ZERO, lambda x: 0 < x < math.inf, 'a number above 0'), (UP_TO_ONE, lambda x: 0 <= x <= 1, 'a number from 0 to 1'),
                                 (('threads', 'env_threads'), lambda x: x == 'auto' or x >= 1, 'auto, or 1 or more'),
                                 (('num_workers',), lambda x: x == 'auto' or x >= 0, 'auto, or 0 or more'),
                                 (('seed',), lambda x: x < 2 ** 32, 'less than 2³²')):
        for key in keys:
            if flat[key] is not None and not good(flat[key]):
                raise ConfigError(f'{key}={flat[key]}: expected {expected}')
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            raise ConfigError(f'{key}={flat[key]}: expected one of {", ".join(str(c) for c in choices if c)}')
    if not re.fullmatch(r'auto|cpu|cuda(:\d+)?|mps', str(flat['device'])):
        raise ConfigError(f'device={flat["device"]}: expected auto, cpu, cuda or cuda:N')


def check_identity(values: Mapping[str, Any]) -> None:
    """What a run's folder is named by."""
    suite, task = values['suite'], values['task_name']
    if suite not in FIND:
        raise ConfigError(f'suite={suite}: expected one of {", ".join(FIND)}; choose it as task={next(iter(FIND))}/…')
    try:
        canonical = find_task(f'{suite}/{"" if task == "???" else task}')
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if canonical != (suite, task):
        raise ConfigError(f'task_name={task}: choose it as task={suite}/{canonical[1]}')
    if not re.search('[A-Za-z0-9]', values['experiment']) or values['experiment'].startswith('.'):
        raise ConfigError(f'experiment={values["experiment"]}: expected a name for a folder, with a letter or a digit, not beginning with a dot')


def check_obs(values: Mapping[str, Any]) -> None:
    """Whether the suite has both kinds of observations, where another than its own is asked for."""
    tree: Any = OmegaConf.to_container(OmegaConf.load(FOLDER / 'task' / f'{values["suite"]}.yaml'))
    if values['obs'] not in (None, tree['obs']) and 'obs' not in tree['environment']:
        raise ConfigError(f'obs={values["obs"]}: task={values["suite"]}/… has no other than obs={tree["obs"]}')
    if values['environment'].get('obs', values['obs']) != values['obs']:
        raise ConfigError(f'environment.obs={values["environment"]["obs"]}: write obs={values["environment"]["obs"]}, on which presets rest too')


def check_labels(values: dict[str, Any]) -> None:
    """What is for data sets and for generation alone; generate=true is told to learn from what is stored."""
    labelled = values['suite'] in LABELLED
    if not (values['RL'] or values['supervise']):
        raise ConfigError('RL=false supervise=false: one of the two has to be true, or nothing is learned')
    if not labelled:
        for key in ('RL', 'supervise', 'discrete', 'train_epochs', 'evaluate_per_epochs', 'lr_decay_epochs', 'replay.transform', 'Dataset._target_'):
            if (value := at(values, key)) != defaults()[key]:
                raise ConfigError(f'{key}={value}: task={values["suite"]}/… shows no labelled data, only task=classify/… does')
    if values['generate']:
        if values['discrete']:
            raise ConfigError('generate=true discrete=true: an image is a continuous action')
        values['offline'] = True
        values['plugs'].append('generate')


def check_patterns(flat: Mapping[str, Any]) -> None:
    """Plots come hours later: what they would stumble over is refused now."""
    for key in PATTERNS:
        for name in flat[key] or ():
            try:
                re.compile(name)
            except re.error as error:
                raise ConfigError(f'{key}={flat[key]}: {name} is no regular expression ({error})') from error
    reference = flat['plotting.reference']
    if reference and not Path(reference).is_file():
        raise ConfigError(f'plotting.reference={reference}: no such file')


def check_profile(values: Mapping[str, Any]) -> None:
    name = values['profile']
    if name is None and values['profile_updates'] is not None:
        raise ConfigError(f'profile_updates={values["profile_updates"]}: of which profiler? profile=torch, line or scalene')
    if name and not (values['train_steps'] and (values['learn_per_steps'] or values['learn_steps_after'])):
        raise ConfigError(f'profile={name}: updates are profiled, and there are none with train_steps={values["train_steps"]} '
                          f'learn_per_steps={values["learn_per_steps"]}')
    if name in PACKAGES and find_spec(PACKAGES[name][0]) is None:
        raise ConfigError(f'profile={name} needs {PACKAGES[name][0]}: pip install {PACKAGES[name][1]}')


# --- trees

def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    return dict(leaves(tree, prefix))


def leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def at(tree: Mapping[str, Any], dotted: str) -> Any:
    for key in dotted.split('.'):
        tree = tree[key]
    return tree


def assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *path, leaf = dotted.split('.')
    for key in path:
        tree = tree[key]
    tree[leaf] = value
