"""What is kept of episodes: the actions of those that are being played, the finished ones, and which places they visited."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from Datasets.Specs import ActionSpec


@dataclass
class Episode:
    """A finished game.

    lane: global index. score: sum of raw rewards. length: agent steps. actions: (length, ...), compact.
    seed: of the lane's last seeded reset; before: actions of the games between that reset and this one, none for most suites. Together they tell all.
    """

    lane: int
    seed: int
    score: float
    length: int
    actions: np.ndarray
    before: tuple[np.ndarray, ...] = ()


class ActionLog:
    """The actions of every lane since its episode began, one compact array for all lanes: a step is one row, written at once."""

    def __init__(self, num_envs: int, spec: ActionSpec) -> None:
        dtype = np.float32 if spec.num_actions is None else np.uint8 if spec.num_actions <= 256 else np.int32
        self.rows = np.zeros((1024, num_envs, *spec.shape), dtype)
        self.begin, self.end = np.zeros(num_envs, np.int64), 0

    def append(self, action: np.ndarray) -> None:
        if self.end == len(self.rows):
            self._make_room()
        self.rows[self.end] = action
        self.end += 1

    def open(self, lane: int) -> None:
        """Begins an episode of a lane."""
        self.begin[lane] = self.end

    def of(self, lane: int) -> np.ndarray:
        """(length, ...): a lane's actions since its episode began."""
        return self.rows[self.begin[lane]:self.end, lane].copy()

    def clear(self) -> None:
        self.begin[:], self.end = 0, 0

    def load(self, actions: Sequence[np.ndarray]) -> None:
        self.clear()
        while len(self.rows) < max(map(len, actions)):
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        self.end = max(map(len, actions))
        for lane, lane_actions in enumerate(actions):
            self.begin[lane] = self.end - len(lane_actions)
            self.rows[self.begin[lane]:self.end, lane] = lane_actions

    def _make_room(self) -> None:
        """Drops what belongs to finished episodes, and grows where that frees less than half."""
        oldest = int(self.begin.min())
        kept = self.rows[oldest:self.end]
        rows = self.rows if 2 * len(kept) <= len(self.rows) else np.zeros((2 * len(self.rows), *self.rows.shape[1:]), self.rows.dtype)
        rows[:len(kept)] = kept.copy()
        self.rows, self.begin, self.end = rows, self.begin - oldest, len(kept)


class Visits:
    """Which places episodes visited, in suites that tell places apart (`Suite.visited`): how many in an episode, and how many ever.

    Attributes:
        ever: by kind of place, the numbers of all that were visited.
    """

    def __init__(self) -> None:
        self.ever: dict[str, set[int]] = {}

    def add(self, visited: Mapping[str, set[int]]) -> dict[str, float]:
        """Counts an episode's places in. → how many of each kind it visited."""
        for kind, places in visited.items():
            self.ever[kind] = self.ever.get(kind, set()) | places
        return {kind: float(len(places)) for kind, places in visited.items()}

    def totals(self) -> dict[str, float]:
        return {f'{kind}_total': float(len(places)) for kind, places in self.ever.items()}

    def state_dict(self) -> dict[str, list[int]]:
        return {kind: sorted(places) for kind, places in self.ever.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[int]]) -> None:
        self.ever = {kind: set(places) for kind, places in state.items()}
