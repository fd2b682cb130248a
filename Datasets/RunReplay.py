"""The replay of one run: where it lies, how large it is, and what it begins with."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import Parallel
from Datasets import Stored
from Datasets.Layout import EmptyReplay, read_layout
from Datasets.Replay import Replay
from Datasets.Specs import ActionSpec, ObsSpec
from Datasets.Storage import place
from Datasets.Suites.Names import LABELLED
from Utils import Args, derive_seed

SAVED_AT_LEAST = 25_000  # agent steps: with save_per_steps=0 too, once the replay writes over its oldest rows


class Needs(Protocol):
    """What an agent wants of its replay: columns of its own, sequences of so many transitions."""

    extras: dict[str, Any]

    rollout_steps: int

    @property
    def horizon(self) -> int: ...


class RunReplay:
    """What a run's settings say of its replay.

    Args:
        args: the run's values.
        run: the run's folder.
        task: the task as it stands in the names of run folders.
        device: where replay.store=device puts the rows.

    Attributes:
        path: where the replay lies. source: the one that replay.load=true starts from.

    Raises:
        ValueError: there is none to read, or one that this run must not write over."""

    def __init__(self, args: Args, run: Path, task: str, device: str) -> None:
        root, own = Path(args.root), run / replay_name()
        self.args, self.store = args, device if args.replay.store == 'device' else args.replay.store
        self.lanes = len(Parallel.lanes(args.num_envs))  # of this process
        self.path = Path(args.replay.path) if args.replay.path and not args.replay.load else own
        if Parallel.world_size > 1 and args.replay.path and not (args.offline or args.replay.load):
            self.path = Path(args.replay.path) / replay_name()
        self.source: Path | None = None
        if args.offline and args.suite in LABELLED:
            pass
        elif args.offline:
            if args.generate and not (args.replay.path or Stored.exists(own)):  # whatever was stored of the task
                self.path = next(iter(Stored.others(root, args.suite, task)), own)
            Stored.wait_for(self.path, args.replay.wait, Stored.advice(root, args.suite, task))
        elif args.replay.load and not args.load:
            self.source = Stored.find_source(args.replay.path, own, root, args.suite, task)
        elif Stored.exists(self.path) and not args.load and (args.replay.path or not (run / '.lock').exists()) and Parallel.is_main():
            raise ValueError(f'{self.path} holds a replay: replay.load=true starts from it, another replay.path leaves it alone')

    def sizes(self, state: dict[str, Any] | None, needs: Needs) -> dict[str, Any]:
        """Of the ring: what the run can fill, or as they are where a replay goes on: a longer train_steps does not grow it."""
        args = self.args
        if (state and 'replay' in state) or self.source == self.path:
            ring = state['replay']['layout']['ring'] if state and 'replay' in state else read_layout(self.path)['ring']
            return {'capacity': ring['rows'] * ring['num_envs'], 'slack': ring['slack'], 'window': ring['window']}
        stored = read_layout(self.source)['ring'] if self.source else {'rows': 0, 'num_envs': 0}
        rows = max(capacity(args, stored['rows'] * stored['num_envs']), 2 * needs.rollout_steps * args.num_envs)  # at worst each step ends an episode
        window = max(args.nstep, min(needs.horizon, rows // args.num_envs))
        return {'capacity': rows // args.num_envs * self.lanes, 'slack': slack(args), 'window': window}

    def forget(self, processes: Iterable[Mapping[str, Any]]) -> None:
        """Removes the replays of processes that there were before, as far as they made them: other ones took their places."""
        names = [f'replay-{rank}of{len(list(processes))}' for rank, _ in enumerate(processes)]
        for name, process in zip(names if len(names) > 1 else ['replay'], processes):
            folder = self.path.parent / name
            made = process['replay'].get('created', ())
            for file in made:
                if file != name:
                    (folder / file).unlink(missing_ok=True)
            if name in made:
                with contextlib.suppress(OSError):  # a user's file is in it
                    folder.rmdir()

    def on_disk(self) -> Path | None:
        """The folder of the replay, where there is to be one."""
        return self.path if self.args.save or self.args.replay.save or self.args.replay.load or self.args.replay.path else None

    def check(self, obs_spec: ObsSpec, action_spec: ActionSpec, needs: Needs, state: dict[str, Any] | None) -> None:
        """Refuses a replay that cannot fit, and a stored one that is corrupt or another task's. Raises: ValueError."""
        if state:
            if Stored.exists(self.path) and 'replay' in state:
                with contextlib.suppress(EmptyReplay):
                    reader = self.reader(self.path, obs_spec, action_spec, verify=False)
                    if not anew(reader, state):
                        reader.verify(state['replay'])
                    reader.close()
            return
        needed = Replay.bytes_needed(obs_spec, action_spec, num_envs=self.lanes, **self.sizes(None, needs), extras=needs.extras)
        place(self.store, self.on_disk(), needed, stored_bytes(self.path))
        if self.source:
            self.reader(self.source, obs_spec, action_spec).close()

    def shared(self) -> dict[str, Any]:
        """What every replay of this run is given."""
        args = self.args
        seed = derive_seed(args.seed, 'replay', *([Parallel.rank] if Parallel.rank else []))
        return {'num_envs': self.lanes, 'discount': args.discount, 'reward_clip': args.reward_clip, 'seed': seed}

    def reader(self, path: Path, obs_spec: ObsSpec, action_spec: ActionSpec, verify: bool = True) -> Replay:
        return Replay(obs_spec, action_spec, **self.shared(), capacity=self.args.replay.capacity, path=path, mode='read', verify=verify,
                      sampler=self.args.replay.sampler or 'epoch')

    def open(self, obs_spec: ObsSpec, action_spec: ActionSpec, needs: Needs, state: dict[str, Any] | None, say: Callable[[str], None]) -> Replay:
        """The replay in its folder: new, resumed, begun with what an earlier run stored, or another process's to read. What lies there was
        checked before.

        Args:
            state: of the checkpoint that is resumed.
            say: takes what the user should know."""
        args, path = self.args, self.path
        if args.offline:
            return Stored.open_reader(lambda: self.reader(path, obs_spec, action_spec), path, args.replay.wait)
        if state and 'replay' not in state:
            say('another number of processes than before: their replays fill anew, so this is not an exact resume')
        elif state and not Stored.exists(path):
            say(f'no replay in {path} (after the end it is kept only with replay.save=true): it fills anew, so this is not an exact resume')
        replay = Replay(obs_spec, action_spec, **self.shared(), **self.sizes(state, needs), path=self.on_disk(), extras=needs.extras, store=self.store,
                        sampler=args.replay.sampler or 'uniform', verify=False)
        say(f'replay: {replay.bytes / 1e9:.3g} GB for {replay.capacity} rows, {replay.store}')
        if self.source and self.source != path:
            source = self.reader(self.source, obs_spec, action_spec, verify=False)
            say(f'replay: {Stored.copy(source, replay)} transitions from {self.source}')
            source.close()
        return replay


