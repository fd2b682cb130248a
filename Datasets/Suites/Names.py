"""Every task of every suite under every spelling users type: `battlezone` is `battle_zone`, `CartPole` the newest `CartPole-v1`.

Imports no simulator before it is asked for one and never torch, so that a misspelt task is refused at once.
"""
from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterable


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


def match(name: str, names: list[str], suite: str) -> str:
    for candidate in names:
        if squash(candidate) == squash(name):
            return candidate
    close = ', '.join(f'{suite}/{n}' for n in nearest(name, names)) or f'{suite}/{names[0]}'
    raise ValueError(f'task={suite}/{name}: no such task; nearest: {close}')


TASKS: dict[str, Callable[[], list[str]]] = {'atari': atari_tasks, 'gym': gym_tasks}
FIND: dict[str, Callable[[str], str]] = {'atari': find_atari, 'gym': find_gym}


def find_task(task: str) -> tuple[str, str]:
    """(suite, canonical task) of `suite/task`. Raises: ValueError that names the nearest."""
    suite, _, name = task.partition('/')
    if suite not in FIND:
        close = nearest(suite, FIND) or list(FIND)
        raise ValueError(f'task={task}: no suite {suite!r}; there are: {", ".join(FIND)} (nearest: {close[0]}/…)')
    if not name:
        raise ValueError(f'task={task}: which one? e.g. {suite}/{TASKS[suite]()[0]}')
    return suite, FIND[suite](name)
