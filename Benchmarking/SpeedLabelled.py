"""Our side of the rows of `make bench` about data sets: learning, reading ahead, memory. The rows are in SpeedRows.py."""
from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CLASSES = 10


class SmallEyes(nn.Module):
    """What the plain small network has before its last layer: convolutions of 32 and 64, 3×3 stride 2, and a linear of 128."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(input_shape[0], 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 36, 128),
                                    nn.ReLU())
        self.output_shape = (128,)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def source(shape: tuple[int, ...], count: int, stream: bool = False) -> Any:
    """Random images, as those of the plain loop."""
    from Datasets.Labelled import Source
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (count, *shape), np.uint8), rng.integers(0, CLASSES, count)
    reader: Any = Decoded(images) if stream else None
    return Source('random', [str(k) for k in range(CLASSES)], labels, shape, None if stream else images, reader)


class Decoded:
    """Images as PNG, decoded when they are read: what loader workers do for a folder."""

    def __init__(self, images: np.ndarray) -> None:
        import io

        from PIL import Image
        self.files = []
        for image in images:
            file = io.BytesIO()
            Image.fromarray(image.transpose(1, 2, 0)).save(file, 'PNG')
            self.files.append(file.getvalue())

    def __call__(self, index: int) -> np.ndarray:
        import io

        from PIL import Image
        return np.ascontiguousarray(np.asarray(Image.open(io.BytesIO(self.files[index]))).transpose(2, 0, 1))


def classifying(shape: tuple[int, ...], count: int, *overrides: str, stream: bool = False, workers: int = 0) -> Callable[[Any], Any]:
    """All that a run with RL=false does for a batch of 256: draw, update. The network is the plain loop's: eyes, average, one linear."""
    def build(bench: Any) -> Any:
        from Benchmarking.SpeedWorks import counted, made_agent
        from Datasets.Samples import Samples
        from Datasets.Specs import ActionSpec, ObsSpec
        action_spec = ActionSpec((CLASSES,))
        specs = ObsSpec(shape, torch.uint8), action_spec
        agent = made_agent(specs, ('task=classify/mnist', 'Agent=Agents.DQN', 'RL=false', 'batch_size=256', 'encoder=cnn', 'Pi_trunk=Null', 'agent.depth=0',
                                   'lr=1e-3', 'weight_decay=0',
                                   *overrides))
        samples = Samples(source(shape, count, stream), action_spec, seed=0, workers=workers)
        bench.after.callback(samples.close)
        return counted(lambda: agent.improve(samples), 256)
    return build


def cifar_memory(bench: Any) -> float:
    """MB that a process takes for 50,000 images of CIFAR-10's files beyond what it took before: loaded, summarised, and drawn from."""
    folder = Path(bench.folder) / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f'data_batch_{k}' for k in range(1, 6)), 'test_batch'):
        with (folder / name).open('wb') as file:
            pickle.dump({'data': rng.integers(0, 256, (10_000, 3072), np.uint8), 'labels': (np.arange(10_000) % 10).tolist()}, file)
    with (folder / 'batches.meta').open('wb') as file:
        pickle.dump({'label_names': [str(k) for k in range(10)]}, file)
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    process = context.Process(target=resident, args=(str(bench.folder), theirs))
    process.start()
    grown = ours.recv()
    process.join()
    return grown


def resident(root: str, pipe: Any) -> None:
    """That process."""
    import psutil

    from Blocks.Vision import import_torchvision
    from Datasets.Labelled import load, statistics
    from Datasets.Samples import Samples
    from Datasets.Specs import ActionSpec
    cifar = import_torchvision('datasets').CIFAR10
    cifar._check_integrity = lambda self: True  # the files are random
    cifar._load_meta = lambda self: setattr(self, 'classes', [str(k) for k in range(10)])
    me = psutil.Process()
    load('digits', train=True, root=Path(root))  # what reading any set imports
    torch.rand(256, 3072).to(torch.uint8)
    before = me.memory_info().rss
    found = load('cifar10', train=True, root=Path(root), download=False)
    statistics(found, None)
    samples = Samples(found, ActionSpec((10,)), seed=0)
    for _ in range(20):
        samples.sample(256)
    pipe.send((me.memory_info().rss - before) / 1e6)
