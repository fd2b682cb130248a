"""Which transitions come out: uniform draws, shuffled passes. Another way of drawing is another source of indices."""
from collections.abc import Iterator

import numpy as np

from Datasets.Batch import Batch
from Datasets.Gather import LAST, Gather
from Datasets.Layout import EmptyReplay

CURSOR_MARGIN = 64  # rows a reader of a wrapped ring keeps away from the end that its writer is about to write over


class Draw(Gather):
    """The part of the replay that knows which rows hold transitions and in what order they are shown."""
    sampler: str
    seed: int
    rng: np.random.Generator
    epochs: int  # passes begun
    order: np.ndarray  # what is left of the current one: row * num_envs + lane
    lanes: np.ndarray

    def refresh(self) -> int:
        raise NotImplementedError

    def _moved(self) -> None:
        """The cursors moved: what depends on them is worked out when it is asked for."""
        self.open = self.ring.positions(self.lanes, np.maximum(self.cursor, 0))
        self.open_twins = self.ring.twins(self.open)
        self.bounds: tuple | None = None

    def _bounds(self) -> tuple:
        """-> oldest row, number of rows and running sum of that for each lane; rows and transitions altogether; what a draw adds to its number."""
        if self.bounds is None:
            closed = np.maximum(self.cursor, 0)
            oldest = np.maximum(closed - self.ring.rows, 0)
            if self.mode == 'read' and self.storage.store == 'map':
                # the writer may run on while a batch is gathered
                near = closed - self.ring.length + self.ring.ahead + self.ring.behind + min(CURSOR_MARGIN, self.ring.rows // 16)
                oldest = np.maximum(oldest, near)
            counts = np.maximum(closed - oldest, 0)
            ends = np.cumsum(counts)
            shift = (oldest - (ends - counts)) % self.ring.length
            transitions = self.time[self.open] - self.time[self.ring.positions(self.lanes, oldest)]
            stored = int(transitions.sum()) if (self.cursor >= 0).all() else 0
            self.bounds = oldest, counts, ends, int(ends[-1]), stored, shift, self.ring.bases + self.ring.pad
        return self.bounds

    def __len__(self) -> int:
        """Transitions that can be drawn: neither final observations nor open rows."""
        return self._bounds()[4]

    def _nonempty(self) -> None:
        if self.mode == 'read':
            self.refresh()
        if not (self.bounds or self._bounds())[4]:
            where = f' at {self.path}' if self.path else ''
            raise EmptyReplay(f'the replay{where} holds no transitions yet: act first (seed_steps), or wait for its writer')

    def draw(self, n: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """-> (n,) int64 indices of stored transitions: uniform, or the next of a shuffled pass. `rng`: uniform from another stream than the replay's own.

        Raises:
            EmptyReplay: there are none.
        """
        self._nonempty()
        return self._uniform(n, rng or self.rng) if rng is not None or self.sampler == 'uniform' else self._shuffled(n)

    def _uniform(self, n: int, rng: np.random.Generator) -> np.ndarray:
        _, _, ends, total, _, shift, offset = self._bounds()
        index = (rng.random(n) * total).astype(np.int64)  # uniform to within total / 2⁵³, in half the time of `integers`
        if self.num_envs > 1:
            lane = ends.searchsorted(index, 'right')
            shift, offset = shift[lane], offset[lane]
        index += shift
        index %= self.ring.lengths
        index += offset
        final = self.meta.take(index) & LAST
        if np.count_nonzero(final):
            again = final.nonzero()[0]
            index[again] = self._uniform(len(again), rng)
        return index

    def _pass(self) -> np.ndarray:
        """Begins a pass: -> every stored transition once, as row * num_envs + lane, shuffled by (seed, epoch)."""
        oldest, counts, *_ = self._bounds()
        lanes = np.repeat(self.lanes, counts)
        rows = np.concatenate([np.arange(low, low + count) for low, count in zip(oldest, counts, strict=True)])
        order = (rows * self.num_envs + lanes)[(self.meta[self.ring.positions(lanes, rows)] & LAST) == 0]
        shuffle = np.random.default_rng((self.seed, self.epochs))
        self.epochs += 1
        return shuffle.permutation(order)

    def _stored(self, order: np.ndarray) -> np.ndarray:
        """Indices of the transitions of a pass that have not been written over since it began."""
        lanes, rows = order % self.num_envs, order // self.num_envs
        there = rows >= self._bounds()[0][lanes]
        return self.ring.positions(lanes[there], rows[there])

    def _shuffled(self, n: int) -> np.ndarray:
        parts: list[np.ndarray] = []
        while n:
            if not len(self.order):
                self.order = self._pass()
            part, self.order = self._stored(self.order[:n]), self.order[n:]
            parts.append(part)
            n -= len(part)
        return np.concatenate(parts)

    def epoch(self, batch_size: int, nstep: int = 1, horizon: int = 0) -> Iterator[Batch]:
        """One pass: every stored transition exactly once, shuffled by (seed, number of the pass); the last batch may be smaller."""
        self._nonempty()
        order = self._pass()
        for start in range(0, len(order), batch_size):
            yield self.gather(self._stored(order[start:start + batch_size]), nstep, horizon)

    def sample(self, n: int, nstep: int = 1, horizon: int = 0, rng: np.random.Generator | None = None) -> Batch:
        """`gather` of `draw`. A reader draws again should its writer have written over a row meanwhile."""
        while True:
            indices = self.draw(n) if rng is None else self.draw(n, rng)
            batch = self.gather(indices, nstep, horizon)
            if self.mode == 'write' or self.storage.store != 'map' or self._intact(indices):
                return batch

    def _intact(self, indices: np.ndarray) -> bool:
        lanes = indices // self.ring.physical
        rows = self.cursor[lanes] - (self.open[lanes] - indices) % self.ring.length
        return bool((rows - self.ring.pad >= self.ring.oldest(self.storage.published[lanes])).all())
