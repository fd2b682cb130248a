"""The suites: one module for each family of simulators, with `make`, `tasks` and `find_task`. None is imported before it is asked for."""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from Datasets.Suites.Suite import Suite

MODULES = {'atari': 'Atari', 'dmc': 'DMC', 'gym': 'Gym', 'classify': 'Classify', 'mario': 'Mario'}


def make(suite: str, task: str, num_envs: int, **options: Any) -> Suite:
    """Builds a task of a suite.

    Args:
        suite: 'atari', 'dmc', 'gym', 'classify', 'mario', in any case.
        task: in any spelling that the suite's `find_task` knows.
        num_envs: lanes.
        options: see the suite's `make`; None leaves an option at its default.

    Raises:
        ValueError: unknown suite, task or option.
        ImportError: a simulator is not installed; the message says what to install.
    """
    if suite.lower() not in MODULES:
        raise ValueError(f'suite {suite!r}: expected one of {", ".join(MODULES)} (the part of task= before the slash)')
    return import_module(f'{__name__}.{MODULES[suite.lower()]}').make(task, num_envs, **options)
