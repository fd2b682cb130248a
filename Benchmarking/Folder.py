"""A run's folder: its name, who may write in it, and what it holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import weakref
import zlib
from pathlib import Path
from typing import IO, Any

import yaml

import Checkpoint
from Benchmarking.Table import read_table
from Datasets.Suites.Names import LABELLED
from Hparams.Check import PASSES, flatten
from Utils import Args

# what a run makes in its folder; overwrite=true removes these and nothing else
ARTEFACTS = (
    'config.yaml',
    '.config.yaml',
    'train.csv',
    'eval.csv',
    'test.csv',
    *(Checkpoint.NEWEST, Checkpoint.PREVIOUS, Checkpoint.TEMPORARY, Checkpoint.RETIRING, Checkpoint.CORRUPT),
    'nonfinite.pt',
    'nonfinite-*.pt',
    'tensorboard/events.out.tfevents.*',
    'videos/*.mp4',
    'images/*.png',
    'report/*.png',
    'report/*.csv',
    *(f'{replay}/{file}' for replay in ('replay', 'replay-*of*') for file in ('layout.json', 'checksums.json', '*.bin', '*.tmp', 'writer.lock')),
)
LEFTOVERS = ('.*.csv.*.tmp', 'videos/.*.mp4.*.tmp')  # of files that a killed process was writing


def run_folder(args: Args, overrides: str = '') -> Path:
    """<root>/<experiment>/<Agent>/<suite>/<task>_<seed>; in a multirun with the other overrides behind."""
    agent = '+'.join([args.agent_name.removeprefix('Agents.'), *args.plugs])
    leaf = f'{safe(args.task_name)}_{args.seed}' + (f'__{distinct(overrides)}' if overrides else '')
    return Path(args.root) / safe(args.experiment) / safe(agent) / args.suite / leaf


def own_folder(args: Args, run: Path) -> Path:
    """Where this process writes: an offline learner beside the run that fills its replay, anything else in the run's folder."""
    return run / 'offline' if args.offline and not (args.generate or args.suite in LABELLED) else run


def safe(name: str) -> str:
    """A file name: what a shell or a file system would stumble over becomes `-`."""
    return re.sub(r'[^A-Za-z0-9._+=,()-]+', '-', name)


def distinct(name: str) -> str:
    """A file name that no other name has: a checksum stands behind one that had to be changed or cut."""
    short = safe(name)[:140]
    return short if short == name else f'{short}-{zlib.crc32(name.encode()):08x}'


def holds_run(path: Path) -> bool:
    """Whether a run was begun there: its config is written last of all that a start makes, its rows come after."""
    return any((path / name).exists() for name in ('config.yaml', 'train.csv', 'eval.csv'))


def evaluated_steps(path: Path) -> set[str]:
    with contextlib.suppress(OSError, ValueError):
        header, rows = read_table(path / 'eval.csv')
        return {row[header.index('step')] for row in rows}
    return set()


