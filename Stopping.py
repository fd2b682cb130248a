"""How a run is asked to end, by Ctrl-C, by a scheduler or by itself, and how several processes agree on when."""
from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import Parallel

AGREE = 16  # turns of the loop after which processes ask one another


def asked_every() -> int:
    """Turns of the loop from one at which processes ask one another to the next; one that is alone asks itself at each."""
    return AGREE if Parallel.world_size > 1 else 1


class Stopping:
    """The part of a session that listens.

    Attributes:
        stop_signal: what asked for the end; 0: the run itself, having been profiled."""

    stop_signal: int | None = None
    turns = 0  # of the loop
    agreed = False  # that it ends here

    @property
    def stopping(self) -> bool:
        """Whether this process was asked to stop."""
        return self.stop_signal is not None

    def told_to_stop(self, now: bool = True) -> bool:
        """Whether any process was. All ask at the same turns of the loop: now, or every so many turns."""
        self.turns += 1
        if Parallel.world_size == 1:
            return self.stopping
        if (now or self.turns % AGREE == 0) and Parallel.any_of(self.stopping):
            self.stop_signal = signal.SIGTERM if self.stop_signal is None else self.stop_signal
            self.agreed = True
        return self.agreed

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While SIGINT and SIGTERM end the run at its next turn."""
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Ends the run at the next turn of the loop, saved and plotted; asked twice, at once."""
        if self.stop_signal and Parallel.world_size == 1:  # torchrun hands on what its processes have heard already
            raise KeyboardInterrupt
        first, self.stop_signal = not self.stop_signal, number
        if not (first and Parallel.is_main()):
            return
        # straight to the system: the signal may have come in the middle of a print, which cannot be entered twice
        with contextlib.suppress(OSError):
            rest = '; once more to leave at once' if Parallel.world_size == 1 else ', if the other processes are still there'
            os.write(2, f'\n{signal.Signals(number).name}: saving and plotting{rest}\n'.encode())
