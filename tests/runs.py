"""Whole runs in processes of their own that are struck by signals at chosen instants, and what two runs left, compared to the bit.

An instant is "the n-th function call", counted with a profile hook: the same instant on any machine, however busy, and anywhere in the run.
"""
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import torch._dynamo  # optimisers import it at their first step

import Checkpoint
import Run
import Session  # noqa: F401  once here instead of once in every child
from Benchmarking.Folder import run_folder
from Benchmarking.Logger import TIME_COLUMNS
from Benchmarking.Table import read_table
from Datasets.Layout import Ring, read_layout
from Datasets.Suites import Atari  # noqa: F401
from Datasets.Suites.DMC import import_suite
from Hparams.Compose import compose_args
from tests import scripted  # noqa: F401  registers environments
from Utils import Args

ROOT = Path(__file__).parent.parent
SIZES = (
    'hidden_dim=16', 'batch_size=16', 'seed_steps=40', 'explore_steps=40', 'learn_per_steps=4', 'train_steps=400', 'num_envs=1',
    'agent.epsilon="linear(1.0,0.2,200)"')
CADENCES = ('evaluate_per_steps=200', 'evaluate_episodes=2', 'log_per_steps=20', 'save_per_steps=20', 'replay.save=true')
MACHINE = ('threads=1', 'env_threads=1', 'device=cpu', 'logger.progress=false', 'logger.tensorboard=false', 'plotting.plot=false')
SHORT_GAMES = ('+recipes.encoder.eyes.width=0.125', 'environment.max_frames=200', 'evaluate_episodes=1', 'evaluate_per_steps=0', 'learn_per_steps=8')
# 50 agent steps each
SHORT_CONTROL = ('environment.max_frames=120', 'evaluate_episodes=1', 'evaluate_per_steps=0', 'image_size=32', 'environment.render_quality=fast')


@cache
def composed(overrides: tuple[str, ...]) -> str:
    return json.dumps(compose_args(overrides))


def values(root: Path, task: str, *overrides: str) -> dict:
    """A tiny run of DQN, or of the Agent among the overrides. Lines of `overrides` win."""
    given = {line.partition('=')[0].lstrip('+') for line in overrides}
    if 'Agent' in given:
        given.add('agent.epsilon')
    short = SHORT_GAMES if task.startswith('atari') else SHORT_CONTROL if task.startswith('dmc') else ()
    lines = dict(line.split('=', 1) for line in (*SIZES, *CADENCES, *MACHINE, *short))
    kept = [f'{key}={value}' for key, value in lines.items() if key not in given]
    return json.loads(composed((f'task={task}', *kept, *overrides))) | {'root': str(root)}


def folder(run: dict) -> Path:
    path = run_folder(Args(run))
    return path / 'offline' if run['offline'] else path


# --- runs in processes of their own

@dataclass
class Shot:
    """A signal at call number `call` (from 1) of those made inside the function `inside` ('': anywhere), from its entry number `entry` on. What
    stands first in a list of shots falls first; entries and calls of the second count from the first on. inside: Class.method or module.function."""
    call: int
    inside: str = ''
    entry: int = 1
    signal: int = signal.SIGKILL


@dataclass
class Outcome:
    """code: as the system tells it, negative for the signal that ended the process; said: what it printed. Only if it ended by itself: calls: all that
    it made, if they were counted; answer: CPU seconds from the first shot to the end."""
    code: int
    said: str
    calls: int
    answer: float


class Rifle:
    """Counts calls, and fires one shot after the other."""
    def __init__(self, shots: Sequence[Shot]) -> None:
        self.shots, self.all, self.fired_at = list(shots), 0, 0.0
        self.calls = self.entries = self.depth = 0

    def hook(self, frame, event, arg) -> None:
        if event not in ('call', 'c_call'):
            if event == 'return' and self.depth and name_of(frame) == self.shots[0].inside:
                self.depth -= 1
            return
        self.all += 1
        if not self.shots:
            return
        shot = self.shots[0]
        if event == 'call' and name_of(frame) == shot.inside:
            self.depth += 1
            self.entries += 1
        if not shot.inside or (self.depth and self.entries >= shot.entry):
            self.calls += 1
            if self.calls == shot.call:
                self.shots.pop(0)
                self.calls = self.entries = self.depth = 0
                self.fired_at = self.fired_at or time.process_time()
                os.kill(os.getpid(), shot.signal)


def name_of(frame) -> str:
    name = frame.f_code.co_qualname
    return name if '.' in name else f'{frame.f_globals.get("__name__")}.{name}'


def child(run: dict, shots: Sequence[Shot], count: bool, out: str, report: str) -> None:
    file = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method('fork', force=True)  # a user's process does not know of the launcher
    rifle = Rifle(shots)
    if shots or count:
        sys.setprofile(rifle.hook)
    try:
        Run.run(run)
    finally:
        sys.setprofile(None)
        answer = time.process_time() - rifle.fired_at if rifle.fired_at else 0.0
        Path(report).write_text(json.dumps([rifle.all, answer]))


