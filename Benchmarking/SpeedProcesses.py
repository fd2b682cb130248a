"""Our side of what `make bench` measures of several processes: one run of theirs together, or as many runs that share nothing."""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from Benchmarking.SpeedWorks import Bench, Work, counted, rollouts


def processes(count: int, *overrides: str, together: bool = True) -> Callable[[Bench], Work]:
    """Rollouts of `count` processes at once, one torch thread each. One call is a rollout of all of them and what is learned from it.

    Args:
        together: they are one run, as torchrun has it; else runs of their own, which shows what the machine can do."""
    def build(bench: Bench) -> Work:
        context = multiprocessing.get_context('spawn')
        port, pipes, own = free_port(), [], Path(tempfile.mkdtemp(dir=bench.folder))  # another row's work may lie beside it
        for rank in range(count):
            pipe, theirs = context.Pipe()
            shared = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': count, 'LOCAL_WORLD_SIZE': count, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
            folder = own / ('run' if together else str(rank))
            process = context.Process(target=serve, args=(theirs, folder, shared if together else {}, overrides), daemon=True)
            process.start()
            theirs.close()
            bench.after.callback(process.kill)
            pipes.append(pipe)
        steps = [pipe.recv() for pipe in pipes]

        def turn() -> None:
            for pipe in pipes:
                pipe.send(None)
            for pipe in pipes:
                pipe.recv()
        return counted(turn, steps[0] if together else sum(steps))
    return build


def serve(pipe: Any, folder: Path, environment: dict[str, Any], overrides: tuple[str, ...]) -> None:
    """One of those processes: tells the steps of a call, then makes one whenever it is told to."""
    os.environ.update({'OMP_NUM_THREADS': '1'} | {key: str(value) for key, value in environment.items()})
    import torch
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    options: Any = type('Options', (), {'threads': 1, 'env_threads': 1})()
    work = rollouts('env_threads=1', *overrides)(Bench(options, folder))
    pipe.send(work.per_call)  # type: ignore[attr-defined]
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            work()
            pipe.send(None)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return int(found.getsockname()[1])
