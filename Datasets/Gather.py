"""From indices to tensors: the reading half of the replay."""
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from Datasets.Batch import Batch, Rollout, Sequence
from Datasets.Layout import EmptyReplay, Extra, Ring
from Datasets.Specs import ActionSpec, ObsSpec
from Datasets.Storage import Storage

# `meta` packs what is known of a row into one int32, so that a draw looks up one number per sample: age (steps since the episode's first row)
# above AGE bits of flags. ENDED and LAST rows carry whether the episode terminated (DEAD), so a bootstrap row alone tells the discount.
DEAD, LAST, FIRST, TERMINATED, TRUNCATED = 1, 2, 4, 8, 16
ENDED, AGE = TERMINATED | TRUNCATED, 5
NONE = np.empty(0, np.int64)
SHAPES = 12  # of batches that buffers are kept for


class Window:
    """A kept buffer of `batch` windows of `count` frames, with the views that are handed out."""
    def __init__(self, batch: int, count: int, spec: ObsSpec, words: torch.dtype, device: torch.device):
        self.typed = torch.empty((batch, count * spec.shape[0], *spec.shape[1:]), dtype=spec.dtype, device=device)
        self.words = self.typed.view(batch, count * math.prod(spec.shape)).view(words)
        self.frames = self.words.view(batch * count, self.words.shape[1] // count)
        self.count = count
        stacked = spec.stacked_shape[0]
        self.obs, self.next_obs = self.typed[:, :stacked], self.typed[:, -stacked:]
        steps = count - spec.frame_stack + 1
        rest = self.typed.stride()[1:]
        self.stacks = self.typed.as_strided((batch, steps, *spec.stacked_shape), (self.typed.stride(0), spec.shape[0] * rest[0], *rest))


class Gather:
    """What lies where, and how it is read: the part of the replay that knows of frames and stacks, but not of drawing or keeping."""
    obs_spec: ObsSpec
    action_spec: ActionSpec
    ring: Ring
    storage: Storage
    extras: dict[str, Extra]
    num_envs: int
    mode: str
    discount: float
    reward_clip: float | None
    path: Path | None
    cursor: np.ndarray  # the open row of each lane, -1 before the first
    open: np.ndarray  # its flat position
    kept: int  # buffers per shape
    last: Batch | None = None
    bonus_scale = 0.0  # by which the column `bonus`, if there is one, is added to the rewards of `gather`

    def _nonempty(self) -> None:
        raise NotImplementedError

    def _bounds(self) -> tuple:
        raise NotImplementedError

    def _bind(self) -> None:
        """Shortcuts into the columns: numpy for bookkeeping, rows of words for frames."""
        data = self.storage.data
        self.meta, self.reward, self.time = (data[name].numpy() for name in ('meta', 'reward', 'time'))
        self.action, frames = data['action'], data['obs']
        self.bonus = data['bonus'].numpy() if 'bonus' in data else None
        self.beside = [name for name in self.extras if name != 'bonus']  # what lies with actions, not with rewards
        frames = frames.view(len(frames), -1)
        row_bytes = frames.shape[1] * frames.element_size()
        words = next(dtype for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8) if row_bytes % dtype.itemsize == 0)
        self.frames, self.device = frames.view(words), frames.device
        self.reward_range = [np.array([sign * (self.reward_clip or 0)], np.float32) for sign in (-1, 1)]
        self.on_host, self.frame_dtype = self.device.type == 'cpu', self.obs_spec.numpy_dtype
        self.windows: dict[int, torch.Tensor] = {}  # overlapping views of the frames, by length
        self.buffers: dict[tuple, list[Window]] = {}
        self.weights: dict[int, torch.Tensor] = {}
        self.tables: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    @staticmethod
    def _put(column: np.ndarray, at: np.ndarray, values: np.ndarray, twins: tuple[np.ndarray, np.ndarray] | None) -> None:
        """Bookkeeping of the rows at `at`, and of those among them that lie twice."""
        column[at] = values
        if twins is not None:
            column[twins[0]] = values[twins[1]]

    def _frames(self, at: np.ndarray, obs: np.ndarray, twins: tuple[np.ndarray, np.ndarray] | None) -> None:
        rows = torch.from_numpy(np.ascontiguousarray(obs).reshape(len(at), -1)).view(self.frames.dtype)
        if twins is not None:
            at, rows = np.concatenate([at, twins[0]]), torch.cat([rows, rows[torch.from_numpy(twins[1])]])
        self.frames.index_copy_(0, self._on(at), rows if self.on_host else rows.to(self.device))

    def _payload(self, name: str, at: np.ndarray, values: Any) -> None:
        column = self.storage.data[name]
        column.index_copy_(0, self._on(at), torch.as_tensor(values).to(column.device, column.dtype))

    def _slots(self, name: str, at: np.ndarray) -> np.ndarray:
        """Where a column keeps the values of the rows at `at`: beside them, or one per unroll."""
        every = self.extras[name].every
        if every == 1:
            return at
        rows = self.storage.columns[name].rows
        return at // self.ring.physical * rows + self.time[at] // every % rows

    def _on(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.on_host else tensor.to(self.device)

    # Gathering

    def _table(self, nstep: int) -> tuple[np.ndarray, np.ndarray]:
        """-> γ⁰ … γⁿ float32, and (γⁿ, 0) by whether the bootstrap row is DEAD."""
        key = nstep, self.discount
        if key not in self.tables:
            powers = (np.float64(self.discount) ** np.arange(nstep + 1)).astype(np.float32)
            self.tables[key] = powers, np.array([powers[-1], 0], np.float32)
        return self.tables[key]

    def gather(self, indices: Any, nstep: int = 1, horizon: int = 0) -> Batch:
        """What was experienced at `indices`. The tensors' memory is used again after `buffers` gathers of the same shape.

        Args:
            indices: (B,) int64, from `draw`.
            nstep: steps of the return; fewer where the episode ends or its newest observation comes first.
            horizon: transitions of `sequence`; 0: none.
        """
        index = numpy_of(indices)
        ring, size = self.ring, len(index)
        powers, bootstrap = self._table(nstep)
        # Window i … i + nstep lies in one episode, and its first stack too, exactly if the bootstrap row is old enough
        following = index + nstep
        if nstep <= ring.window:
            code = self.meta.take(following)
            short = code < (ring.pad + nstep << AGE)
            if self.mode == 'read':  # nothing marks the rows behind what a reader has seen
                short |= (self.open[index // ring.physical] - index) % ring.length < nstep
            rest = short.nonzero()[0] if np.count_nonzero(short) else NONE
        else:
            code, rest = np.zeros(size, np.int32), np.arange(size)
        if nstep == 1:
            reward = self._rewards(index)
        elif len(rest) == size:
            reward = np.empty(size, np.float32)
        else:
            reward = self._rewards(index[:, None] + np.arange(nstep)) @ powers[:nstep]
        discount = bootstrap.take(code & DEAD)
        cut, back = False, None
        steps = NONE
        if len(rest) and nstep == 1:
            steps, codes = np.ones(len(rest), np.int64), self.meta[index[rest]]
            discount[rest] = powers[1] * self._alive(codes, code[rest])
            back = codes >> AGE
        elif len(rest):
            steps, alive, later = self._steps(index[rest], nstep)
            inside = np.arange(nstep) < steps[:, None]
            reward[rest] = (self._rewards(later[:, :-1]) * inside) @ powers[:nstep]
            discount[rest] = powers[steps] * alive
            following[rest] = later[np.arange(len(rest)), steps]
            cut, back = not inside.all(), self.meta[index[rest]] >> AGE
        obs, next_obs, sequence = self._observations(index, following, nstep, horizon, rest, back, steps, cut)
        at = self._on(index)
        extras = {name: self.storage.data[name].index_select(0, self._on(self._slots(name, index))) for name in self.beside}
        self.last = Batch(obs, self.action.index_select(0, at), self._on(reward), self._on(discount), next_obs, torch.from_numpy(index),
                          self._weight(size), extras.pop('label', None), sequence, extras)
        return self.last

    def _rewards(self, positions: np.ndarray) -> np.ndarray:
        """What the n-step return sums up: clipped rewards, and bonuses."""
        reward = self._clipped(positions)
        return reward if self.bonus is None or not self.bonus_scale else reward + np.float32(self.bonus_scale) * self.bonus.take(positions)

    def _clipped(self, positions: np.ndarray) -> np.ndarray:
        reward = self.reward.take(positions)
        return reward if self.reward_clip is None else np.clip(reward, *self.reward_range)

    def _weight(self, size: int) -> torch.Tensor:
        """Importance weights: all 1 as long as draws are uniform."""
        weights = self.weights.get(size)
        if weights is None:
            weights = self.weights[size] = torch.ones(size, device=self.device)
        return weights

    def _steps(self, index: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each of F rows: (F,) transitions until its episode ends or the open row comes, at most `limit`; (F,) is there something to bootstrap
        from; (F, limit + 1) positions of the row and those after it."""
        later = self.ring.later(index[:, None], np.arange(limit + 1))
        codes = self.meta.take(later)
        ends = (codes & ENDED) != 0
        ends[:, limit - 1] = True
        steps = np.minimum(ends.argmax(1) + 1, (self.open[index // self.ring.physical] - index) % self.ring.length)
        rows = np.arange(len(index))
        return steps, self._alive(codes[rows, steps - 1], codes[rows, steps]), later

    @staticmethod
    def _alive(codes: np.ndarray, following: np.ndarray) -> np.ndarray:
        """Whether the row that follows a transition is something to bootstrap from: one of the same episode, unless that has terminated."""
        return ((codes & ENDED) == 0) | ((codes & TERMINATED) == 0) & Gather._final(following)

    @staticmethod
    def _final(codes: np.ndarray) -> np.ndarray:
        """Whether rows are final observations of the rows before them; one that was first and left behind is not."""
        return (codes & (LAST | FIRST)) == LAST

    def _observations(self, index: np.ndarray, following: np.ndarray, nstep: int, horizon: int, rest: np.ndarray, back: np.ndarray | None,
                      steps: np.ndarray, cut: bool) -> tuple[torch.Tensor, torch.Tensor, Sequence | None]:
        """-> obs, next_obs, sequence | None. `rest`: samples near an end of their episode or of the ring, with `back` rows of the episode
        before them and `steps` to their bootstrap row; `cut`: some of those are fewer than nstep."""
        stack, pad = self.obs_spec.frame_stack, self.ring.pad
        if horizon:
            return self._with_sequence(index, following, horizon, rest, back, steps)
        if nstep <= pad and not cut:  # both stacks in one read
            window = self._read(index - pad, stack + nstep)
            if back is not None:
                self._pad(window, rest, back)
            return window.obs, window.next_obs, None
        window, next_window = self._read(index - pad, stack), self._read(following - pad, stack, 'next')
        if back is not None:
            self._pad(window, rest, back)
            self._pad(next_window, rest, back + steps)
        return window.obs, next_window.obs, None

    def _with_sequence(self, index: np.ndarray, following: np.ndarray, horizon: int, rest: np.ndarray, back: np.ndarray | None,
                       steps: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, Sequence]:
        """obs is the head of the sequence's own window."""
        ring, size = self.ring, len(index)
        length, _, later = self._steps(index, horizon)
        mask = np.arange(horizon) < length[:, None]
        rows = np.arange(size)
        ended, final = (self.meta[later[rows, length - 1]] & ENDED) != 0, self._final(self.meta[later[rows, length]])
        real = np.arange(horizon + 1) < (length + (~ended | final))[:, None]
        window = self._read(index - ring.pad, ring.pad + horizon + 1, 'sequence')
        nothing = (~real).nonzero()
        if len(nothing[0]):
            window.frames.index_fill_(0, self._on(nothing[0] * window.count + nothing[1] + ring.pad), 0)
        next_window = self._read(following - ring.pad, self.obs_spec.frame_stack, 'next')
        self._pad(window, np.arange(size), self.meta[index] >> AGE)
        if back is not None:
            self._pad(next_window, rest, back + steps)
        action = self.action.index_select(0, self._on(later[:, :-1].reshape(-1))).view(size, horizon, *self.action_spec.shape)
        keep = self._on(mask)
        action = torch.where(keep.view(size, horizon, *[1] * len(self.action_spec.shape)), action, torch.zeros_like(action))
        reward = self._on(self._clipped(later[:, :-1]) * mask)
        sequence = Sequence(window.stacks, action, reward, keep.float(), self._on(real.astype(np.float32)))
        return window.obs, next_window.obs, sequence

    def _read(self, start: np.ndarray, count: int, kind: str = 'obs') -> Window:
        """Frames `start` … `start + count - 1` of each sample, into a kept buffer. `start` is flat and within its lane."""
        ring, key = self.ring, (kind, len(start), count)
        kept = self.buffers.get(key)
        if kept is None:
            if len(self.buffers) >= SHAPES:  # the shape used longest ago
                del self.buffers[next(iter(self.buffers))]
            kept = self.buffers[key] = []
        window = Window(len(start), count, self.obs_spec, self.frames.dtype, self.device) if len(kept) < self.kept else kept.pop(0)
        kept.append(window)
        if count <= ring.pad + ring.window + 1:
            rows = self.windows.get(count)
            if rows is None:
                words = self.frames.shape[1]
                rows = self.windows[count] = self.frames.as_strided((len(self.frames) - count + 1, count * words), (words, 1))
            torch.index_select(rows, 0, self._on(start), out=window.words)
        else:  # longer than what lies twice
            each = ring.later(start[:, None] + ring.pad, np.arange(count) - ring.pad)
            torch.index_select(self.frames, 0, self._on(each.reshape(-1)), out=window.frames)
        return window

    def _pad(self, window: Window, samples: np.ndarray, back: np.ndarray) -> None:
        """Frames from before the episode's first row: zeros, or the first frame again. `back`: (F,) age of the stack's newest frame."""
        missing = self.ring.pad - back
        if not np.count_nonzero(missing > 0):
            return
        which, frame = (np.arange(self.ring.pad) < missing[:, None]).nonzero()
        before = self._on(samples[which] * window.count + frame)
        if self.obs_spec.stack_pad == 'zeros':
            window.frames.index_fill_(0, before, 0)
        else:
            first = self._on(samples[which] * window.count + missing[which])
            window.frames.index_copy_(0, before, window.frames.index_select(0, first))

    def last_batch(self) -> dict[str, torch.Tensor]:
        """The tensors of the batch gathered last, by name: to look at when a loss was not finite."""
        if self.last is None:
            return {}
        sequence = vars(self.last.sequence) if self.last.sequence else {}
        fields = {**vars(self.last), **self.last.extras, **{f'sequence.{name}': value for name, value in sequence.items()}}
        return {name: x.clone() for name, x in fields.items() if isinstance(x, torch.Tensor)}

    def observations(self, indices: Any) -> torch.Tensor:
        """The observations at `indices`, (B, *stacked), in memory that is used again after `buffers` calls for as many. `open`: what the lanes show now."""
        index = numpy_of(indices)
        return self._stacks(index, self.meta.take(index) >> AGE, 'observations')

    def latest(self, steps: int, obs: bool = True) -> Rollout:
        """The newest `steps` transitions of every lane in time order. A final observation takes a row: 2 · `steps` rows a lane always hold them, as do
        `steps` ≤ `window`.

        Args:
            obs: False leaves `obs` and `bootstrap_obs` empty, for who reads parts of them with `observations`.

        Raises:
            EmptyReplay: a lane holds fewer.
        """
        self._nonempty()
        ring, lanes = self.ring, np.arange(self.num_envs)
        oldest = np.maximum(self._bounds()[0] - (ring.window if self.mode == 'write' else 0), 0)
        reach = int(min(2 * steps, (self.cursor - oldest).max()))  # at worst every transition has a final row
        rows = self.cursor[:, None] - 1 - np.arange(reach)
        codes = self.meta[ring.positions(lanes[:, None], rows)]
        there = (rows >= oldest[:, None]) & ((codes & LAST) == 0)
        there &= there.cumsum(1) <= steps
        if (there.sum(1) < steps).any():
            raise EmptyReplay(f'latest({steps}): lanes hold {there.sum(1).min()} transitions; act more before learning (learn_per_steps), '
                              'or raise replay.capacity')
        rows = rows[there].reshape(self.num_envs, steps)[:, ::-1]
        index = np.ascontiguousarray(ring.positions(lanes[:, None], rows)).reshape(-1)
        codes = self.meta[index]
        ended, follow = (codes & ENDED) != 0, ring.later(index, 1)
        alive = self._alive(codes, self.meta[follow])
        newest = np.arange(1, self.num_envs + 1) * steps - 1
        cut = (ended & alive).nonzero()[0]

        def shaped(x: torch.Tensor) -> torch.Tensor:
            return x.view(self.num_envs, steps, *x.shape[1:])

        def flag(bit: int) -> torch.Tensor:
            return shaped(self._on((codes & bit) != 0))

        extras = {}
        for name in self.beside:
            extra = self.extras[name]
            slots = self._slots(name, index).reshape(self.num_envs, steps)
            if extra.every > 1:  # the same transitions begin an unroll in all lanes
                slots = slots[:, np.flatnonzero(np.diff(slots[0], prepend=-1))]
            value = self.storage.data[name].index_select(0, self._on(np.ascontiguousarray(slots).reshape(-1)))
            extras[name] = value.view(self.num_envs, -1, *extra.shape)
        nothing = torch.empty(0, *self.obs_spec.stacked_shape, dtype=self.obs_spec.dtype, device=self.device)
        return Rollout(shaped(self._stacks(index, codes >> AGE, 'latest')) if obs else nothing, shaped(self.action.index_select(0, self._on(index))),
                       shaped(self._on(self._rewards(index))), flag(TERMINATED), flag(TRUNCATED), flag(FIRST),
                       shaped(self._on(np.where(alive, np.float32(self.discount), np.float32(0)))),
                       self._stacks(follow[newest], (codes[newest] >> AGE) + 1, 'bootstrap') if obs else nothing,
                       self._stacks(follow[cut], (codes[cut] >> AGE) + 1, 'final'), self._on(cut),
                       torch.from_numpy(index).view(self.num_envs, steps), extras)

    def _stacks(self, index: np.ndarray, back: np.ndarray, kind: str) -> torch.Tensor:
        window = self._read(index - self.ring.pad, self.obs_spec.frame_stack, kind)
        self._pad(window, np.arange(len(index)), back)
        return window.obs


def numpy_of(value: Any) -> np.ndarray:
    """The same numbers on the host."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
