"""Every task of every suite under every spelling users type: `battlezone` is `battle_zone`, `CartPole` the newest `CartPole-v1`.

Imports no simulator before it is asked for one and never torch, so that a misspelt task is refused at once.
"""
from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path


def nearest(name: str, choices: Iterable[str], most: int = 3) -> list[str]:
    """The `most` choices that look like `name`, whatever its case and underscores."""
    by_key: dict[str, str] = {}
    for choice in choices:
        by_key.setdefault(squash(choice), choice)
    return [by_key[key] for key in difflib.get_close_matches(squash(name), by_key, n=most, cutoff=0.5)]


def squash(name: str) -> str:
    return re.sub(r'[^a-z0-9.]', '', name.lower())


def atari_tasks() -> list[str]:
    """The games whose ROM ale-py ships, in snake_case."""
    from ale_py import roms
    return sorted(roms.get_all_rom_ids())


def gym_tasks() -> list[str]:
    """The ids in Gymnasium's registry (Atari's excluded: they are a suite of their own)."""
    import gymnasium
    return sorted(name for name in gymnasium.registry if not name.startswith(('ALE/', 'phys2d/', 'tabular/', 'GymV')))


@cache
def dmc_pairs() -> dict[str, tuple[str, str]]:
    """Name → (domain, task) of every task in dm_control.suite, read from its source: importing it takes a second."""
    found = importlib.util.find_spec('dm_control')
    if found is None or found.origin is None:
        raise ValueError('task=dmc/...: dm_control is not installed: pip install dm_control==1.0.50 "mujoco<4"')
    pairs = {}
    for file in sorted((Path(found.origin).parent / 'suite').glob('*.py')):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(ast.unparse(decorator).startswith('SUITE.add(') for decorator in node.decorator_list):
                name = node.name if node.name.startswith(f'{file.stem}_') else f'{file.stem}_{node.name}'
                pairs[name] = (file.stem, node.name)
    return pairs


def dmc_tasks() -> list[str]:
    """The tasks of dm_control.suite as `domain_task`."""
    return sorted(dmc_pairs())


def find_dmc(name: str) -> str:
    """Canonical name: `cheetah_run`, `CheetahRun`, DrQ-v2's `cup_catch` for `ball_in_cup_catch`. Raises: ValueError."""
    return match(re.sub(r'^cup(?=[_-]?catch)', 'ball_in_cup', name, flags=re.IGNORECASE), dmc_tasks(), 'dmc')


def find_atari(name: str) -> str:
    """Canonical name of a game: `Pong`, `pong`, `ALE/Pong-v5` are `pong`. Raises: ValueError."""
    stem = re.sub(r'(NoFrameskip)?-v\d+$', '', name.removeprefix('ALE/'))
    return match(stem, atari_tasks(), 'atari')


def find_gym(name: str) -> str:
    """Canonical id: as written, or whatever its case, the newest version where none is given. `module:id` imports the module that registers the id.

    Raises:
        ValueError: no such id, or no such module.
    """
    module, _, bare = name.rpartition(':')
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f'task=gym/{name}: cannot import {module!r}, which is to register {bare} ({error})') from error
    names = gym_tasks()
    prefix = f'{module}:' if module else ''
    if bare in names:
        return prefix + bare
    versions = [n for n in names if re.search(r'-v\d+$', n) and squash(re.sub(r'-v\d+$', '', n)) == squash(bare)]
    if versions:
        return prefix + max(versions, key=lambda n: int(n.rsplit('-v', 1)[1]))
    return prefix + match(bare, names, 'gym')


LABELLED = ('classify',)  # suites that show labelled data
# the data sets that Datasets/Labelled knows by name, and `custom` for one that Dataset=… brings
SETS = ('celeba', 'cifar10', 'cifar100', 'custom', 'digits', 'emnist', 'fashion_mnist', 'folder', 'imagenet', 'kmnist', 'mnist', 'places365', 'qmnist', 'stl10',
        'svhn', 'tiny_imagenet', 'usps')


def classify_tasks() -> list[str]:
    return list(SETS)


def find_classify(name: str) -> str:
    """Canonical name: `MNIST` is `mnist`. Raises: ValueError."""
    return match(name, classify_tasks(), 'classify')


def mario_tasks() -> list[str]:
    """The ids of gym-super-mario-bros 7.4.0, which need not be installed. v0 to v3 are ways to draw the same game."""
    games = [('SuperMarioBros', 4), ('SuperMarioBros2', 2), ('SuperMarioBrosRandomStages', 4)]
    games += [(f'SuperMarioBros-{world}-{stage}', 4) for world in range(1, 9) for stage in range(1, 5)]
    return [f'{game}-v{version}' for game, versions in games for version in range(versions)]


def find_mario(name: str) -> str:
    """Canonical id: `super_mario_bros` and `SuperMarioBros` are `SuperMarioBros-v0`. Raises: ValueError."""
    names = mario_tasks()
    first = f'{name}-v0'
    return match(first if squash(first) in map(squash, names) else name, names, 'mario')


def match(name: str, names: list[str], suite: str) -> str:
    for candidate in names:
        if squash(candidate) == squash(name):
            return candidate
    close = ', '.join(f'{suite}/{n}' for n in nearest(name, names)) or f'{suite}/{names[0]}'
    raise ValueError(f'task={suite}/{name}: no such task; nearest: {close}')


TASKS: dict[str, Callable[[], list[str]]] = {'atari': atari_tasks, 'dmc': dmc_tasks, 'gym': gym_tasks, 'classify': classify_tasks,
                                           'mario': mario_tasks}
FIND: dict[str, Callable[[str], str]] = {'atari': find_atari, 'dmc': find_dmc, 'gym': find_gym, 'classify': find_classify, 'mario': find_mario}


def find_task(task: str) -> tuple[str, str]:
    """(suite, canonical task) of `suite/task`. Raises: ValueError that names the nearest."""
    suite, _, name = task.partition('/')
    if suite not in FIND:
        close = nearest(suite, FIND) or list(FIND)
        raise ValueError(f'task={task}: no suite {suite!r}; there are: {", ".join(FIND)} (nearest: {close[0]}/…)')
    if not name:
        raise ValueError(f'task={task}: which one? e.g. {suite}/{TASKS[suite]()[0]}')
    return suite, FIND[suite](name)
