"""What every test gets, and runs in this process: tiny ones, in a folder of their own."""
import json
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import Checkpoint
import Run
import Session as session_module
from Benchmarking.Folder import own_folder, run_folder
from Benchmarking.Table import read_table
from Hparams.Compose import compose_args
from Session import Session
from Utils import Args

ROOT = Path(__file__).parents[1]
TINY = ('task=gym/CartPole-v1', 'num_envs=1', 'train_steps=60', 'seed_steps=20', 'explore_steps=20', 'learn_per_steps=4', 'evaluate_per_steps=20',
        'evaluate_episodes=2', 'log_per_steps=20', 'batch_size=8', 'hidden_dim=16', 'threads=1', 'env_threads=1', 'device=cpu',
        'precision=fp32', 'logger.progress=false', 'logger.tensorboard=false', 'plotting.plot=false')
ATARI = ('task=atari/pong', '+recipes.encoder.eyes.width=0.125', 'environment.max_frames=80', 'environment.noop_max=0', 'evaluate_episodes=1')


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Threads on tensors this small only wait for one another; on busy cores that costs a factor of ten. A run sets its own number."""
    torch.set_num_threads(1)


@cache
def composed(overrides: tuple[str, ...]) -> str:
    return json.dumps(compose_args(overrides))


def lines(*overrides: str) -> list[str]:
    """Those of a tiny run; what `overrides` says of a key wins."""
    given = {override.lstrip('+~').partition('=')[0] for override in overrides}
    if given & {'Eyes', 'recipes.encoder.eyes', 'recipes.encoder.eyes._target_'}:
        given.add('recipes.encoder.eyes.width')
    base = (*TINY, *(ATARI if any(override.startswith('task=atari') for override in overrides) else ()))
    kept = {line.lstrip('+').partition('=')[0]: line for line in base}
    return [line for key, line in kept.items() if key not in given] + list(overrides)


@dataclass
class Runs:
    """Runs in this process, below a folder in which they also stand.

    home: that folder; experiments go to `home/Benchmarking`."""
    home: Path
    capsys: Any
    monkeypatch: Any
    open: list[Session] = field(default_factory=list)

    def values(self, *overrides: str) -> dict[str, Any]:
        return json.loads(composed(tuple(lines(*overrides))))

    def run(self, *overrides: str) -> 'Left':
        """A tiny run from start to end."""
        return Left(self.left(*overrides).path, Run.run(self.values(*overrides)))

    def session(self, *overrides: str) -> Session:
        """A run that has not begun to step; closed after the test."""
        self.open.append(Session(self.values(*overrides)))
        return self.open[-1]

    def left(self, *overrides: str) -> 'Left':
        """What a run with this command line left, without running it."""
        values = self.values(*overrides)
        return Left(own_folder(Args(values), run_folder(Args(values))))

    def main(self, *argv: str) -> 'Said':
        """The command line as it is, in this process."""
        self.capsys.readouterr()
        self.monkeypatch.setattr(sys, 'argv', [str(ROOT / 'Run.py'), *argv])
        GlobalHydra.instance().clear()
        try:
            Run.main()
            code: Any = 0
        except SystemExit as ended:
            code = ended.code
        return Said(code or 0, *self.capsys.readouterr())

    def process(self, *argv: str, timeout: float = 60) -> 'Said':
        """The command line in a process of its own."""
        done = subprocess.run([sys.executable, str(ROOT / 'Run.py'), *argv], cwd=self.home, capture_output=True, text=True, timeout=timeout)
        return Said(done.returncode, done.stdout, done.stderr)

    def files(self) -> list[str]:
        """Every file and folder there is."""
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob('*'))


@dataclass
class Said:
    code: int
    out: str
    err: str


def assert_one_line(said, *parts):
    assert said.code == 1, (said.code, said.err)
    assert said.err.count('\n') == 1 and 'Traceback' not in said.err, said.err
    assert said.err.endswith('(debug=true shows the traceback)\n')
    for part in parts:
        assert part in said.err, f'{part!r} is not in {said.err!r}'


@dataclass
class Left:
    """What a run left in its folder."""
    path: Path
    score: float | None = None

    def rows(self, phase: str) -> list[dict[str, str]]:
        header, rows = read_table(self.path / f'{phase}.csv')
        return [dict(zip(header, row, strict=True)) for row in rows]

    def steps(self, phase: str) -> list[int]:
        return [int(row['step']) for row in self.rows(phase)]

    def state(self) -> dict[str, Any]:
        return Checkpoint.read(self.path / Checkpoint.NEWEST)

    def weights(self) -> dict[str, torch.Tensor]:
        return self.state()['agent']['weights']

    def updates(self) -> int:
        return self.state()['agent']['update_count']


@pytest.fixture
def graft(tmp_path, monkeypatch, capsys):
    """Tiny runs in an empty folder; what they set for the process is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    modules, handlers = set(sys.modules), {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    runs = Runs(tmp_path, capsys, monkeypatch)
    yield runs
    for session in runs.open:
        session.close()
    torch.use_deterministic_algorithms(False)
    assert {number: signal.getsignal(number) for number in handlers} == handlers, 'a run took the signals and did not give them back'
    for name in set(sys.modules) - modules:  # a test's own packages
        if str(tmp_path) in str(getattr(sys.modules[name], '__file__', None)):
            del sys.modules[name]


def equal(a, b):
    """Asserts that two agents' weights are the same to the bit."""
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def timeless(rows):
    """Rows of a table without what a clock had a part in."""
    return [{name: cell for name, cell in row.items() if name not in ('time', 'fps', 'fps_train', 'updates_per_second')} for row in rows]


@pytest.fixture
def no_env(monkeypatch):
    """Building an environment fails the test."""
    def made(*args, **options):
        raise AssertionError('an environment was built')

    monkeypatch.setattr(session_module, 'make', made)
