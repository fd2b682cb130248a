"""Labelled data as agents learn from them: what `Replay` is to experience, for data that were there before the run.

Shuffled passes, each sample once, in an order that depends on the seed and the number of the pass alone. Data that fit are held in memory once, as bytes;
others are read by worker processes, which work ahead. What comes out is the same, with any number of workers, and after a restart in the middle of a pass.
"""
from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import Parallel
from Datasets.Batch import Batch
from Datasets.Specs import ActionSpec
from Datasets.Transforms import Transforms

if TYPE_CHECKING:
    from Datasets.Labelled import Source

Places = list[tuple[int, np.ndarray]]  # of a batch: (pass, places in the data); two parts where one pass ends and the next begins


class Samples:
    """Reads `source` in batches.

    Args:
        source: the data.
        action_spec: of predictions; batches have actions, all 0, until an agent puts its own there.
        seed: of the order, the transforms' parameters and draws without a stream of their own.
        transform: recipe of `Transforms`, for the observations of passes.
        workers: processes that read ahead, where the data are not in memory.
        device: where batches go.

    Attributes:
        epochs: passes begun. bytes: that the data take in memory.

    Raises:
        ValueError: a transform that does not exist or does not fit; while reading, a file that is corrupt."""

    horizon_needed = 'a data set has no sequences of observations; of the losses there are, curl, byol and barlow_twins need none'

    def __init__(self, source: Source, action_spec: ActionSpec, *, seed: int, transform: Mapping[str, Any] | None = None, workers: int = 0,
                 device: torch.device | str = 'cpu') -> None:
        self.source, self.action_spec, self.seed, self.workers, self.device = source, action_spec, seed, workers, torch.device(device)
        self.reader = Reader(source, Transforms(transform or {}, source.shape, seed))
        self.bytes = 0 if source.images is None else source.images.nbytes
        self.capacity, self.store = len(source), 'memory' if source.images is not None else 'files'
        self.labels = torch.from_numpy(source.labels)
        self.position = 0  # samples handed out, over all passes
        self.ahead: Iterator[Any] | None = None  # batches that workers have begun
        self.batch_size = 0
        self.rng = np.random.default_rng((seed, len(source)))
        self.pool: ThreadPoolExecutor | None = None
        self.last: Batch | None = None
        self.checkpoints: list[Any] = []

    def __len__(self) -> int:
        return len(self.source)

    @property
    def epochs(self) -> int:
        return -(-self.position // len(self))

    def slack_used_up(self, steps: int = 1) -> bool:
        """Nothing is ever written over."""
        return False

    # --- batches

    def sample(self, n: int, nstep: int = 1, horizon: int = 0, rng: np.random.Generator | None = None) -> Batch:
        """The next n samples of a pass; or, with a stream, n uniform draws without transforms, which leave the pass alone.

        Raises: ValueError: a sequence is asked for."""
        if horizon:
            raise ValueError(f'horizon={horizon}: {self.horizon_needed}')
        if rng is not None:
            index = rng.integers(len(self), size=n)
            return self._batch(self._drawn(index), index)
        obs, index = self._next(n)
        self.position += n * Parallel.world_size
        return self._batch(obs, index)

    def _batch(self, obs: Tensor, index: np.ndarray) -> Batch:
        at = torch.from_numpy(index)
        obs, label = obs.to(self.device, non_blocking=True), self.labels[at].to(self.device, non_blocking=True)
        zero = torch.zeros(len(index), device=self.device)
        action = torch.zeros((len(index), *self.action_spec.shape), dtype=self.action_spec.dtype, device=self.device)
        self.last = Batch(obs=obs, action=action, reward=zero, discount=zero, next_obs=None, indices=at, weight=None, label=label)
        return self.last

    def _drawn(self, index: np.ndarray) -> Tensor:
        if self.source.images is not None:
            return self.reader.read(index)
        self.pool = self.pool or ThreadPoolExecutor(max(1, self.workers))
        return torch.from_numpy(np.stack(list(self.pool.map(self.source.read, index.tolist()))))

    def _next(self, n: int) -> tuple[Tensor, np.ndarray]:
        if self.source.images is not None or not self.workers:
            places = self.own_places(self.position, n)
            return self.reader[places], np.concatenate([index for _, index in places])
        if n != self.batch_size:
            self.batch_size, self.ahead = n, None
        try:
            obs, index = next(self._loader())
        except (RuntimeError, EOFError, OSError):  # a worker was killed, by a signal to all of a job's processes for one
            self.ahead = None
            obs, index = next(self._loader())
        if isinstance(obs, str):
            raise ValueError(obs)
        return obs, index

    def _loader(self) -> Iterator[Any]:
        """Batches from here on, read ahead by worker processes."""
        def requests() -> Iterator[Places]:
            position = self.position
            while True:
                yield self.own_places(position, self.batch_size)
                position += self.batch_size * Parallel.world_size

        if self.ahead is None:
            self.ahead = read_ahead(self.reader, requests(), self.workers, self.device)
        return self.ahead

    def own_places(self, position: int, n: int) -> Places:
        """Of a batch that all processes take together, n samples each, this one's."""
        return self.places(position + Parallel.rank * n, n)

    def places(self, position: int, n: int) -> Places:
        """Where the samples number `position` to `position + n` lie, counted over all passes."""
        parts = []
        while n:
            epoch, start = divmod(position, len(self))
            part = self.order(epoch)[start:start + n]
            parts.append((epoch, part))
            position, n = position + len(part), n - len(part)
        return parts

    def order(self, epoch: int) -> np.ndarray:
        """(N,) int64: the order of a pass."""
        if getattr(self, '_order', (-1, None))[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self))
        return self._order[1]

    # --- what a run asks of its replay

    def state_dict(self) -> dict[str, Any]:
        self.checkpoints = [self.position]
        return {'layout': self.layout, 'position': self.position, 'rng': self.rng.bit_generator.state}

    @property
    def layout(self) -> dict[str, Any]:
        """Which data these are."""
        return {'name': self.source.name, 'samples': len(self), 'shape': list(self.source.shape), 'classes': len(self.source.classes)}

    def continues(self, state: dict[str, Any]) -> bool:
        """Whether the state is of these data."""
        return state.get('layout') == self.layout

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position, self.ahead = state['position'], None
        self.rng.bit_generator.state = state['rng']

    def last_batch(self) -> dict[str, Tensor]:
        """The tensors of the last batch, by name."""
        return {name: x.clone() for name, x in vars(self.last).items() if isinstance(x, Tensor)} if self.last else {}

    def sync(self) -> None:
        """Nothing: the data are not ours to write."""

    def discard(self) -> None:
        self.close()

    def close(self) -> None:
        self.ahead = None
        if self.pool is not None:
            self.pool.shutdown()


