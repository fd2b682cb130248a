"""Writes a run down: one append-only CSV per phase, TensorBoard scalars, and a progress bar or plain lines.

A row holds the counters at the dump and the mean of every metric recorded since the last dump of that phase; what was not recorded is blank, never 0.
Rows are only ever appended. A file is rewritten (whole, to a temporary name, then renamed) in two cases: a metric appears that the header lacks, when
the header grows and earlier rows are blank there; and a resume, when rows newer than the checkpoint are dropped.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from Benchmarking.Recorder import COUNTERS, RATES, TIME_COLUMNS, Means, Recorder, Value
from Benchmarking.Table import SCORES, Table, read_table

__all__ = ['COUNTERS', 'RATES', 'TIME_COLUMNS', 'Logger', 'Means', 'Progress', 'Recorder']

PHASES = ('train', 'eval')

LINE_SECONDS = 10.0  # between two plain lines of training
DRAW_SECONDS = 0.5  # between two drawings of the bar
WINDOW_SECONDS = 30.0  # over which the bar's rates are taken


class Logger(Recorder):
    """Collects metrics, and at each `dump` writes one row, the scalars and the progress.

    Args:
        path: the run's folder; it is created.
        columns: per phase, the metrics whose columns shall stand in the header from the first row on; others are added when they appear.
        tensorboard: write scalars to `<path>/tensorboard`, tag `phase/metric`, x = agent step.
        progress: show a bar (stderr is a terminal) or plain lines (it is not); False shows neither, `say` still prints.
        resume_step: None for a new run; else the agent step of the checkpoint that is resumed: rows and scalars beyond it are dropped.
        total_steps: agent steps of the whole run, for the bar and the time left.
        title: what the bar is called.
        clock: seconds, monotonic.

    Raises:
        FileExistsError: the folder holds rows and `resume_step` is None.
        ImportError: `tensorboard` is not installed.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        columns: Mapping[str, Sequence[str]] | None = None,
        tensorboard: bool = True,
        progress: bool = True,
        resume_step: int | None = None,
        total_steps: int | None = None,
        title: str = '',
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.columns, self.resume_step = Path(path), dict(columns or {}), resume_step
        self.path.mkdir(parents=True, exist_ok=True)
        super().__init__()
        self._clock, self._start, self._evaluation_time = clock, clock(), 0.0
        self._marks: dict[str, tuple[float, float, int, int]] = {}  # phase -> time, evaluation time, frame, update of its last row
        self._rows: dict[str, int] | None = None  # of a loaded state: rows that each file had
        self._tables: dict[str, Table] = {}
        for phase in PHASES:
            self._check_new(phase)
            if (self.path / f'{phase}.csv').exists():
                self._table(phase)
        self._writer = _summary_writer(self.path / 'tensorboard', resume_step) if tensorboard else None
        self._progress = Progress(total_steps, resume_step or 0, title) if progress else None

    @property
    def time(self) -> float:
        """Seconds of the run, those before a resume included."""
        return self._clock() - self._start

    def dump(
        self,
        phase: str,
        *,
        step: int,
        frame: int | None = None,
        update: int | None = None,
        episode: int | None = None,
        epoch: int | None = None,
        metrics: Mapping[str, Value] | None = None,
    ) -> dict[str, float] | None:
        """Writes one row of counters and means, and starts the next. This is where tensors are waited for.

        Args:
            phase: which file.
            step: agent steps so far; the row's key.
            frame: step × action repeat; like the other counters, None leaves the cell blank unless one was recorded.
            update: updates of the agent so far.
            episode: episodes finished so far.
            epoch: passes over a dataset; the column appears with the first.
            metrics: recorded before the row is written.

        Returns:
            What was written, by column; None if the file has a row at this step already: it stays, a line says so.
        """
        self.record(phase, metrics or {})
        means = self._means.pop(phase).mean()
        given = {'step': step, 'frame': frame, 'update': update, 'episode': episode, 'epoch': epoch}
        counters = self._counters.pop(phase) | {name: int(value) for name, value in given.items() if value is not None}
        table = self._table(phase)
        if step <= table.last_step:
            shown = ', '.join(f'{name} {value:.4g}' for name, value in means.items() if name in SCORES)
            self.say(f'{table.path.name} has step {table.last_step} already: step {step} is not written again{f" ({shown})" if shown else ""}')
            return None
        now = self.time
        rates = self._rates(phase, now, counters)
        row = {'time': now} | {name: counters[name] for name in COUNTERS[1:] if name in counters} | rates | means
        table.append({name: _text(name, value) for name, value in row.items()})
        if self._writer is not None:
            for name, value in (rates | means).items():
                self._writer.add_scalar(f'{phase}/{name}', value, step)
        if self._progress is not None:
            self._progress.row(phase, row)
        return row

    def pending(self, phase: str) -> bool:
        """Whether anything was recorded since the last row of this phase."""
        return phase in self._means

    def tick(self, step: int, frame: int | None = None, update: int | None = None) -> None:
        """Moves the bar; cheap enough for every vector step."""
        if self._progress is not None and self._progress.bar is not None:
            self._progress.tick(self._clock(), self._evaluation_time, step, step if frame is None else frame, update or 0)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time spent inside counts for `fps`, not for `fps_train` and `updates_per_second`."""
        start = self._clock()
        try:
            yield
        finally:
            self._evaluation_time += self._clock() - start

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self._progress is not None:
            self._progress.say(text)
        else:
            print(text, flush=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rows to come depend on, as plain numbers and CPU tensors. Rows written so far are on the disk when this returns."""
        for table in self._tables.values():
            table.sync()
        if self._writer is not None:
            self._writer.flush()
        return {
            'time': self.time,
            'evaluation_time': self._evaluation_time,
            'means': {phase: means.state_dict() for phase, means in self._means.items()},
            'counters': {phase: dict(counters) for phase, counters in self._counters.items()},
            'marks': {phase: list(mark) for phase, mark in self._marks.items()},
            'rows': {phase: table.rows for phase, table in self._tables.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken: files are cut back to the rows they had then, the clock and the pending means go on."""
        self._start = self._clock() - state['time']
        self._evaluation_time = state['evaluation_time']
        self._means = {phase: Means(**means) for phase, means in state['means'].items()}
        self._counters = {phase: dict(counters) for phase, counters in state['counters'].items()}
        self._marks = {phase: tuple(mark) for phase, mark in state['marks'].items()}
        self._rows = dict(state['rows'])
        for phase, table in self._tables.items():
            table.trim(rows=self._rows.get(phase, 0))

    def close(self) -> None:
        """Closes files and bar; a second call does nothing."""
        for table in self._tables.values():
            table.close()
        self._tables = {}
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._progress is not None:
            self._progress.close()

    def _check_new(self, phase: str) -> None:
        path = self.path / f'{phase}.csv'
        if self.resume_step is None and read_table(path)[1]:
            raise FileExistsError(
                f'{path} holds the rows of a run: load=true continues it, overwrite=true replaces it, experiment=<name> starts another'
            )

    def _table(self, phase: str) -> Table:
        if phase not in self._tables:
            self._check_new(phase)
            columns = (*COUNTERS[:-1], *RATES, *self.columns.get(phase, ()))
            table = self._tables[phase] = Table(self.path / f'{phase}.csv', columns)
            if self.resume_step is not None:
                table.trim(step=self.resume_step, rows=None if self._rows is None else self._rows.get(phase, 0))
        return self._tables[phase]

    def _rates(self, phase: str, now: float, counters: Mapping[str, int]) -> dict[str, float]:
        """Speeds since the last row of this phase; left out where nothing moved, or where it is not known since when."""
        frame, update = counters.get('frame', counters['step']), counters.get('update', 0)
        known = phase in self._marks or self.resume_step is None
        since, evaluation, old_frame, old_update = self._marks.get(phase, (0.0, 0.0, 0, 0))
        self._marks[phase] = now, self._evaluation_time, frame, update
        seconds = now - since
        training = seconds - (self._evaluation_time - evaluation)
        pairs = ((frame - old_frame, seconds), (frame - old_frame, training), (update - old_update, training))
        return {name: count / span for name, (count, span) in zip(RATES, pairs, strict=True) if known and count > 0 and span > 0}


class Progress:
    """A bar with step, speeds, time left and last scores when stderr is a terminal; plain lines on stdout when it is not.

    Args:
        total_steps: agent steps of the whole run; None shows no end.
        step: agent step at which this process starts.
        title: what stands before the bar.
    """

    def __init__(self, total_steps: int | None, step: int, title: str) -> None:
        self.total_steps, self.title, self.step = total_steps, title, step
        self.scores: dict[str, float] = {}
        self._points: deque[tuple[float, float, int, int, int]] = deque()  # clock, clock without evaluation, step, frame, update
        self._next_draw = self._next_line = -float('inf')
        self._first: tuple[float, int] | None = None
        self.bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

            form = '{desc}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt}{postfix}' if total_steps else '{desc}{n_fmt} steps{postfix}'
            self.bar = tqdm(
                total=total_steps or None,
                initial=step,
                desc=f'{title} ' if title else '',
                bar_format=form,
                unit_scale=True,
                dynamic_ncols=True,
                file=sys.stderr,
            )

    def tick(self, now: float, evaluation_time: float, step: int, frame: int, update: int) -> None:
        """Redraws the bar when its time has come."""
        self.step = step
        if now < self._next_draw:
            return
        self._next_draw = now + DRAW_SECONDS
        self._points.append((now, now - evaluation_time, step, frame, update))
        while len(self._points) > 2 and now - self._points[1][0] > WINDOW_SECONDS:
            self._points.popleft()
        first, parts = self._points[0], []
        training = self._points[-1][1] - first[1]
        if training > 0:
            parts = [f'{_short((frame - first[3]) / training)} fps']
            parts += [f'{_short((update - first[4]) / training)} updates/s'] if update > first[4] else []
        if self.total_steps and step > first[2]:
            parts.append(f'ETA {_duration((self.total_steps - step) * (now - first[0]) / (step - first[2]))}')
        parts += [f'{phase} {score:.4g}' for phase, score in self.scores.items()]
        self.bar.n = step
        self.bar.set_postfix_str(' · '.join(parts))

    def row(self, phase: str, row: Mapping[str, float]) -> None:
        """Takes the score of a row; prints a line for it, unless there is a bar and it is of training, or a line was printed just now."""
        score = next((row[name] for name in SCORES if name in row), None)
        if score is not None:
            self.scores[phase] = score
        left = self._left(row['time'], int(row['step']))
        limited = phase != 'eval'
        if limited and (self.bar is not None or row['time'] < self._next_line):
            return
        if limited:
            self._next_line = row['time'] + LINE_SECONDS
        step = f'step {row["step"]:,}' + (f' of {self.total_steps:,}' if self.total_steps else '')
        parts = [step] + [f'{name} {row[name]:,}' for name in COUNTERS[2:] if name in row]
        parts += [] if score is None else [f'score {score:.4g}']
        parts += [f'{_short(row["fps"])} fps'] if 'fps' in row else []
        parts += [f'{_short(row["updates_per_second"])} updates/s'] if 'updates_per_second' in row else []
        parts += [f'{_duration(left)} left'] if left is not None else []
        self.say(f'{phase:5}  {_duration(row["time"])}  ' + '  '.join(parts))

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text)
            sys.stdout.flush()
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.n = self.step
            self.bar.close()
            self.bar = None

    def _left(self, now: float, step: int) -> float | None:
        """Seconds to the end at the mean speed of this process; None while that is not known."""
        if self._first is None:
            self._first = now, step
        seconds, steps = now - self._first[0], step - self._first[1]
        return (self.total_steps - step) * seconds / steps if self.total_steps and steps > 0 else None


def _summary_writer(path: Path, resume_step: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError('TensorBoard scalars need the package tensorboard: pip install tensorboard, or set tensorboard=false') from error
    purge = None if resume_step is None else resume_step + 1  # events at purge_step and beyond are hidden
    return SummaryWriter(str(path), purge_step=purge, flush_secs=30)


def _text(name: str, value: float) -> str:
    """A cell: counters as integers, seconds to the millisecond, metrics with the nine digits that tell any two float32 apart."""
    if name == 'time':
        return f'{value:.3f}'
    return str(int(value)) if name in COUNTERS else f'{value:.9g}'


def _short(number: float) -> str:
    for bound, unit in ((1e6, 'M'), (1e3, 'k')):
        if abs(number) >= bound:
            return f'{number / bound:.3g}{unit}'
    return f'{number:.3g}'


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(max(seconds, 0.0))))