class Folder:
    """A run's folder. It is looked at now, and changed once `claim` is called: what a user got wrong in between leaves no trace.

    Args:
        path: of the run. An offline learner takes `<run>/offline`, so that it may share the run with a collector.
        keep_replay: overwriting spares the replay.

    Attributes:
        resumed: the run that is there goes on.
        replaces: the run that is there, or what is left of a start that was killed, makes room.

    Raises:
        ValueError: it holds a run and neither load nor overwrite was asked for, or another process is at work in it."""

    def __init__(self, path: Path, *, load: bool, overwrite: bool, keep_replay: bool = False) -> None:
        self.path, self.keep_replay = path, keep_replay
        self.lock: IO[str] | None = None
        self.made: list[Path] = []
        held = holds_run(path)
        if held and not (load or overwrite):
            raise ValueError(f'{path} holds a run: load=true resumes it, overwrite=true replaces it, experiment=NAME starts another')
        if load and not held:
            raise ValueError(f'load=true: no run in {path}; leave load=true out to start it, or choose its experiment, Agent, task and seed')
        foreign = [] if held or (path / '.lock').exists() else [file for file in self.artefacts() if not file.parent.name.startswith('replay')]
        if foreign:
            raise ValueError(f'{foreign[0]} is there, and no run made it: move it away, or choose another experiment or seed')
        self.resumed, self.replaces = held and load, not load and (held or (path / '.lock').exists())
        if (path / '.lock').exists():
            self.take_lock()

    def claim(self) -> None:
        """Makes the folder, or makes room in it, for this process alone. Raises: ValueError: another process is at work in it."""
        self.made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self.take_lock()
        for pattern in LEFTOVERS:
            for file in self.path.glob(pattern):
                file.unlink()
        if self.replaces:
            self.clear()

    def take_lock(self) -> None:
        if self.lock is None:
            self.lock = open(self.path / '.lock', 'a+')  # noqa: SIM115  held for the life of the process
            _locks.add(self.lock)
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.close()
                raise ValueError(f'{self.path} is in use by another process: wait for it, or choose another experiment or seed') from None

    def artefacts(self) -> list[Path]:
        """What a run makes, as far as it is there. A video is one of an evaluation: <step>.mp4."""
        evaluated = evaluated_steps(self.path)
        files = [file for pattern in ARTEFACTS if not (self.keep_replay and pattern.startswith('replay')) for file in self.path.glob(pattern)]
        return [file for file in files if file.suffix != '.mp4' or file.stem in evaluated]

    def clear(self) -> None:
        """Removes what a run made here; anything else stays."""
        for file in self.artefacts():
            file.unlink()
        for folder in (*(self.path / name for name in ('tensorboard', 'videos', 'replay')), *self.path.glob('replay-*of*')):
            with contextlib.suppress(OSError):  # a user's file is in it, or it is not there
                folder.rmdir()

    def abandon(self) -> None:
        """After a start that failed: no trace of it in a folder that held no run before."""
        if self.lock is not None and not holds_run(self.path) and (self.made or self.replaces):
            self.clear()
            (self.path / '.lock').unlink(missing_ok=True)
        self.close()
        for folder in self.made:
            with contextlib.suppress(OSError):  # another run has come into it
                folder.rmdir()

    def write_config(self, args: Args) -> None:
        text = yaml.safe_dump(to_plain(args) | {'load': False, 'overwrite': False}, sort_keys=False)
        temporary = self.path / '.config.yaml'
        temporary.write_text(text)
        os.replace(temporary, self.path / 'config.yaml')

    def changed(self, args: Args) -> list[str]:
        """Settings that differ from those the run was started with: `lr: 0.0001 → 0.001`."""
        try:
            before = flatten(yaml.safe_load((self.path / 'config.yaml').read_text()) or {})
        except (yaml.YAMLError, AttributeError, ValueError, OSError):
            return [f'{self.path / "config.yaml"} cannot be read: the settings of the run that was begun are not known']
        now = flatten(to_plain(args))
        ignored = ['load', 'overwrite', 'train_steps', 'debug', 'logger', 'plotting', 'threads', 'env_threads', 'log_video', 'video']
        ignored += ['profile', 'profile_updates', *(steps for passes, steps in PASSES.items() if args.get(passes) is not None)]  # which follow from them
        return [
            f'{key}: {before.get(key)} → {now.get(key)}'
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and key.split('.')[0] not in ignored
        ]

    def close(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None


class Guest(Folder):
    """The folder of a run for the other processes of it: they write nothing there but their replays.

    Args:
        resumed: as the first process found."""

    def __init__(self, path: Path, resumed: bool) -> None:
        self.path, self.resumed, self.lock = path, resumed, None

    def claim(self) -> None:
        """The first process has."""

    def abandon(self) -> None:
        """The first process does."""

    def write_config(self, args: Args) -> None:
        """The first process does."""


_locks: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def release_in_child() -> None:
    """A lane's process must not hold the folder when the run that forked it has been killed."""
    for lock in list(_locks):
        lock.close()


os.register_at_fork(after_in_child=release_in_child)


def to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, (list, tuple)) else value