@cache
def launcher() -> Any:
    """A process that has imported everything and done nothing, of which children are forked: they begin at once, and no thread is torn in two."""
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # threads that spin while others work make a busy machine crawl
    os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tests.runs'])
    return context


def start(run: dict, *shots: Shot, count: bool = False) -> Outcome:
    """One run in a process, to its end."""
    with tempfile.TemporaryDirectory() as place:
        out, report = Path(place, 'out'), Path(place, 'report')
        process = launcher().Process(target=child, args=(run, shots, count, str(out), str(report)))
        process.start()
        process.join(120)
        said = out.read_text() if out.exists() else ''
        if process.is_alive():
            process.kill()
            raise AssertionError(f'the run hangs; it said {said}')
        calls, answer = json.loads(report.read_text()) if report.exists() else (0, 0.0)
        code = process.exitcode
        process.close()
        return Outcome(code, said, calls, answer)


def complete(run: dict, count: bool = False) -> Outcome:
    """A run that nothing disturbs."""
    outcome = start(run, count=count)
    assert outcome.code == 0, outcome.said
    return outcome


def resume(run: dict, *shots: Shot) -> Outcome:
    """As a user does: load=true where there is a run, else from the start."""
    return start(run | {'load': (folder(run) / 'config.yaml').exists()}, *shots)


# --- what a run left

def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV without the columns of time; every one is whole."""
    header, lines = read_table(path)
    assert path.read_bytes().count(b'\n') == len(lines) + 1
    return [{name: cell for name, cell in zip(header, line, strict=True) if name not in TIME_COLUMNS} for line in lines]


def steps(run: dict, phase: str) -> list[int]:
    return [int(row['step']) for row in rows(folder(run) / f'{phase}.csv')]


def checkpoint(run: dict) -> dict:
    """All that the newest checkpoint holds, times and file names aside."""
    state = Checkpoint.read(folder(run) / Checkpoint.NEWEST)
    for name in ('time', 'evaluation_time', 'marks'):
        state['logger'].pop(name)
    for process in state['processes']:
        process['replay'].pop('created')
        process['replay'].pop('checksums')  # the rows themselves are compared
    return state


def replay(run: dict) -> list[dict[str, np.ndarray]]:
    """Of each lane, every row that the replay may read, in order of time, straight from the files."""
    path = folder(run) / 'replay'
    layout = read_layout(path)
    ring = Ring(**layout['ring'])
    cursors = np.fromfile(path / 'cursors.bin', np.int64)
    lanes = []
    for lane, cursor in enumerate(cursors):
        at = ring.positions(np.array(lane), np.arange(ring.needed(cursor), cursor + 1))
        columns = {}
        for name, column in layout['columns'].items():
            stored = np.fromfile(path / f'{name}.bin', column['dtype'])
            columns[name] = stored.reshape(ring.num_envs * column['rows'], *column['shape'])[at]
        transition = (columns['meta'] & 2 == 0) & (np.arange(len(at)) < len(at) - 1)  # neither a final observation nor the open row
        for name in ('action', 'reward'):
            columns[name] = columns[name][transition]
        lanes.append(columns | {'cursor': cursor})
    return lanes


def left(run: dict, *without: str) -> dict:
    """Everything to compare two runs by; `without` leaves parts out."""
    parts = {'checkpoint': checkpoint, 'replay': replay} | {phase: lambda run, phase=phase: rows(folder(run) / f'{phase}.csv') for phase in ('train', 'eval')}
    return {name: part(run) for name, part in parts.items() if name not in without}


def differences(a, b, where: str = '') -> list[str]:
    """Where two nests of containers, arrays and numbers differ in a single bit."""
    if type(a) is not type(b):
        return [f'{where}: {type(a).__name__} and {type(b).__name__}']
    if isinstance(a, dict):
        return [f'{where}: keys {sorted(map(str, a.keys() ^ b.keys()))}'] * (a.keys() != b.keys()) + [
            line for key in a.keys() & b.keys() for line in differences(a[key], b[key], f'{where}.{key}')]
    if isinstance(a, list | tuple):
        return [f'{where}: {len(a)} and {len(b)} items'] * (len(a) != len(b)) + [
            line for number, pair in enumerate(zip(a, b, strict=False)) for line in differences(*pair, f'{where}[{number}]')]
    if isinstance(a, torch.Tensor):
        a, b = a.contiguous().numpy(), b.contiguous().numpy()
    if isinstance(a, np.ndarray):
        same = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        return [] if same else [f'{where}: arrays {a.dtype} {a.shape} and {b.dtype} {b.shape}']
    return [] if a == b else [f'{where}: {a} and {b}']


def same(a: dict, b: dict) -> None:
    found = differences(a, b)
    assert not found, '\n'.join(found[:20])


warnings.filterwarnings('ignore', module='gymnasium')
gymnasium.make('CartPole-v1').close()  # what it imports lazily, for the children
import_suite()
