"""Labelled data as tasks: a step shows a sample, the action is a prediction, the reward is −error, and every step ends an episode.

An agent learns from such data without playing (`Datasets.Samples`), and is judged on every sample of the test set, once. It may also play: then it is a
bandit with contexts, for agents that learn from nothing else.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from Blocks.Losses import label_reward
from Datasets.Labelled import Source, Statistics, load, statistics
from Datasets.Samples import Reader, Samples, read_ahead
from Datasets.Specs import ActionSpec, ObsSpec
from Datasets.Suites.Suite import Suite, Transition, given
from Datasets.Transforms import Transforms
from Utils import free_cores

TEST_BATCH = 256


def make(task: str, num_envs: int, *, train: bool = True, num_threads: int = 0, **options: Any) -> Classify:
    """See `Classify` for the options; None leaves one at its default."""
    return Classify(task, num_envs, train=train, num_threads=num_threads, **given(options, Classify))


class Classify(Suite):
    """N lanes of one data set.

    Args:
        task: name of the set.
        num_envs: lanes.
        train: the training set; else the test set.
        num_threads: makes no difference here.
        root: folder of the data.
        dataset, test_dataset: recipes; see `Datasets.Labelled.load`.
        image_size: pixels to which images are resized and cut, square; None leaves them as they are.
        stream: read samples when they are needed instead of holding them in memory; None: by their size.
        num_workers: processes that read ahead what is not in memory; 'auto': the free cores, at most 4.
        discrete: the action is the class, worth 1 or 0; else a score in [−1, 1] for each class, tanh of the logits, worth minus their cross-entropy.

    Attributes:
        source: the data.

    Raises:
        ValueError, OSError: what `load` says of the data."""

    def __init__(self, task: str, num_envs: int, *, train: bool = True, num_threads: int = 0, root: str = 'Datasets/Downloads',
                 dataset: Mapping[str, Any] | None = None, test_dataset: Mapping[str, Any] | None = None, image_size: int | None = None,
                 stream: bool | None = None, num_workers: int | str = 'auto', discrete: bool = False) -> None:
        recipe = test_dataset if test_dataset and test_dataset.get('_target_') and not train else dataset
        recipe = {key: value for key, value in (recipe or {}).items() if value is not None and key != 'root'}
        self.source: Source = load(task, train=train, root=Path(root), dataset=recipe, image_size=image_size, stream=stream)
        self.labels, self.discrete = torch.from_numpy(self.source.labels), discrete
        self.num_workers = min(free_cores(), 4) if isinstance(num_workers, str) else num_workers
        classes = len(self.source.classes)
        moments = self.moments(Path(root)) if train else None  # those of the training data serve both
        images = len(self.source.shape) == 3
        low, high = (0.0, 255.0) if images else (moments.low, moments.high) if moments else (-np.inf, np.inf)
        super().__init__(name='classify', task=task, num_envs=num_envs, action_spec=ActionSpec(num_actions=classes) if discrete else ActionSpec((classes,)),
                         obs_spec=ObsSpec(self.source.shape, torch.uint8 if images else torch.float32, low, high,
                                          mean=moments.mean if moments else None,
                                          std=tuple(one or 1.0 for one in moments.std) if moments else None))  # 0: a channel that never changes
        self.shown = np.zeros(num_envs, np.int64)  # which sample each lane shows
        self.obs = np.zeros((num_envs, *self.source.shape), self.obs_spec.numpy_dtype)

    def moments(self, root: Path) -> Statistics:
        """Mean, deviation and range of the data, worked out once."""
        return statistics(self.source, root / 'statistics.json')

    def samples(self, **settings: Any) -> Samples:
        """The data to learn from; see `Samples`."""
        return Samples(self.source, self.action_spec, workers=self.num_workers, **settings)

    # --- rollouts

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        for lane, seed in zip(np.flatnonzero(mask), seeds, strict=True):
            self.shown[lane] = np.random.default_rng(seed).integers(len(self.source))
            self.obs[lane] = self.source.read(int(self.shown[lane]))
        return self.obs.copy()

    def send(self, actions: np.ndarray) -> None:
        self.sent = torch.from_numpy(actions)

    def recv(self) -> Transition:
        reward, ended = label_reward(self.sent, self.labels[self.shown]).numpy(), np.ones(self.num_envs, bool)
        return Transition(self.obs.copy(), reward, ended, np.zeros_like(ended), np.zeros_like(ended))

    # --- evaluation

    def batches(self, size: int = TEST_BATCH) -> Iterator[Tensor]:
        """Observations of every sample once, in order. Raises: ValueError: a file is corrupt."""
        places = ([(0, np.arange(start, min(start + size, len(self.source))))] for start in range(0, len(self.source), size))
        reader = Reader(self.source, Transforms({}, self.source.shape, 0))
        if self.source.images is not None or not self.num_workers:
            yield from map(reader.__getitem__, places)
            return
        for obs, _ in read_ahead(reader, places, self.num_workers, torch.device('cpu')):
            if isinstance(obs, str):
                raise ValueError(obs)
            yield obs

    def evaluate(self, predict: Callable[[Tensor], Tensor], stopped: Callable[[], bool] = lambda: False) -> np.ndarray | None:
        """Logits of every sample, (N, classes) float32; None when stopped before the last.

        Args:
            predict: observations → logits."""
        told = []
        for obs in self.batches():
            if stopped():
                return None
            told.append(predict(obs).float().cpu())
        return torch.cat(told).numpy()
