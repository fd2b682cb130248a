"""Where the replay's rows lie: the geometry of the ring, and columns allocated in a file-backed map, in RAM or on an accelerator.

A folder holds `layout.json`, one `<column>.bin` per column, `cursors.bin` (the published write positions) and `writer.lock`. The map of a store
that is not file-backed is only written by `push`; it then holds the same bytes as a file-backed store would.
"""
import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from Datasets.Layout import Column, EmptyReplay, Ring, compare, read_layout

CHECK_BYTES = 2 ** 26  # written between two looks at the free disk space; a full disk under a map would kill the process without a word


def spans(start: int, count: int, length: int, offset: int = 0) -> Iterator[slice]:
    """The one or two slices that items start … start + count - 1 of a ring of `length`, beginning at `offset`, occupy."""
    at, count = start % length, min(count, length)
    yield slice(at + offset, min(at + count, length) + offset)
    if at + count > length:
        yield slice(offset, at + count - length + offset)


def free_bytes(where: Any) -> float:
    """Bytes free on the disk of a path, in RAM ('ram', within the cgroup's limit) or on a torch device (infinite if it does not say)."""
    if isinstance(where, Path):
        while not where.exists():
            where = where.parent
        return shutil.disk_usage(where).free
    if where == 'ram':
        free = psutil.virtual_memory().available
        try:
            group = Path('/sys/fs/cgroup')
            free = min(free, int((group / 'memory.max').read_text()) - int((group / 'memory.current').read_text()))
        except (OSError, ValueError):  # no cgroup, or no limit
            pass
        return free
    return torch.cuda.mem_get_info(where)[0] if where.type == 'cuda' else math.inf


def place(store: Any, path: Path | None, needed: int, present: int) -> tuple[Any, Path | None]:
    """-> 'map', 'ram' or a torch.device, and the folder, if there is to be one; refuses what cannot fit before anything is allocated.

    Args:
        store: 'auto', 'map', 'ram' or a torch device.
        path: folder of the map, or None.
        needed: bytes of all columns.
        present: bytes of them that lie on the disk already.

    Raises:
        ValueError: an unknown store, 'map' without a path, or too little room.
    """
    if store == 'auto':
        store, path = ('map', path) if path and needed - present <= free_bytes(path) else ('ram', None)
    if store == 'map' and path is None:
        raise ValueError('replay.store=map needs a folder: give replay.path, or replay.store=ram')
    if store not in ('map', 'ram'):
        try:
            store = torch.device(store)
        except (RuntimeError, TypeError):
            raise ValueError(f'replay.store={store}: expected auto, map, ram or a torch device such as cuda:0') from None
        if store.type == 'cuda' and not torch.cuda.is_available():
            raise ValueError(f'replay.store={store}: this machine has no CUDA device; expected auto, map or ram')
        store = 'ram' if store.type == 'cpu' else store
    rooms = [] if path is None else [(path, needed - present, f'on the disk of {path}', 'ram')]
    rooms += [] if store == 'map' else [(store, needed, 'in memory' if store == 'ram' else f'on {store}', 'map')]
    for where, missing, name, other in rooms:
        free = free_bytes(where)
        if missing > free:
            elsewhere = 'ram' if other == 'ram' else path
            fits = store != other and elsewhere is not None and needed <= free_bytes(elsewhere)
            raise ValueError(f'the replay needs {missing / 1e9:.2f} GB {name}, where {free / 1e9:.2f} GB are free: '
                             'lower replay.capacity' + (f', or set replay.store={other}' if fits else ''))
    return store, path


