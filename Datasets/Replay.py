"""The one replay: a lane-major ring of rows over a file-backed map, RAM or an accelerator.

One row per transition and lane, only the newest frame in it; the next observation is always the following row. The newest row of a lane is open:
its frame is there, the rest comes with the step. An episode's final observation is a `last` row without a transition, never drawn.
Rewards, flags and ages are small and stay on the host, where all index arithmetic is done at once for a batch; frames, actions and extras lie in
the store. A window of consecutive frames is one contiguous read (`torch.index_select` over overlapping rows, 8 bytes at a time).
"""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from Datasets.Batch import Batch, Rollout, Sequence
from Datasets.Checksums import Checksums
from Datasets.Draw import Draw
from Datasets.Gather import AGE, DEAD, ENDED, FIRST, LAST, TERMINATED, TRUNCATED, numpy_of
from Datasets.Layout import EmptyReplay, Extra, Ring, columns_of, compare, describe, read_layout, ring_of
from Datasets.Specs import ActionSpec, ObsSpec
from Datasets.Storage import Storage

__all__ = ['Batch', 'EmptyReplay', 'Extra', 'Replay', 'Rollout', 'Sequence']

class Replay(Draw):
    """Remembers transitions of `num_envs` lanes. See the module docstring for rows, `Batch` and `Rollout` for what comes out.

    Args:
        obs_spec, action_spec: what the suite shows and accepts.
        num_envs: lanes; a reader takes it, and every size, from the folder.
        capacity: rows (final observations included) over all lanes that can be drawn: capacity // num_envs a lane, but at least `window`.
        seed: of the replay's own random stream.
        path: folder of the file-backed map. An existing one is continued, from its newest row or from where `load_state_dict` says.
        store: 'map', 'ram', a torch device, or 'auto': map if there is a path and room, else ram. With a path, other stores than 'map'
            write the map at `sync()`; without one the rows travel in `state_dict()`.
        slack: rows a lane may write between two checkpoints without losing exactness; see `slack_left`.
        window: largest nstep and horizon that stay fast.
        extras: name -> `Extra`, or a dict of its fields. One named 'label' comes out as `Batch.label`.
        sampler: 'uniform', or 'epoch': shuffled passes over what is stored when a pass begins.
        reward_clip: each reward is clipped to ± this before it is summed; None: never.
        discount: γ of the n-step return.
        mode: 'write', or 'read': follow a folder that another process writes.
        verify: whether rows that lie in the folder are compared with its checksums.
        buffers: a batch stays valid until this many further gathers of its shape.

    Raises:
        EmptyReplay: mode='read' and there is nothing yet.
        ValueError: bad arguments, no room (before anything is allocated), or a folder that is corrupt or was made with other settings.
    """
    def __init__(self, obs_spec: ObsSpec, action_spec: ActionSpec, *, num_envs: int, capacity: int, seed: int, path: str | Path | None = None,
                 store: Any = 'auto', slack: int = 0, window: int = 1, extras: Mapping[str, Any] | None = None, sampler: str = 'uniform',
                 reward_clip: float | None = None, discount: float = 0.99, mode: str = 'write', verify: bool = True, buffers: int = 2):
        if sampler not in ('uniform', 'epoch'):
            raise ValueError(f'replay.sampler={sampler}: expected uniform or epoch')
        if mode not in ('write', 'read') or (mode == 'read' and path is None):
            raise ValueError(f'replay mode={mode}, path={path}: expected write, or read with a path')
        self.obs_spec, self.action_spec, self.mode, self.sampler = obs_spec, action_spec, mode, sampler
        self.reward_clip, self.discount = reward_clip, discount
        path = None if path is None else Path(path)
        self.extras = {name: extra if isinstance(extra, Extra) else Extra(**extra) for name, extra in (extras or {}).items()}
        self.layout = describe(obs_spec, action_spec, ring_of(obs_spec, num_envs, capacity, slack, window), self.extras)
        if mode == 'read':
            assert path is not None
            found = read_layout(path)
            compare(path / 'layout.json', self.layout['specs'], found['specs'])
            self.layout = found
            self.extras = {name: Extra(tuple(extra['shape']), getattr(torch, extra['dtype']), extra['every'], extra['mutable'])
                           for name, extra in found['extras'].items()}
        self.ring = Ring(**self.layout['ring'])
        self.num_envs, self.capacity = self.ring.num_envs, self.ring.num_envs * self.ring.rows
        columns = columns_of(obs_spec, action_spec, self.ring, self.extras)
        self.storage = Storage(columns, self.ring, self.layout, path, store, mode)
        self.path, self.store, self.bytes = self.storage.path, self.storage.store, self.storage.nbytes
        self._bind()

        self.seed, self.rng = seed, np.random.default_rng(seed)
        self.epochs, self.order = 0, np.empty(0, np.int64)  # passes begun, and what is left of the current one: row * num_envs + lane
        self.kept = buffers
        self.lanes = np.arange(self.num_envs)
        # rows from the open one on that an `add` marks: the cursor moves by one, or by two past a final observation
        self.marks = np.array([[0], [self.ring.window]] + [[self.ring.window - 1]] * (self.ring.window > 1))
        self.cursor = np.full(self.num_envs, -1, np.int64)
        self.pulled = self.cursor.copy()  # newest row that the store and the files share
        self.checkpoints: list[np.ndarray] = []  # cursors at the last two calls of state_dict: either may be gone back to
        self._moved()
        self.checksums = None if self.path is None else Checksums(self.storage)
        if not self.storage.fresh:
            if verify:
                self.verify()
            self._adopt(np.asarray(self.storage.published).copy())

    @staticmethod
    def bytes_needed(obs_spec: ObsSpec, action_spec: ActionSpec, *, num_envs: int, capacity: int, slack: int = 0, window: int = 1,
                     extras: Mapping[str, Any] | None = None) -> int:
        """Bytes that a replay of these sizes takes when it is full."""
        declared = {name: extra if isinstance(extra, Extra) else Extra(**extra) for name, extra in (extras or {}).items()}
        ring = Ring(**ring_of(obs_spec, num_envs, capacity, slack, window))
        return sum(num_envs * column.rows * column.row_bytes for column in columns_of(obs_spec, action_spec, ring, declared))

    # Writing

    def begin(self, obs: np.ndarray) -> None:
        """Opens an episode in every lane. Rows left open by an earlier run become the final observations of cut-off episodes.

        Args:
            obs: (N, *frame shape), first frames.
        """
        self._writable()
        obs = self._host('obs', obs, (self.num_envs, *self.obs_spec.shape), self.frame_dtype)
        continued = (self.cursor >= 0).nonzero()[0]
        if len(continued):
            open_rows = self.open[continued]
            inside = (self.meta[open_rows] & FIRST) == 0
            before = self.ring.positions(continued[inside], self.cursor[continued[inside]] - 1)
            for at, values in ((before, self.meta[before] | TRUNCATED), (open_rows, self.meta[open_rows] & ~(ENDED | DEAD) | LAST)):
                self._put(self.meta, at, values, self.ring.twins(at))
        count = self.time[self.open] if len(continued) == self.num_envs else np.zeros(self.num_envs, np.int64)
        self.cursor = self.cursor + 1
        self._open(np.full(self.num_envs, FIRST, np.int32), count, obs)
        self._publish()

    def add(self, action: Any, reward: Any, terminated: Any, truncated: Any, obs: Any, first: Any, final_lanes: Any = (), final_obs: Any = None,
            **extras: Any) -> None:
        """Closes the open row of every lane with what its step brought, and opens the next.

        Args:
            action: (N, ...), taken at the open rows.
            reward: (N,) float32, raw.
            terminated: (N,) bool.
            truncated: (N,) bool.
            obs: (N, *frame shape), opens the following rows.
            first: (N,) bool, whether those open an episode.
            final_lanes: (k,) int64, lanes whose final observations are given.
            final_obs: (k, *frame shape), those.
            **extras: (N, ...) each, as declared; those with `every` > 1 are only looked at (and needed) when an unroll begins.

        Raises:
            ValueError: a column of another shape or dtype, one that was not declared or is missing, or flags that contradict each other.
            OSError: the disk under the map is about to be full.
        """
        self._writable()
        lanes, at, twins = self.num_envs, self.open, self.open_twins
        if self.cursor[0] < 0:
            raise ValueError('the replay has no open rows: call begin(obs) with the first observations')
        action = self._host('action', action, (lanes, *self.action_spec.shape), np.int64 if self.action_spec.discrete else np.float32)
        reward = self._host('reward', reward, (lanes,), np.float32)
        terminated, truncated, first = (self._host(name, value, (lanes,), np.bool_) for name, value in
                                        (('terminated', terminated), ('truncated', truncated), ('first', first)))
        obs = self._host('obs', obs, (lanes, *self.obs_spec.shape), self.frame_dtype)
        ended = terminated | truncated
        if np.count_nonzero(first != ended):
            lane = int((first != ended).argmax())
            raise ValueError(f'lane {lane}: first={first[lane]} after terminated={terminated[lane]}, truncated={truncated[lane]}; '
                             'an episode opens exactly where one ended')
        ages, count = self.meta[at] >> AGE, self.time[at]
        columns = self._due(extras, int(count[0]))
        if len(final_lanes):
            final_lanes = np.asarray(final_lanes, np.int64)
            final_obs = self._host('final_obs', final_obs, (len(final_lanes), *self.obs_spec.shape), self.frame_dtype)
            if not ended[final_lanes].all():
                raise ValueError(f'final_lanes={final_lanes.tolist()}: only lanes {ended.nonzero()[0].tolist()} ended')

        self._put(self.reward, at, reward, twins)
        if self.bonus is not None:
            self._put(self.bonus, at, columns.pop('bonus').cpu().numpy(), twins)
        if np.count_nonzero(ended):
            self._put(self.meta, at, self.meta[at] + (terminated * np.int32(TERMINATED) + truncated * np.int32(TRUNCATED)), twins)
        self._payload('action', at, action)
        for name, value in columns.items():
            self._payload(name, self._slots(name, at), value)
        following = self.cursor + 1
        if len(final_lanes):
            final = self.ring.positions(final_lanes, following[final_lanes])
            twins = self.ring.twins(final)
            self._put(self.meta, final, (ages[final_lanes] + 1 << AGE) + LAST + DEAD * terminated[final_lanes], twins)
            self.time[final] = count[final_lanes] + 1
            self._frames(final, final_obs, twins)
            following[final_lanes] += 1
        self.cursor = following
        self._open(np.where(first, np.int32(FIRST), ages + 1 << AGE), count + 1, obs)
        self._publish()

    def write(self, indices: Any, **columns: Any) -> None:
        """Changes declared columns of rows that were drawn: extras, labels, and later priorities.

        Raises:
            ValueError: a column that is not declared, or not mutable.
        """
        self._writable()
        indices = numpy_of(indices).reshape(-1)
        for name, value in columns.items():
            if name not in self.extras or not self.extras[name].mutable:
                names = [name for name, extra in self.extras.items() if extra.mutable]
                raise ValueError(f'write({name}=…): expected one of the mutable columns {names}; declare it in the replay\'s extras')
            value = torch.as_tensor(value)
            self._payload(name, self._slots(name, indices), value.expand(len(indices), *self.extras[name].shape) if value.dim() == 0 else value)

    def _writable(self) -> None:
        if self.mode == 'read':
            raise ValueError('this replay reads what another process writes: rows cannot be added or changed here (replay mode=read)')

    def _host(self, name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        value = numpy_of(value)
        if value.shape != shape:
            raise ValueError(f'replay column {name}: shape {value.shape}, expected {shape}')
        if value.dtype != dtype:
            if not np.can_cast(value.dtype, dtype, 'same_kind'):
                raise ValueError(f'replay column {name}: dtype {value.dtype}, expected {np.dtype(dtype)}')
            value = value.astype(dtype)
        return value

    def _due(self, extras: dict[str, Any], count: int) -> dict[str, torch.Tensor]:
        """The extras that transition number `count` stores, checked."""
        due = {}
        for name, extra in self.extras.items():
            if count % extra.every == 0:
                if name not in extras:
                    raise ValueError(f'replay column {name}: declared but not given to add()')
                due[name] = torch.as_tensor(extras[name])
                if due[name].shape != (self.num_envs, *extra.shape):
                    raise ValueError(f'replay column {name}: shape {tuple(due[name].shape)}, expected {(self.num_envs, *extra.shape)}')
        if len(extras) > len(due) and not extras.keys() <= self.extras.keys():
            raise ValueError(f'replay columns {sorted(extras.keys() - self.extras.keys())}: not declared (extras: {sorted(self.extras)})')
        return due

    def _open(self, meta: np.ndarray, count: np.ndarray, obs: np.ndarray) -> None:
        """Writes the open rows, and marks those `window` ahead as new-born: no look-ahead may take what an earlier round left there for real."""
        at = self.ring.positions(self.lanes, self.cursor + self.marks)
        values = np.zeros(at.shape, np.int32)
        values[0] = meta
        self._moved()
        at = at.reshape(-1)
        twins = self.ring.twins(at)
        self._put(self.meta, at, values.reshape(-1), twins)
        self.time[self.open] = count
        self._frames(self.open, obs, self.open_twins)

    def _publish(self) -> None:
        """Lets readers see the rows, now that they are complete."""
        if self.storage.store == 'map':
            self.storage.published[:] = self.cursor
        self.storage.check_disk(self.num_envs * self.frames.shape[1] * self.frames.element_size())

    # Keeping

    def refresh(self) -> int:
        """Reader: looks at what the writer has published; -> transitions that can be drawn now."""
        if self.mode == 'read':
            published = np.asarray(self.storage.published).copy()
            if not np.array_equal(published, self.cursor):
                self._adopt(published)
        return len(self)

    def _adopt(self, cursor: np.ndarray) -> None:
        """Continues from rows that lie in the files up to `cursor`."""
        ring = self.ring
        if self.storage.store != 'map':
            while True:
                start = np.maximum(np.minimum(self.pulled, cursor), ring.needed(cursor))
                self.storage.copy(self.storage.files, self.storage.data, start, cursor)
                if self.mode == 'write' or (ring.oldest(self.storage.published) <= start).all():
                    break
                cursor = np.asarray(self.storage.published).copy()  # written over while it was copied
                self.pulled = np.full(self.num_envs, -1, np.int64)
            self.pulled = cursor.copy()
        self.cursor = cursor
        self._moved()
        if self.mode == 'write' and (cursor >= 0).all():
            self._put(self.meta, self.open, self.meta[self.open] & ~(ENDED | DEAD | LAST), self.open_twins)
            for step in range(1, ring.window + 1):
                at = ring.positions(self.lanes, cursor + step)
                self._put(self.meta, at, np.zeros(self.num_envs, np.int32), ring.twins(at))
            self._publish()

    def sync(self) -> None:
        """Makes the folder hold every row and its checksum. Raises: OSError: the disk is full."""
        if self.checksums is None or self.mode == 'read' or (self.cursor < 0).any():
            return
        if self.storage.store != 'map':
            start = np.maximum(np.minimum(self.pulled, self.cursor), np.maximum(self.ring.oldest(self.cursor), 0))
            self.storage.copy(self.storage.data, self.storage.files, start, self.cursor)
            self.storage.published[:] = self.cursor
            self.pulled = self.cursor.copy()
        self.checksums.extend(self.cursor)

    @property
    def slack_left(self) -> int:
        """Rows that every lane may still write before a row that the last `state_dict`, or the one before it, needs is written over."""
        if not self.checkpoints:
            return self.ring.slack
        return int((self.ring.needed(self.checkpoints[0]) - self.ring.oldest(self.cursor)).min())

    def slack_used_up(self, steps: int = 1) -> bool:
        """Whether to save now, because the next so many `add` could write over what a checkpoint needs. Never where there is no slack to speak of."""
        return self.ring.slack > 1 and self.slack_left < 2 * steps  # a row, and a final observation

    @property
    def resumable(self) -> bool:
        """Whether there are rows for a checkpoint to continue from: False if the folder that should hold them is new."""
        return self.path is None or not self.storage.fresh

    def state_dict(self) -> dict[str, Any]:
        """All that is not in the folder, as tensors and plain python; without a folder the rows too. Calls `sync`."""
        self.sync()
        self.checkpoints = [*self.checkpoints[-1:], self.cursor.copy()]
        names = [name for name, column in self.storage.columns.items() if self.path is None or column.mutable]
        return {'layout': self.layout, 'cursor': self.cursor.tolist(), 'checkpoints': [cursor.tolist() for cursor in self.checkpoints],
                'rng': self.rng.bit_generator.state, 'epochs': self.epochs,
                'order': torch.from_numpy(self.order.copy()), 'checksums': self.checksums and self.checksums.state(),
                'created': [path.name for path in self.storage.created],
                'columns': {name: self._used(name).cpu().clone() for name in names if self.mode == 'write'}}

    def _used(self, name: str) -> torch.Tensor:
        """A column without the rows that were never written: (N, rows, ...)."""
        column = self.storage.columns[name]
        return self.storage.lanes(self.storage.data[name], column)[:, :int(self.cursor.max(initial=-1)) + self.ring.pad + self.ring.window + 2]

    def verify(self, state: dict[str, Any] | None = None) -> None:
        """Compares what lies in the folder with its checksums, or with those in the `state` of a checkpoint.

        Raises:
            ValueError: names the file that is corrupt; or the rows that the checkpoint needs are gone.
        """
        if self.checksums is None:
            return
        if state is None:
            return self.checksums.verify_folder('restore the file, or choose another replay.path')
        cursor, published = np.array(state['cursor'], np.int64), np.asarray(self.storage.published)
        advice = f'restore it, or move {self.path} away and go on with a replay that fills anew'
        if (published < cursor).any() or (self.ring.oldest(published) > self.ring.needed(cursor)).any():
            raise ValueError(f'{self.path}/cursors.bin says that rows up to {published.tolist()} are there, the checkpoint ends at {cursor.tolist()}: it '
                             f'is not of this checkpoint, or went on for more than its slack of {self.ring.slack} rows a lane; {advice}')
        self.checksums.load(state['checksums'])
        self.checksums.verify(cursor, advice)

    def continues(self, state: dict[str, Any]) -> bool:
        """Whether the state is of these rows, or of fewer of them."""
        return self.layout == state['layout'] and bool((self.cursor >= np.array(state['cursor'])).all())

    def load_state_dict(self, state: dict[str, Any], verify: bool = True) -> None:
        """Continues exactly where `state_dict` was taken: rows written since are forgotten.

        Args:
            verify: whether the rows in the folder are compared with the checkpoint's checksums.

        Raises:
            ValueError: the folder, or this replay's settings, are not those of the checkpoint, or rows it needs are gone.
        """
        compare(self.path / 'layout.json' if self.path else Path('checkpoint'), self.layout, state['layout'])
        self.rng.bit_generator.state = state['rng']
        self.epochs, self.order = state['epochs'], state['order'].numpy().copy()
        self.checkpoints = [np.array(one, np.int64) for one in state['checkpoints']]
        if self.mode == 'read':  # the rows are its writer's
            return
        self.cursor = np.array(state['cursor'], np.int64)
        if self.checksums is not None:
            if verify:
                self.verify(state)
            self.checksums.rewind(state['checksums'])
            self.pulled = np.full(self.num_envs, -1, np.int64)
            self._adopt(self.cursor)
        self._moved()
        for name, value in state['columns'].items():
            self._used(name).copy_(value)
        self.made_before(state)

    def made_before(self, state: dict[str, Any]) -> None:
        """Takes the files that the run of this state had created for its own, so that `discard` removes them too."""
        if self.path is not None:
            known = {path.name for path in self.storage.created}
            self.storage.created[:0] = [self.path if name == self.path.name else self.path / name for name in state['created'] if name not in known]

    def flush(self) -> None:
        self.sync()
        self.storage.flush()

    def close(self) -> None:
        """Lets go of the memory and the folder; what lies in it stays."""
        self.buffers, self.windows = {}, {}
        self.meta = self.reward = self.time = np.empty(0)
        self.action = self.frames = torch.empty(0)
        self.storage.close()

    def discard(self) -> None:
        """Removes the files that this replay created, and nothing else."""
        self.close()
        self.storage.discard()
