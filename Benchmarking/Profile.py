"""Where a run's time goes: `profile=torch|line|scalene`.

Some updates warm up, the next `profile_updates` are profiled, then the run stops as an interrupted one does: saved, to go on with load=true. It leaves a
trace in `<run>/profile/`, and says how the wall time of its turns was shared out and which functions took most. What is measured is wrapped on the
run's own objects: without `profile=` the loop is what it was.
"""
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import Parallel
from Benchmarking.Profilers import Dear, profiler

if TYPE_CHECKING:
    from Session import Session

PARTS = ('act', 'env', 'replay', 'learn', 'other')
# profiled by default: optimiser steps, of which a call of an agent's `learn` can have hundreds. Torch keeps 4 kB of every operation: a gigabyte in 250,000
UPDATES = 100
WARM_UP = 10  # updates at most: optimisers make their state, memory is taken, code is compiled
DEAREST = 10  # functions that are told


class Stopwatch:
    """Shares wall time out among parts: a call's own time, without what it calls on another part's account. Only what runs inside a turn counts.

    Args:
        synchronise: waits for an accelerator, so that its work counts where it was asked for.
        within: a context for every measured call, by the part's name.

    Attributes:
        seconds: of each part since `start`."""

    def __init__(self, synchronise: Callable[[], Any] = lambda: None, within: Callable[[str], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
                 clock: Callable[[], float] = time.perf_counter) -> None:
        self.synchronise, self.within, self.clock = synchronise, within, clock
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.parts: list[str] = []  # of the calls under way, the innermost last
        self.last: float | None = None  # None: not started

    def measure(self, owner: Any, name: str, part: str, turn: bool = False) -> None:
        """Puts a measured call in place of the owner's. turn: opens a turn where none is open."""
        call = getattr(owner, name)

        def measured(*args: Any, **options: Any) -> Any:
            if not (self.parts or turn) or self.parts[-1:] == [part]:
                return call(*args, **options)
            self.mark()
            self.parts.append(part)
            try:
                with self.within(part):
                    return call(*args, **options)
            finally:
                self.mark()
                self.parts.pop()

        setattr(owner, name, measured)

    def mark(self) -> None:
        """Books the time since the last mark."""
        if self.last is not None:
            self.synchronise()
            now = self.clock()
            if self.parts:
                self.seconds[self.parts[-1]] += now - self.last
            self.last = now

    def start(self) -> None:
        self.synchronise()
        self.last = self.clock()

    def stop(self) -> None:
        self.mark()
        self.last = None


class Profile:
    """Profiles a run that is built, from the outside.

    Args:
        session: the run. Its turns, its agent's `act` and `improve`, environment and replay are measured from here on."""

    def __init__(self, session: Session) -> None:
        args, agent, device = session.args, session.agent, session.device
        self.session, self.name = session, str(args.profile)
        self.updates = args.profile_updates or max(1, UPDATES // agent.steps_per_learn)
        self.warm_up = min(WARM_UP, max(1, self.updates // 10))
        self.profiler = profiler(self.name, session)
        self.watch = Stopwatch((lambda: torch.cuda.synchronize(device)) if device.type == 'cuda' else lambda: None, self.profiler.within)
        self.calls = self.first_step = self.steps = 0
        self.running = False
        measured: list[tuple[Any, str, tuple[str, ...]]] = [
            (agent, 'act', ('act',)), (agent, 'learn', ('improve',)), (session.environment, 'env', ('observe', 'send', 'receive')),
            (session.replay, 'replay', ('add', 'sample', 'draw', 'gather', 'latest', 'take', 'write'))]
        for owner, part, names in measured:
            for name in names:
                if hasattr(owner, name):
                    self.watch.measure(owner, name, part)
        for name in ('advance', 'learn', 'records'):
            self.watch.measure(session, name, 'other', turn=True)
        improve, evaluate = agent.improve, session.evaluate

        def counted(replay: Any) -> Any:
            metrics = improve(replay)
            self.count()
            return metrics

        def unprofiled() -> None:
            if self.running:
                self.profiler.pause()
            evaluate()
            if self.running:
                self.profiler.resume()

        setattr(agent, 'improve', counted)  # noqa: B010  mypy would not have a method assigned
        setattr(session, 'evaluate', unprofiled)  # noqa: B010

    def count(self) -> None:
        """After each call of the agent's `improve`."""
        self.calls += 1
        if self.calls == self.warm_up:
            self.first_step, self.running = self.session.step, True
            self.profiler.start()
            self.watch.start()
        elif self.calls == self.warm_up + self.updates:
            self.end()
            self.session.stop_signal = self.session.stop_signal or 0

    def end(self) -> None:
        """The last profiled turn is over, or the run is."""
        if self.running:
            self.watch.stop()
            self.profiler.stop()
            self.steps, self.running = self.session.step - self.first_step, False

    def write(self) -> None:
        """Leaves the trace, and tells. A full disk costs the trace, not the run."""
        say, done = self.session.logger.say, min(self.calls - self.warm_up, self.updates)
        if done < 1:
            say(f'no profile: the run ended after {self.calls} updates, and {self.warm_up} are for warming up; more train_steps, or fewer profile_updates')
            return
        try:
            stem = trace_stem(self.session.path, self.name, Parallel.rank if Parallel.world_size > 1 else None)
            dear = self.profiler.write(stem)
            fewer = [f'  {self.updates} were asked for: the run ended before'] if done < self.updates else []
            whole = sum(self.watch.seconds.values())
            text = '\n'.join([told(self.watch.seconds, done, self.steps, self.warm_up), *fewer, *table(dear, whole, self.profiler.kind),
                              f'  {self.profiler.advice}'])
            stem.with_name(f'{stem.name}.txt').write_text(text + '\n' + self.profiler.text())
        except OSError as error:
            say(f'profile not written: {error}')
        else:
            say(text)

    def close(self) -> None:
        """Of a run that failed: the profiler is the process's, not the run's."""
        self.end()


def trace_stem(run: Path, name: str, rank: int | None = None) -> Path:
    """The first files of a profiler are `<run>/profile/<name>-1.…`, the next `-2`; those of one of several processes end in its rank."""
    folder, end = run / 'profile', '' if rank is None else f'-rank{rank}'
    folder.mkdir(parents=True, exist_ok=True)
    taken = {file.name.partition('.')[0] for file in folder.iterdir()}
    number = next(n for n in range(1, len(taken) + 2) if f'{name}-{n}{end}' not in taken)
    return folder / f'{name}-{number}{end}'


def told(seconds: dict[str, float], updates: int, steps: int, warm_up: int) -> str:
    """How time was shared out. Parts that did not occur, as acting where nothing is played, are left out."""
    wall = sum(seconds.values())
    split = '   '.join(f'{part} {100 * spent / wall:.1f} %' for part, spent in seconds.items() if spent)
    return f'profile: {updates} updates and {steps} steps in {wall:.2f} s, after {warm_up} updates to warm up\n  {split}'


def table(dear: Sequence[Dear], wall: float, kind: str) -> list[str]:
    """The dearest functions, dearest first. wall: seconds, all that was measured. kind: what the functions are."""
    rows = sorted(dear, key=lambda one: -one.seconds)[:DEAREST]
    lines = [f'  {one.seconds:9.3f} s  {100 * one.seconds / wall:5.1f} %  {one.calls or "":>8}  {one.name}' for one in rows]
    return [f'    seconds      share     calls  {kind}', *lines] if rows else []
