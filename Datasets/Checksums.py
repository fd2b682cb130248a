"""Checksums of a replay's folder: which file is not as it was written.

Each column is summed in blocks of rows, a row once, at the first checkpoint after it. A checkpoint carries the sums that belong to it;
`checksums.json` in the folder has the newest ones, for whoever opens the folder without a checkpoint. A block of which a row was written over is
no longer looked at; blocks are small enough beside the slack that every row which can be drawn at a checkpoint lies in one that is.
"""
import itertools
import json
import os
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from Datasets.Layout import Column
from Datasets.Storage import Storage, spans

FILE = 'checksums.json'
LOOKS, PAUSE = 3, 0.4  # at a block that differs: a writer may be at work in it; seconds between


class Part:
    """The sums of one column. Items (rows; values of unrolls where the column keeps one for each) are counted from 0 for ever.

    Attributes:
        start, stop: (N,) int64, items of each lane that are summed.
        intact: (N,) int64, items before that were written over, by rows that a resumed run has forgotten since.
        sums: (N, blocks) int64, that of block k at k % blocks, from `start` on in the first."""

    def __init__(self, storage: Storage, column: Column):
        ring = storage.ring
        self.storage, self.column = storage, column
        self.length, self.offset = (ring.length, ring.pad) if column.every == 1 else (column.rows, 0)
        self.block = max(min(ring.slack // column.every // 2, self.length // 64), self.length // 256, 1)
        self.start, self.stop, self.intact = np.zeros((3, ring.num_envs), np.int64)
        self.sums = np.zeros((ring.num_envs, self.length // self.block + 2), np.int64)

    def count(self, cursor: np.ndarray) -> np.ndarray:
        """(N,) int64, items of each lane that no later row changes, while its open row is `cursor`: `begin` still marks the row before that."""
        if self.column.every == 1:
            return np.maximum(cursor - 1, 0)
        return -(-self._transitions(cursor) // self.column.every)

    def oldest(self, cursor: np.ndarray) -> np.ndarray:
        """(N,) int64, the oldest item of each lane that is certainly still there when `cursor` was published."""
        if self.column.every == 1:
            return np.maximum(self.storage.ring.oldest(cursor), self.intact)
        return np.maximum(self._transitions(cursor) // self.column.every + 1 - self.length, self.intact)

    def _transitions(self, cursor: np.ndarray) -> np.ndarray:
        positions = self.storage.ring.positions(np.arange(len(cursor)), np.maximum(cursor, 0))
        return self.storage.files['time'].numpy()[positions]

    def crc(self, lane: int, first: int, stop: int, value: int = 0) -> int:
        """Of items first … stop - 1, following on `value`."""
        rows = self.storage.lanes(self.storage.files[self.column.name], self.column)[lane]
        for part in spans(first, stop - first, self.length, self.offset):
            value = zlib.crc32(rows[part].numpy().reshape(-1).view(np.uint8).data, value)
        return value

    def extend(self, cursor: np.ndarray) -> None:
        """Takes in every item that has come since the last call."""
        blocks, oldest = self.sums.shape[1], self.oldest(cursor)
        self.start = self._whole(oldest)
        for lane, stop in enumerate(self.count(cursor).tolist()):
            if self.stop[lane] <= oldest[lane]:  # nothing of what was summed is left: the first block begins in its middle
                self.start[lane] = self.stop[lane] = oldest[lane]
            at = int(self.stop[lane])
            while at < stop:
                end, slot = min(at // self.block * self.block + self.block, stop), at // self.block % blocks
                begun = at % self.block and at > self.start[lane]
                self.sums[lane, slot] = self.crc(lane, at, end, int(self.sums[lane, slot]) if begun else 0)
                at = end
            self.stop[lane] = at

    def _whole(self, oldest: np.ndarray) -> np.ndarray:
        """(N,) int64, where the first block of each lane begins of which nothing was written over."""
        return np.where(oldest <= self.start, self.start, np.minimum(-(-oldest // self.block) * self.block, np.maximum(self.stop, oldest)))

    def differing(self) -> Iterator[tuple[int, int, int]]:
        """Lane, first item and end of each block that differs, and of which no row was written over, not even meanwhile."""
        block, blocks, published = self.block, self.sums.shape[1], self.storage.published
        for lane, at in enumerate(self._whole(self.oldest(published)).tolist()):
            while at < self.stop[lane]:
                end = min(at // block * block + block, int(self.stop[lane]))
                if self.crc(lane, at, end) != self.sums[lane, at // block % blocks] and at >= self.oldest(published)[lane]:
                    yield lane, at, end
                at = end

    def twins(self, cursor: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Lane and row of each drawable row that lies twice, and differently."""
        ring, length = self.storage.ring, self.length
        width = ring.pad + ring.window
        oldest = ring.needed(cursor)
        for lane, rows in enumerate(self.storage.lanes(self.storage.files[self.column.name], self.column)):
            here, there = (rows[at:at + width].reshape(width, -1).numpy() for at in (0, length))
            at = (here.view(np.uint8) != there.view(np.uint8)).any(1).nonzero()[0]
            for row in cursor[lane] - 1 - (cursor[lane] - 1 - (at - ring.pad)) % length:
                if row >= oldest[lane]:
                    yield lane, int(row), int(row) + 1

    def state(self) -> dict[str, list]:
        return {'start': self.start.tolist(), 'stop': self.stop.tolist(), 'sums': self.sums.tolist()}

    def load(self, state: dict[str, list]) -> None:
        start, stop, sums = (np.array(state[name], np.int64) for name in ('start', 'stop', 'sums'))
        if (start.shape, stop.shape, sums.shape) != (self.start.shape, self.stop.shape, self.sums.shape):
            raise ValueError('other sizes')
        self.start, self.stop, self.sums = start, stop, sums


class Checksums:
    """Of all columns that only `add` changes; the others travel in the checkpoint.

    Args:
        storage: one with a folder.

    Attributes:
        cursor: (N,) int64, that of the last `extend`, -1 before."""

    def __init__(self, storage: Storage):
        assert storage.path is not None
        self.storage, self.file = storage, storage.path / FILE
        self.parts = {name: Part(storage, column) for name, column in storage.columns.items() if not column.mutable}
        self.cursor = np.full(storage.ring.num_envs, -1, np.int64)
        self.tails: dict[str, list[int]] = {}

    def extend(self, cursor: np.ndarray) -> None:
        """Sums what was written since the last call, and leaves the sums in the folder."""
        for part in self.parts.values():
            part.extend(cursor)
        self.cursor = cursor.copy()
        self.tails = self._tails(cursor)
        self.write()

    def _tails(self, cursor: np.ndarray) -> dict[str, list[int]]:
        """Of the last closed row in every column, and of the open row's frame: what the blocks leave out."""
        rows = {name: (cursor - 1, cursor + (name == 'obs')) for name, part in self.parts.items() if part.column.every == 1}
        return {name: [self.parts[name].crc(lane, max(int(first[lane]), 0), int(stop[lane])) for lane in range(len(cursor))]
                for name, (first, stop) in rows.items()}

    def rewind(self, state: dict[str, Any]) -> None:
        """Goes back to the sums of a checkpoint, before its rows are written again. Raises: OSError: the disk is full."""
        self.load(state)
        for part in self.parts.values():
            part.intact = part.oldest(self.storage.published)
        self.write()

    def write(self) -> None:
        """Raises: OSError: the disk is full."""
        if not self.file.exists():
            self.storage.created.append(self.file)
        body = json.dumps(self.state() | {'intact': {name: part.intact.tolist() for name, part in self.parts.items()}})
        temporary = self.file.with_suffix('.tmp')
        temporary.write_text(f'{zlib.crc32(body.encode())}\n{body}\n')
        os.replace(temporary, self.file)

    def read(self) -> bool:
        """Takes over the sums of the folder; -> whether there are any. Raises: ValueError: they are corrupt."""
        try:
            found = self._found()
            self._take(found)
            for name, part in self.parts.items():
                part.intact = np.array(found['intact'][name], np.int64)
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{self.file} is corrupt ({type(error).__name__}: {error}): restore it, or choose another replay.path') from None
        return True

    def _found(self) -> dict[str, Any]:
        sum_of_it, body = self.file.read_text().splitlines()
        if int(sum_of_it) != zlib.crc32(body.encode()):
            raise ValueError('its own checksum differs')
        return json.loads(body)

    def state(self) -> dict[str, Any]:
        return {'cursor': self.cursor.tolist(), 'tails': self.tails, 'columns': {name: part.state() for name, part in self.parts.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Takes the sums of a checkpoint; what was written over since is known to the folder alone."""
        try:
            self.read()
        except ValueError:  # not known, then: what the checkpoint needs is certainly there
            needed = self.storage.ring.needed(np.array(state['cursor'], np.int64))
            for part in self.parts.values():
                part.intact = needed if part.column.every == 1 else part.count(np.array(state['cursor'], np.int64))
        self._take(state)

    def _take(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load(state['columns'][name])
        self.cursor, self.tails = np.array(state['cursor'], np.int64), state['tails']

    def verify(self, cursor: np.ndarray, advice: str) -> None:
        """The rows up to `cursor`, as far as they were summed and not written over since.

        Args:
            cursor: the open rows of a checkpoint, or those that the folder's writer has published.
            advice: what to do about it.

        Raises:
            ValueError: names the file and the rows that differ."""
        for name, part in self.parts.items():
            for lane, first, stop in itertools.chain(part.differing(), (part.twins(cursor) if part.column.twice else ())):
                raise ValueError(self._complaint(name, lane, first, stop, advice))
        if np.array_equal(cursor, self.cursor) and (cursor >= 0).all():
            for name, sums in self._tails(cursor).items():
                for lane in np.flatnonzero(np.array(sums) != self.tails[name]):
                    raise ValueError(self._complaint(name, int(lane), max(int(cursor[lane]) - 1, 0), int(cursor[lane]) + 1, advice))

    def _complaint(self, name: str, lane: int, first: int, stop: int, advice: str) -> str:
        assert self.storage.path is not None
        return (f'{self.storage.path / name}.bin is corrupt: rows {first} to {stop - 1} of lane {lane} are not those that were written '
                f'(their checksum differs); {advice}')

    def verify_cursors(self, published: np.ndarray, advice: str) -> None:
        """Whether the rows before the published cursors are some that a writer leaves: none unborn, and transitions counted one by one.

        Raises:
            ValueError: names cursors.bin."""
        ring, files = self.storage.ring, self.storage.files
        for lane, cursor in enumerate(published.tolist()):
            sound = cursor >= max(int(self.cursor[lane]), -1)
            if sound and cursor >= 0:
                rows = np.arange(max(int(self.cursor[lane]), cursor - ring.rows // 2, 0), cursor + 1)
                at = ring.positions(np.array(lane), rows)
                steps = np.diff(files['time'].numpy()[at])
                sound = bool((files['meta'].numpy()[at] != 0).all() and ((steps == 0) | (steps == 1)).all())
            if not sound:
                raise ValueError(f'{self.storage.path}/cursors.bin is corrupt: it says that lane {lane} holds rows up to {cursor}, which it does '
                                 f'not; {advice}')

    def verify_folder(self, advice: str) -> None:
        """What the folder holds by its own sums. Its writer may be at work meanwhile. Raises: ValueError: names the file."""
        for look in range(LOOKS):
            try:
                self.read()
                published = np.asarray(self.storage.published).copy()
                self.verify_cursors(published, advice)
                return self.verify(published, advice)
            except ValueError:
                if look == LOOKS - 1:
                    raise
            time.sleep(PAUSE)
