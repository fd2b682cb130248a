"""What a replay is made of: the geometry of its ring, its columns, and the plain description of both that lies beside the rows."""
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from Datasets.Specs import ActionSpec, ObsSpec

FORMAT = 1  # of the folder; a reader of another format refuses
# what the user calls them
SETTINGS = {'ring.num_envs': 'num_envs', 'ring.rows': 'replay.capacity / num_envs', 'ring.stack': 'frame_stack',
            'ring.window': 'window (nstep, horizon)', 'ring.slack': 'slack (save_per_steps)'}


class EmptyReplay(ValueError):
    """Nothing to draw (yet): a reader may wait for its writer and try again."""


class Ring:
    """Positions of rows. Rows of a lane are counted from 0 for ever; row t lies at position `t % length + pad` of its lane, and the
    rows near either end lie twice, so that `pad` frames before and `window` frames after any row are one contiguous read.

    Args:
        num_envs: lanes.
        rows: of a lane that can be drawn.
        stack: frames of a stack.
        window: rows ahead (nstep, horizon) that reads stay contiguous for.
        slack: rows of a lane that may be written before a row that could be drawn at the last checkpoint is written over.
    """
    def __init__(self, num_envs: int, rows: int, stack: int, window: int, slack: int):
        self.num_envs, self.rows, self.window, self.slack = num_envs, rows, window, slack
        self.pad = stack - 1
        self.behind = self.pad + window  # rows kept behind the drawable ones: frames of their stacks, transitions of `latest`
        self.ahead = window + 3  # rows that one `add` may touch ahead of the published cursor: a final row, the open row, `window` marks
        self.length = rows + self.behind + slack + self.ahead
        self.physical = self.length + self.pad + window  # with the rows that lie twice
        self.lengths = np.array([self.length])  # numpy adds an array to an array faster than a number
        self.bases = np.arange(num_envs, dtype=np.int64) * self.physical

    def positions(self, lanes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Flat positions, int64, of rows `rows` of lanes `lanes` (broadcast against each other)."""
        return rows % self.length + (self.pad + self.bases[lanes])

    def later(self, positions: np.ndarray, steps: Any) -> np.ndarray:
        """Flat positions of the rows `steps` after those at `positions`."""
        base = positions // self.physical * self.physical
        return (positions - base + (steps - self.pad)) % self.length + (self.pad + base)

    def needed(self, cursor: np.ndarray) -> np.ndarray:
        """Oldest row of each lane that anything may read while its open row is `cursor`."""
        return np.maximum(cursor - self.rows - self.behind, 0)

    def oldest(self, cursor: np.ndarray) -> np.ndarray:
        """Oldest row of each lane that is certainly still there when `cursor` was published, even if the next `add` was interrupted."""
        return np.asarray(cursor) + self.ahead - self.length

    def twins(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Second positions of those rows that lie twice, and which of `positions` they are; None if none does."""
        local = positions % self.physical
        twice = ((local < self.pad + self.window) | (local >= self.length)).nonzero()[0]
        if not len(twice):
            return None
        return positions[twice] + np.where(local[twice] >= self.length, -self.length, self.length), twice


@dataclass(frozen=True)
class Extra:
    """A column an agent declares. `every`: transitions per stored value (1, or the length of an unroll); `mutable`: `write` may change it, and so
    a checkpoint carries it."""
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    every: int = 1
    mutable: bool = True


@dataclass(frozen=True)
class Column:
    """`rows` of `shape` per lane. `host`: bookkeeping, always in CPU memory; `twice`: rows near the ends of the ring are mirrored."""
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: int
    every: int = 1
    host: bool = False
    twice: bool = False
    mutable: bool = False

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def describe(self) -> dict[str, Any]:
        return {'shape': list(self.shape), 'dtype': dtype_name(self.dtype), 'rows': self.rows, 'every': self.every}


def ring_of(obs_spec: ObsSpec, num_envs: int, capacity: int, slack: int, window: int) -> dict[str, int]:
    """Arguments of `Ring`, checked."""
    for name, value, least in (('num_envs', num_envs, 1), ('replay.capacity', capacity, 1), ('replay.slack', slack, 0), ('window', window, 1)):
        if int(value) != value or value < least:
            raise ValueError(f'{name}={value}: expected a whole number of at least {least}')
    return {'num_envs': int(num_envs), 'rows': max(int(capacity) // int(num_envs), int(window)), 'stack': obs_spec.frame_stack,
            'window': int(window), 'slack': int(slack)}


def columns_of(obs_spec: ObsSpec, action_spec: ActionSpec, ring: Ring, extras: Mapping[str, Extra]) -> list[Column]:
    """Every column of a replay: its bookkeeping, frames, actions, and what the agent declared."""
    rows = ring.physical
    columns = [Column('meta', (), torch.int32, rows, host=True, twice=True), Column('reward', (), torch.float32, rows, host=True, twice=True),
               Column('time', (), torch.int64, rows, host=True),  # transitions of the lane before this row: final rows do not count
               Column('obs', obs_spec.shape, obs_spec.dtype, rows, twice=True), Column('action', action_spec.shape, action_spec.dtype, rows)]
    for name, extra in extras.items():
        if name in ('meta', 'reward', 'time', 'obs', 'action', 'cursors') or not name.isidentifier():
            raise ValueError(f'replay extra {name!r}: expected a name of its own, letters and digits')
        if extra.every < 1:
            raise ValueError(f'replay extra {name}: every={extra.every}, expected 1 or more')
        if name == 'bonus':
            columns.append(Column('bonus', (), torch.float32, rows, host=True, twice=True))  # is summed up as rewards are
            continue
        length = rows if extra.every == 1 else ring.length // extra.every + 2
        columns.append(Column(name, tuple(extra.shape), extra.dtype, length, extra.every, mutable=extra.mutable))
    return columns


def describe(obs_spec: ObsSpec, action_spec: ActionSpec, ring: dict[str, int], extras: Mapping[str, Extra]) -> dict[str, Any]:
    """Plain description of a replay: layout.json, and part of every checkpoint."""
    specs = {'obs.shape': list(obs_spec.shape), 'obs.dtype': dtype_name(obs_spec.dtype), 'frame_stack': obs_spec.frame_stack,
             'action.shape': list(action_spec.shape), 'num_actions': action_spec.num_actions}
    columns = columns_of(obs_spec, action_spec, Ring(**ring), extras)
    return {'format': FORMAT, 'specs': specs, 'ring': ring,
            'extras': {name: {'shape': list(extra.shape), 'dtype': dtype_name(extra.dtype), 'every': extra.every, 'mutable': extra.mutable}
                       for name, extra in extras.items()},
            'columns': {column.name: column.describe() for column in columns}}


def dtype_name(dtype: torch.dtype) -> str:
    """Such as float32: getattr(torch, name) is the dtype."""
    return str(dtype).removeprefix('torch.')


def read_layout(path: Path) -> dict[str, Any]:
    """layout.json of a folder.

    Raises:
        EmptyReplay: there is none.
        ValueError: it is truncated, corrupt or of another format.
    """
    file = path / 'layout.json'
    try:
        layout = json.loads(file.read_text())
        ring, columns = layout['ring'], layout['columns']
        valid = all(isinstance(ring[key], int) for key in ('num_envs', 'rows', 'stack', 'window', 'slack')) and isinstance(columns, dict)
    except FileNotFoundError:
        raise EmptyReplay(f'no replay at {path}: make one with replay.save=true replay.path={path}') from None
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid or layout.get('format') != FORMAT:
        raise ValueError(f'{file} is corrupt or of another version (expected format {FORMAT}): restore it or choose another replay.path')
    return layout


def compare(file: Path, expected: dict[str, Any], found: dict[str, Any], prefix: str = '') -> None:
    """Raises ValueError that names the first difference between two layouts."""
    for key in [*expected, *(found.keys() - expected.keys())]:
        ours, theirs, name = expected.get(key), found.get(key), prefix + key
        if isinstance(ours, dict) and isinstance(theirs, dict):
            compare(file, ours, theirs, f'{name}.')
        elif ours != theirs:
            raise ValueError(f'{file} disagrees: {SETTINGS.get(name, name)} is {theirs} there, {ours} here; '
                             'use the settings it was made with, or another replay.path')