def anew(replay: Replay, state: dict[str, Any]) -> bool:
    """Whether a resumed run's rows are gone: the folder is new, or is that of a resumed run without them, which was killed before it was saved."""
    return 'replay' not in state or not replay.resumable or (state['complete'] and bool((replay.cursor < np.array(state['replay']['cursor'])).any()))


def replay_name() -> str:
    """Of the folder of this process's replay in that of the run."""
    return 'replay' if Parallel.world_size == 1 else f'replay-{Parallel.rank}of{Parallel.world_size}'


def capacity(args: Args, stored: int = 0) -> int:
    """Rows over all lanes: what was asked for, but no more than the run can fill (a final observation for every tenth step at most) beside what is stored."""
    fillable = stored + args.train_steps + args.train_steps // 10 + 64 * args.num_envs
    return max(min(args.replay.capacity, fillable), args.num_envs * (args.nstep + 1))


def slack(args: Args) -> int:
    """Rows of a lane that two checkpoint intervals write, so that the checkpoint before the newest can be gone back to as well."""
    return 2 * min(args.save_per_steps or SAVED_AT_LEAST, args.train_steps) // args.num_envs + 64 if args.save else 0


def stored_bytes(path: Path) -> int:
    """Bytes on the disk of a replay that lies there already."""
    return sum(file.stat().st_blocks * 512 for file in path.glob('*.bin'))
