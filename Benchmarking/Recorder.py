"""Remembers metrics until a row is written: their means, and the largest value of each counter."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

COUNTERS = ('time', 'step', 'frame', 'update', 'episode', 'epoch')  # the first columns; a later value replaces, the largest wins
RATES = ('fps', 'fps_train', 'updates_per_second')  # fps: over all time since the last row; the other two leave the time in evaluation out
TIME_COLUMNS = ('time', *RATES)  # what differs between two runs that are otherwise equal to the bit

Value = float | int | Tensor


class Means:
    """Running means of named values. Tensors that arrive together are summed as one vector: two small operations per call, however many there are.

    Args:
        numbers: a state: name to [sum, count].
        tensors: a state: (names, sums (len(names),) float64, count) of each group.
    """

    def __init__(self, numbers: Mapping[str, Sequence[Any]] | None = None, tensors: Sequence[Sequence[Any]] = ()) -> None:
        self._numbers: dict[str, tuple[float, int]] = {name: (total, count) for name, (total, count) in (numbers or {}).items()}
        self._tensors: dict[tuple[str, ...], tuple[Tensor, int]] = {tuple(names): (sums, count) for names, sums, count in tensors}

    def add(self, metrics: Mapping[str, Value]) -> None:
        """Adds one value to the mean of each name; nothing waits for a device.

        Raises:
            ValueError: a tensor is not 0-dim, or a name is a time column.
        """
        names = tuple(name for name, value in metrics.items() if isinstance(value, Tensor))
        if names not in self._tensors or len(names) < len(metrics):
            _check_metrics(metrics)
        for name, value in metrics.items():
            if not isinstance(value, Tensor):
                total, count = self._numbers.get(name, (0.0, 0))
                self._numbers[name] = total + float(value), count + 1
        if names:
            values = _float64(metrics, names)
            sums, count = self._tensors.get(names, (torch.zeros_like(values), 0))
            self._tensors[names] = sums.to(values.device, values.dtype) + values, count + 1

    def mean(self) -> dict[str, float]:
        """The means; waits once per group of tensors."""
        totals = dict(self._numbers)
        for names, (sums, count) in self._tensors.items():
            for name, value in zip(names, sums.tolist(), strict=True):
                total, before = totals.get(name, (0.0, 0))
                totals[name] = total + value, before + count
        return {name: total / count for name, (total, count) in totals.items()}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Takes in what another process recorded."""
        for name, (total, count) in state['numbers'].items():
            mine, before = self._numbers.get(name, (0.0, 0))
            self._numbers[name] = mine + total, before + count
        for names, sums, count in state['tensors']:
            ours, before = self._tensors.get(tuple(names), (torch.zeros_like(sums), 0))
            self._tensors[tuple(names)] = ours + sums.to(ours.device), before + count

    def state_dict(self) -> dict[str, Any]:
        return {
            'numbers': {name: list(pair) for name, pair in self._numbers.items()},
            'tensors': [[list(names), sums.cpu(), count] for names, (sums, count) in self._tensors.items()],
        }


class Recorder:
    """Remembers, and writes nothing: what a process has that leaves the writing to another."""

    def __init__(self) -> None:
        self._means: dict[str, Means] = {}  # phase -> what the next row averages
        self._counters: dict[str, dict[str, int]] = {}  # phase -> counter -> largest value recorded

    def record(self, phase: str, metrics: Mapping[str, Value]) -> None:
        """Adds values to the means of the next row. Tensors stay on their device and are not waited for.

        Args:
            phase: 'train', 'eval' or another; `<phase>.csv`.
            metrics: name to number or 0-dim tensor of any dtype. Names in `COUNTERS` are counters: the largest value counts.

        Raises:
            ValueError: a tensor is not 0-dim, or a name is one of the logger's own time columns.
        """
        counters = self._counters.setdefault(phase, {})
        for name in COUNTERS[1:]:
            if name in metrics:
                counters[name] = max(counters.get(name, 0), int(metrics[name]))
        self._means.setdefault(phase, Means()).add({name: value for name, value in metrics.items() if name not in COUNTERS[1:]})

    def take(self, phase: str) -> dict[str, Any]:
        """What was recorded of a phase since the last row, plain; it is forgotten here."""
        self._counters.pop(phase, None)
        return self._means.pop(phase, Means()).state_dict()

    def merge(self, phase: str, taken: Mapping[str, Any]) -> None:
        """Adds what another process took."""
        self._means.setdefault(phase, Means()).merge(taken)

    def say(self, text: str) -> None:
        """Nothing: one process talks."""

    def tick(self, step: int, frame: int | None = None, update: int | None = None) -> None:
        """Nothing to move."""

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Nothing to time."""
        yield

    def close(self) -> None:
        """Nothing is open."""


def _check_metrics(metrics: Mapping[str, Value]) -> None:
    for name, value in metrics.items():
        if name in TIME_COLUMNS or not name or '\n' in name:
            raise ValueError(
                f'metric name {name!r}: expected a line of text other than {", ".join(TIME_COLUMNS)}, which the logger writes; rename the metric'
            )
        if isinstance(value, Tensor) and value.dim():
            raise ValueError(
                f'metric {name}: a tensor of shape {tuple(value.shape)}, expected a number or a 0-dim tensor; reduce it where it is computed'
            )


def _float64(metrics: Mapping[str, Value], names: Sequence[str]) -> Tensor:
    """The named 0-dim tensors as one new vector (values from compiled graphs are overwritten later), float64 so that long sums stay exact enough."""
    values: list[Any] = [metrics[name] for name in names]
    try:
        vector = torch.stack(values).detach()
    except RuntimeError:  # on several devices, or of several shapes
        _check_metrics(metrics)
        vector = torch.stack([value.detach().to(values[0].device) for value in values])
    return vector.to(torch.float32 if vector.device.type == 'mps' else torch.float64)  # MPS has no float64
