"""`profile=scalene`: scalene has to be there when a process begins, so the same command runs again in a process under scalene, and its file is read here.

Memory is left out: with torch it takes minutes. Who wants other options of scalene's begins it by hand (README), and it is found there.
Loads no torch while it waits.
"""
from __future__ import annotations

import json
import os
import posix
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

STEM_FILE = 'GRAFT_SCALENE'  # environment variable: the file in which the profiled run says what its profile is to be called
WINDOW = '1048576'  # bytes; scalene's own default. Where it is set, scalene starts no further process in between, which would keep signals from the run
RUN = Path(__file__).parents[1] / 'Run.py'


def runs_under_scalene() -> bool:
    """Whether this process was begun with scalene, by `launch` or by hand; merely to have imported it is not enough."""
    return STEM_FILE in os.environ or any(Path(word).name == 'scalene' for word in sys.orig_argv[1:3])


def check_scalene(profile: str | None) -> None:
    """Raises: ValueError: a run that is to be profiled by scalene was begun without."""
    if profile == 'scalene' and not runs_under_scalene():
        raise ValueError('profile=scalene: scalene has to be there when the process begins, as python Run.py … profile=scalene sees to')
    if profile == 'scalene':
        os.register_at_fork(after_in_child=leave_plainly)


def leave_plainly() -> None:
    """In a lane's process: scalene's own os._exit raises SystemExit instead, which would go through all that the fork has on its stack, the run included."""
    setattr(os, '_exit', posix._exit)  # noqa: B010  mypy would not have a function assigned


def launch(arguments: Sequence[str]) -> int:
    """Runs Run.py with these arguments under scalene, switched off until the profile begins; shows what it found. → the exit code."""
    with tempfile.TemporaryDirectory(prefix='graft-') as folder:
        found, stem_file = Path(folder, 'scalene.json'), Path(folder, 'stem')
        command = [sys.executable, '-m', 'scalene', 'run', '--cpu-only', '--off', '--outfile', str(found), str(RUN), '---', *arguments]
        # a process group of its own: Ctrl-C reaches the run once, from here
        process = subprocess.Popen(command, env=os.environ | {STEM_FILE: str(stem_file), 'SCALENE_ALLOCATION_SAMPLING_WINDOW': WINDOW}, process_group=0)
        asked: list[int] = []

        def forward(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            process.send_signal(signal.SIGINT)  # scalene takes SIGTERM for itself

        before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if stem_file.exists() and found.exists():
            print('\n'.join(keep(found, Path(stem_file.read_text()))), flush=True)
    return 128 + asked[0] if asked and code else code if code >= 0 else 128 - code


def keep(found: Path, stem: Path) -> list[str]:
    """Moves scalene's file to where the run's profiles are. → lines for the user, which are added to the text beside it."""
    from Benchmarking.Profile import table
    from Benchmarking.Profilers import Dear
    profile = json.loads(found.read_text())
    if not profile:
        return ['profile: scalene, which looks 100 times a second, saw nothing; more profile_updates']
    file = stem.with_name(f'{stem.name}.json')
    shutil.copyfile(found, file)
    elapsed = profile['elapsed_time_sec']
    dear = [Dear(f'{one["line"]} ({Path(path).name}:{one["lineno"]})', share(one) / 100 * elapsed) for path, of in profile['files'].items()
            for one in of['functions']]
    lines = [*table(dear, elapsed, 'function, by its own time'), f'  moved to {file}: scalene view {file}; --cli shows it in the terminal']
    with stem.with_name(f'{stem.name}.txt').open('a') as text:
        text.write('\n'.join(lines) + '\n')
    return lines


def share(function: dict[str, Any]) -> float:
    """Percent of the time: in Python, in native code, in the system."""
    return sum(function[kind] for kind in ('n_cpu_percent_python', 'n_cpu_percent_c', 'n_sys_percent'))
