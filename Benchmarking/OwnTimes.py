"""How long each operation of a torch profile took by itself.

torch's own `key_averages` makes a Python object of several kilobytes of every event: a rollout of PPO in one lane has a million of them.
Here they are summed as they come."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.autograd import DeviceType


@dataclass
class Operation:
    """All calls of one name, in ns. own: without the operations that it called. whole: with them. device: of the kernels that it started itself.
    A call that only passes on to one of the same name, as torch's overloads do, is one call."""

    own: int = 0
    whole: int = 0
    device: int = 0
    calls: int = 0


def own_times(events: Sequence[Any]) -> dict[str, Operation]:
    """events: those of `torch.profiler`, `_KinetoEvent` in torch, in any order. → operations by name. What runs across threads is left out."""
    operations: dict[str, Operation] = {}
    names: dict[int, str] = {}  # of operations, by the number that their kernels name
    threads: dict[int, list[tuple[int, int, str]]] = {}
    for event in events:
        if event.device_type() != DeviceType.CPU or event.is_async() or event.start_thread_id() != event.end_thread_id() or marks(event.name()):
            continue
        if not event.linked_correlation_id():  # otherwise it is a call of the driver, on behalf of an operation
            names[event.correlation_id()] = event.name()
        threads.setdefault(event.start_thread_id(), []).append((event.start_ns(), event.end_ns(), event.name()))
    for spans in threads.values():
        nested(spans, operations)
    for event in events:
        if event.device_type() != DeviceType.CPU and (name := names.get(event.linked_correlation_id())) is not None:
            operations[name].device += event.duration_ns()
    return operations


def marks(name: str) -> bool:
    """Whether an event only tells that something is, as memory taken, and takes no time of its own."""
    return name.startswith(('[memory]', '[OutOfMemory]', 'profiler::_record_function'))


def nested(spans: Iterable[tuple[int, int, str]], operations: dict[str, Operation]) -> None:
    """Adds the (start, end, name) of one thread: each takes its time from the innermost one that it lies in."""
    under_way: list[tuple[int, Operation]] = []
    for start, end, name in sorted(spans, key=lambda span: (span[0], -span[1])):
        while under_way and under_way[-1][0] < end:
            under_way.pop()
        operation = operations.setdefault(name, Operation())
        caller = under_way[-1][1] if under_way else None
        operation.own += end - start
        if caller is not None:
            caller.own -= end - start
        if caller is not operation:
            operation.whole, operation.calls = operation.whole + end - start, operation.calls + 1
        under_way.append((end, operation))
