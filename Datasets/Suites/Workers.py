"""Lanes in processes of their own, which write what they show into memory that is shared: for simulators that render slowly.

Each process has a block of lanes. Commands and small answers go through pipes; frames are never pickled.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import RawArray
from typing import Any, Protocol

import numpy as np


class Lanes(Protocol):
    """What a process works on: a block of lanes that show themselves in the array they were given.

    A failure of one carries its number within the block as `lane`. Where a lane can save its state: `get_state() -> list`, `set_state(states)`."""

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> None: ...

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """→ reward (n,) float32, terminated (n,), truncated (n,) bool, and what else its suite knows of."""

    def close(self) -> None: ...


class Workers:
    """`processes` blocks of lanes behind the interface of one.

    Args:
        build: builds a block from its array to show in, (n, *shape), and its number of lanes. Called in the process.
        num_envs: lanes, dealt out in order.
        processes: how many; at most one a lane.
        shape, dtype: of a frame.

    Attributes:
        obs: (N, *shape), where the lanes show themselves.

    Raises:
        what `build` raises, with its message."""

    def __init__(self, build: Callable[[np.ndarray], Lanes], num_envs: int, processes: int, shape: tuple[int, ...], dtype: Any = np.uint8) -> None:
        size = int(np.prod((num_envs, *shape))) * np.dtype(dtype).itemsize
        self.obs = np.frombuffer(RawArray('b', size), dtype).reshape(num_envs, *shape)
        bounds = [num_envs * k // processes for k in range(processes + 1)]
        self.parts = [slice(*pair) for pair in zip(bounds[:-1], bounds[1:], strict=True)]
        context = multiprocessing.get_context('fork')  # the simulator is imported once, here
        self.pipes: list[multiprocessing.connection.Connection] = []
        self.processes = []
        for part in self.parts:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, [*self.pipes, ours], build, self.obs[part]), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        self.waiting = 0  # answers that are due from each
        try:
            self._answers(range(len(self.parts)))
        except BaseException:
            self.close()
            raise

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> None:
        all_seeds = np.zeros(len(mask), np.int64)
        all_seeds[mask] = seeds
        concerned = [k for k, part in enumerate(self.parts) if mask[part].any()]
        for k in concerned:
            part = self.parts[k]
            self._send(k, 'reset', mask[part], all_seeds[part][mask[part]])
        self._answers(concerned)

    def send(self, actions: np.ndarray) -> None:
        for k, part in enumerate(self.parts):
            self._send(k, 'step', actions[part])
        self.waiting = len(self.parts)

    def recv(self) -> tuple[np.ndarray, ...]:
        told = zip(*self._answers(range(len(self.parts))), strict=True)
        self.waiting = 0
        return tuple(np.concatenate(arrays) for arrays in told)

    def get_state(self) -> list[Any]:
        for k in range(len(self.parts)):
            self._send(k, 'get_state')
        return [state for states in self._answers(range(len(self.parts))) for state in states]

    def set_state(self, states: Sequence[Any]) -> None:
        for k, part in enumerate(self.parts):
            self._send(k, 'set_state', list(states[part]))
        self._answers(range(len(self.parts)))

    def _send(self, k: int, *message: Any) -> None:
        try:
            self.pipes[k].send(message)
        except OSError as error:
            raise self._dead(k) from error

    def _answers(self, concerned: Sequence[int]) -> list[Any]:
        """One answer of each process, in order. All are taken before a failure is raised."""
        answers, failure = [], None
        for k in concerned:
            try:
                good, answer = self.pipes[k].recv()
            except (EOFError, OSError):
                failure = failure or self._dead(k)
                continue
            if good:
                answers.append(answer)
            elif failure is None:
                kind, text, lane = answer
                failure = kind(text)
                if lane is not None:
                    failure.lane = self.parts[k].start + lane
        if failure is not None:
            raise failure
        return answers

    def _dead(self, k: int) -> Exception:
        self.processes[k].join(1)
        code = self.processes[k].exitcode
        error = RuntimeError(f'its process ended ({signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"})')
        error.lane = self.parts[k].start  # type: ignore[attr-defined]
        return error

    def close(self) -> None:
        """Ends the processes; one that is still at work is killed."""
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send(('close',))
            pipe.close()
        for process in self.processes:
            process.join(0 if self.waiting else 2)
            if process.is_alive():
                process.kill()
                process.join()
        self.pipes, self.processes = [], []


def serve(pipe: multiprocessing.connection.Connection, others: list[multiprocessing.connection.Connection], build: Callable[[np.ndarray], Lanes],
          obs: np.ndarray) -> None:
    """A process's life: it answers each command with (True, result) or (False, (class, text, lane)), and ends when its parent does."""
    for other in others:
        other.close()  # the parent's ends: as long as somebody holds them, the pipes do not break
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a whole process group: the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lanes: Lanes | None = None
    with contextlib.suppress(EOFError, OSError):
        try:
            lanes = build(obs)
            pipe.send((True, None))
        except Exception as error:
            pipe.send((False, described(error)))
        while lanes is not None:
            command, *arguments = pipe.recv()
            if command == 'close':
                break
            try:
                pipe.send((True, getattr(lanes, command)(*arguments)))
            except Exception as error:
                pipe.send((False, described(error)))
    if lanes is not None:
        lanes.close()
    os._exit(0)  # what the parent registered to run at its own exit is not for this process


def described(error: Exception) -> tuple[type[Exception], str, int | None]:
    """What can be sent of an error, as one that the parent can raise."""
    kind = type(error) if type(error) in (ValueError, RuntimeError, ImportError, OSError, MemoryError) else RuntimeError
    text = str(error) or traceback.format_exception_only(error)[-1].strip()
    return kind, text if kind is type(error) else f'{type(error).__name__}: {text}', getattr(error, 'lane', None)
