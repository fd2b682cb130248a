"""Replays that lie on the disk: finding them, waiting for one to appear, starting from what one holds."""
from __future__ import annotations

import glob
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from Datasets.Gather import FIRST, LAST, TERMINATED, TRUNCATED
from Datasets.Layout import EmptyReplay

if TYPE_CHECKING:
    from Datasets.Replay import Replay

LAYOUT = 'layout.json'


def exists(path: Path) -> bool:
    return (path / LAYOUT).exists()


def others(root: Path, suite: str, task: str) -> list[Path]:
    """Stored replays of this task under `root`, newest first. task: as it stands in the names of run folders."""
    found = [file.parent for file in root.glob(f'*/*/{suite}/{glob.escape(task)}_*/replay/{LAYOUT}')]
    return sorted(found, key=lambda path: (path / LAYOUT).stat().st_mtime, reverse=True)


def advice(root: Path, suite: str, task: str) -> str:
    """How to come by a replay."""
    found = others(root, suite, task)
    if found:
        return f'there is replay.path={found[0]}'
    return f'make one: python Run.py task={suite}/{task} replay.save=true'


def wait_for(path: Path, seconds: float, instructions: str) -> None:
    """Returns when a replay lies at `path`; a collector may be about to begin. Raises: ValueError after `seconds`."""
    if not exists(path) and seconds > 0:
        print(f'no replay at {path} yet: waiting replay.wait={seconds:g} s for a run with replay.save=true to begin it ({instructions})', flush=True)
    end = time.monotonic() + seconds
    while not exists(path):
        if time.monotonic() >= end:
            raise ValueError(f'offline=true: no replay at {path}; {instructions}')
        time.sleep(0.2)


def open_reader(open_it: Callable[[], Replay], path: Path, seconds: float) -> Replay:
    """A reader of the replay at `path`, as soon as there is something to learn from. Raises: ValueError after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        try:
            replay = open_it()
            if replay.refresh():
                return replay
            replay.close()
        except EmptyReplay:
            pass
        if time.monotonic() >= end:
            raise ValueError(f'offline=true: the replay at {path} holds no transitions; a run with replay.save=true fills it '
                             f'(waited replay.wait={seconds:g} s)')
        time.sleep(0.2)


def find_source(path: str | None, own: Path, root: Path, suite: str, task: str) -> Path:
    """The replay that replay.load=true starts from: at `path` if that is given, else the run's own, else the newest of the task.

    Raises:
        ValueError: there is none."""
    source = Path(path) if path else own
    if not path and not exists(own):
        source = next(iter(others(root, suite, task)), own)
    if not exists(source):
        raise ValueError(f'replay.load=true: no replay at {source}; {advice(root, suite, task)}')
    return source


def copy(source: Replay, target: Replay) -> int:
    """Adds the newest transitions of one replay to another that has other sizes, as many as may have room. The source stays as it is.

    With another number of lanes, the source's lanes are laid end to end and cut anew; at a cut an episode counts as truncated.
    Bonuses that the source does not have are 0.

    Args:
        source: opened to read.
        target: new and empty.

    Returns:
        The number of transitions added.

    Raises:
        ValueError: the source lacks a column that the target has."""
    missing = [name for name in target.extras if (name not in source.extras and name != 'bonus') or target.extras[name].every > 1]
    if missing:
        raise ValueError(f'replay.load=true: {source.path} lacks the columns {", ".join(missing)} of this agent')
    lanes = [transitions(source, lane) for lane in range(source.num_envs)]
    if source.num_envs != target.num_envs:
        joined = np.concatenate(lanes)
        lanes = np.array_split(joined[len(joined) % target.num_envs:], target.num_envs)
    length = min(min(map(len, lanes)), target.ring.rows)
    if not length:
        return 0
    at, following, ended_by = np.stack([lane[-length:] for lane in lanes]).transpose(2, 1, 0)  # (length, lanes) each
    columns, flags, frames = source.storage.data, source.meta, source.storage.data['obs']
    target.begin(take(frames, at[0]))
    for step in range(length):
        codes = flags[at[step]]
        terminated, truncated = (codes & TERMINATED) != 0, (codes & TRUNCATED) != 0
        opens = at[step + 1] if step + 1 < length else following[step]
        cut = (opens != following[step]) & ~terminated & ~truncated
        final = np.where(cut, following[step], ended_by[step])
        truncated |= cut
        ended = terminated | truncated
        final_lanes = np.flatnonzero(ended & (final >= 0))
        extras = {name: take(columns[name], at[step]) if name in columns else np.zeros(target.num_envs, np.float32) for name in target.extras}
        target.add(take(columns['action'], at[step]), source.reward[at[step]], terminated, truncated, take(frames, opens), ended,
                   final_lanes, take(frames, final[final_lanes]), **extras)
    return length * target.num_envs


def take(column: torch.Tensor, at: np.ndarray) -> np.ndarray:
    return column.index_select(0, torch.from_numpy(np.ascontiguousarray(at)).to(column.device)).cpu().numpy()


def transitions(source: Replay, lane: int) -> np.ndarray:
    """(n, 3) int64, for each stored transition of a lane in time order: its position, that of the row which opens next, and that of the final
    observation between the two, -1 if there is none."""
    cursor = int(source.cursor[lane])
    rows = np.arange(max(cursor - source.ring.rows, 0), cursor + 1)
    at = source.ring.positions(np.array(lane), rows)
    final = (source.meta[at] & LAST) != 0
    final[-1] = False  # the open row
    kept = np.flatnonzero(~final)
    here, after = kept[:-1], kept[1:]
    between = after > here + 1
    ends = np.where(between & ((source.meta[at[here + 1]] & FIRST) == 0), at[here + 1], -1)
    return np.stack([at[here], at[after], ends], 1)