class Reader(Dataset[Any]):
    """Batches by their places, in any process."""

    def __init__(self, source: Source, transforms: Transforms) -> None:
        self.source, self.transforms = source, transforms
        self.images = None if source.images is None else torch.from_numpy(source.images)

    def read(self, index: np.ndarray) -> Tensor:
        """(B, *shape)."""
        if self.images is not None:
            return self.images.index_select(0, torch.from_numpy(index))
        return torch.from_numpy(np.stack([self.source.read(int(i)) for i in index]))

    def __getitem__(self, places: Places) -> Tensor:
        parts = [(epoch, index, self.read(index)) for epoch, index in places]
        if self.transforms:
            parts = [(epoch, index, self.transforms(images, epoch, index, len(self.source))) for epoch, index, images in parts]
        return parts[0][2] if len(parts) == 1 else torch.cat([images for *_, images in parts])


class Told(Dataset[Any]):
    """A reader for worker processes, which hand on what is wrong as its message: an exception would arrive with a traceback in it."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, places: Places) -> tuple[Tensor | str, np.ndarray]:
        index = np.concatenate([index for _, index in places])
        try:
            return self.reader[places], index
        except (ValueError, OSError) as error:
            return str(error), index


class Requests(torch.utils.data.Sampler[Any]):
    """Hands on what an iterator yields."""

    def __init__(self, requests: Iterator[Places]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[Places]:
        return self.requests


def read_ahead(reader: Reader, requests: Iterator[Places], workers: int, device: torch.device) -> Iterator[Any]:
    """What `reader` makes of requests, and their places, in worker processes. A message instead of a batch says what was wrong."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'This DataLoader will create')  # more workers than cores: they were asked for
        return iter(DataLoader(Told(reader), batch_size=None, sampler=Requests(requests), num_workers=workers, pin_memory=device.type == 'cuda',
                               worker_init_fn=begin, collate_fn=lambda batch: batch))


def begin(worker: int) -> None:
    """Workers share the cores with one another and with the learner, to which they leave Ctrl-C."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