class Storage:
    """Allocated columns of one replay.

    `data[name]`: tensor (num_envs * rows, *shape) that is read and written; `files[name]`: its file-backed map (the same tensor for store='map').

    Args:
        columns: what to allocate.
        ring: their geometry.
        layout: plain description, written to layout.json and compared with the one found.
        path: folder of the map, or None.
        store: 'auto', 'map', 'ram' or a torch device.
        mode: 'write' (creates or continues the folder; one process at a time) or 'read'.

    Raises:
        EmptyReplay: mode='read' and nothing was written yet.
        ValueError: a folder that disagrees, is incomplete or corrupt, is being written by another process, or too little room.
    """
    def __init__(self, columns: list[Column], ring: Ring, layout: dict[str, Any], path: Path | None, store: Any, mode: str):
        self.columns, self.ring, self.layout, self.mode = {column.name: column for column in columns}, ring, layout, mode
        self.created: list[Path] = []
        self.unchecked = 0
        found = [] if path is None else [file for file in map(self._file(path), self.columns) if file.exists()]
        present = sum(file.stat().st_blocks * 512 for file in found)
        self.nbytes = sum(ring.num_envs * column.rows * column.row_bytes for column in columns)
        if mode == 'write':
            self.store, self.path = place(store, path, self.nbytes, present)
        else:  # a reader's map takes no room
            self.store, self.path = 'map' if store in ('auto', 'map') else place(store, None, self.nbytes, 0)[0], path
        path = self.path
        self.files: dict[str, torch.Tensor] = {}
        if path is not None:
            if mode == 'write':
                self._prepare(path, found)
            self.published = self._open(path)
            self.fresh = not (self.published >= 0).any()
        else:
            self.published, self.fresh = np.full(ring.num_envs, -1, np.int64), True
        self.data = dict(self.files) if self.store == 'map' else {column.name: self._allocate(column) for column in columns}

    @staticmethod
    def _file(path: Path) -> Callable[[str], Path]:
        return lambda name: path / f'{name}.bin'

    def _allocate(self, column: Column) -> torch.Tensor:
        shape = (self.ring.num_envs * column.rows, *column.shape)
        if column.host or self.store == 'ram':
            # numpy's zeros are untouched pages, torch's are written
            return torch.from_numpy(np.zeros(math.prod(shape) * column.dtype.itemsize, np.uint8)).view(column.dtype).view(shape)
        return torch.zeros(shape, dtype=column.dtype, device=self.store)

    def _prepare(self, path: Path, found: list[Path]) -> None:
        """Locks the folder for this process; writes the layout of a new one."""
        fresh = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        layout, lock = path / 'layout.json', path / 'writer.lock'
        if not layout.exists() and found:
            raise ValueError(f'{found[0]} is there but {layout} is not: the folder is no complete replay and is left alone; '
                             'remove it yourself or choose another replay.path')
        if not lock.exists():
            self.created.append(lock)
        self.lock = open(lock, 'a')
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f'{path} is being written by another process: stop it, or choose another replay.path') from None
        if not layout.exists():
            self.created = ([path] if fresh else []) + self.created + [layout]
            temporary = layout.with_suffix('.tmp')
            temporary.write_text(json.dumps(self.layout, indent=1))
            os.replace(temporary, layout)
        compare(layout, self.layout, read_layout(path))

    def _open(self, path: Path) -> np.ndarray:
        """Maps every file, creating those of an unfinished set-up; -> the published cursors. `cursors.bin` comes last: where it is, all are."""
        cursors, sizes = path / 'cursors.bin', {}
        for column in self.columns.values():
            sizes[self._file(path)(column.name)] = self.ring.num_envs * column.rows * column.row_bytes
        sizes[cursors] = 8 * self.ring.num_envs
        if not cursors.exists():
            if self.mode == 'read':
                raise EmptyReplay(f'{path} holds no rows yet: its writer has not begun')
            for file, size in sizes.items():
                self.created += [] if file.exists() else [file]
                temporary = file.with_suffix('.tmp') if file == cursors else file
                with open(temporary, 'ab') as handle:
                    if file == cursors:
                        handle.write(np.full(self.ring.num_envs, -1, np.int64).tobytes())
                    handle.truncate(size)  # sparse: a row takes room when it is written
                if file == cursors:
                    os.replace(temporary, file)
        for file, size in sizes.items():
            if not file.exists() or file.stat().st_size != size:
                actual = f'{file.stat().st_size} bytes' if file.exists() else 'missing'
                raise ValueError(f'{file} is {actual}, expected {size} bytes: the replay is incomplete; '
                                 'restore the file or choose another replay.path')
        mode = 'r+' if self.mode == 'write' else 'c'  # a reader's map is private, so nothing it does can reach the file
        for column in self.columns.values():
            raw = np.asarray(np.memmap(self._file(path)(column.name), np.uint8, mode))  # type: ignore[call-overload]
            self.files[column.name] = torch.from_numpy(raw).view(column.dtype).view(-1, *column.shape)
        return np.asarray(np.memmap(cursors, np.int64, 'r+' if self.mode == 'write' else 'r'))

    def lanes(self, tensor: torch.Tensor, column: Column) -> torch.Tensor:
        """A column as (num_envs, rows, ...)."""
        return tensor.view(self.ring.num_envs, column.rows, *column.shape)

    def copy(self, source: dict[str, torch.Tensor], target: dict[str, torch.Tensor], start: np.ndarray, stop: np.ndarray) -> None:
        """Copies rows start[i] … stop[i] (inclusive; -1: none) of each lane i between the columns and their files."""
        ring = self.ring
        for column in self.columns.values():
            here, there = self.lanes(source[column.name], column), self.lanes(target[column.name], column)
            for lane in np.flatnonzero(stop >= 0):
                first, last = int(start[lane]), int(stop[lane])
                if column.every == 1:
                    parts = list(spans(first, last - first + 1, ring.length, ring.pad))
                    parts += [slice(0, ring.pad + ring.window), slice(ring.length, ring.physical)] if column.twice else []
                else:
                    ends = source['time'].numpy()[ring.positions(np.array([lane, lane]), np.array([first, last]))] // column.every
                    parts = list(spans(int(ends[0]), int(ends[1] - ends[0]) + 1, column.rows))
                for part in parts:
                    there[lane, part].copy_(here[lane, part])

    def check_disk(self, written: int) -> None:
        """Raises OSError while there is still room to say so: on a full disk a write to a map ends the process."""
        self.unchecked += written
        if self.unchecked > CHECK_BYTES and self.path is not None:
            self.unchecked = 0
            if free_bytes(self.path) < 2 * CHECK_BYTES:
                raise OSError(errno.ENOSPC, 'disk full under the replay: free some room, lower replay.capacity or set replay.store=ram',
                              str(self.path))

    def flush(self) -> None:
        """Waits until the maps are on the disk; needed against a power cut only, a killed process loses nothing."""
        if self.path is not None and self.mode == 'write':
            for file in [*map(self._file(self.path), self.columns), self.path / 'cursors.bin']:
                with open(file, 'rb') as handle:
                    os.fsync(handle.fileno())

    def close(self) -> None:
        self.data, self.files = {}, {}
        if hasattr(self, 'lock'):
            self.lock.close()

    def discard(self) -> None:
        """Removes the files this object created, and the folder if it created that and nothing else lies in it."""
        self.close()
        for path in reversed(self.created):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            else:
                path.unlink(missing_ok=True)
        self.created = []
