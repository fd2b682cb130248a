"""A labelled data set, whatever it came from."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from Datasets.Labelled.Custom import open_custom
from Datasets.Labelled.Readers import BadData, Found, Reader, held
from Datasets.Labelled.Sets import SETS
from Datasets.Suites.Names import nearest, squash
from Utils import require

MANY = 10_000  # files, from which on decoding them all takes long enough to say so


@dataclass(eq=False)
class Source:
    """Images or vectors with labels. Goes to loader workers, forked or pickled.

    Attributes:
        name: 'cifar10'.
        classes: names; the index is the label.
        labels: (N,) int64.
        shape: (C, H, W) of a sample, or (D,) of vectors.
        images: (N, *shape) uint8, of vectors float32, C-contiguous; None where samples are read one by one.
        reader: reads them then.
    """

    name: str
    classes: list[str]
    labels: np.ndarray
    shape: tuple[int, ...]
    images: np.ndarray | None
    reader: Reader | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> np.ndarray:
        """A sample of its own: (C, H, W) uint8, or (D,) float32. Raises: ValueError: names the file or index that cannot be read."""
        if self.images is not None:
            return self.images[index].copy()
        assert self.reader is not None
        return self.reader(index)


def names() -> list[str]:
    """Every set that has a name, sorted."""
    return sorted(SETS)


def find(name: str) -> str:
    """The canonical name: `FashionMNIST` is `fashion_mnist`. Raises: ValueError: there is no such set; names the nearest."""
    for known in SETS:
        if squash(known) == squash(name):
            return known
    close = ', '.join(f'classify/{known}' for known in nearest(name, SETS) or names())
    raise ValueError(f'task=classify/{name}: no such data set; nearest: {close}; a class of your own is dataset._target_=my_package.MyData')


def load(name: str, *, train: bool, root: Path, dataset: Mapping[str, Any] | None = None, image_size: int | None = None, stream: bool | None = None,
         download: bool = True, say: Callable[[str], None] = print) -> Source:
    """Finds a data set, fetches it if need be, reads and checks it.

    Args:
        name: one of `names()`, in any spelling; with a recipe, what the set shall be called.
        train: the training part, else the part for testing.
        root: what torchvision calls root, `<root>/MNIST/raw/…`; of `folder` and `imagenet`, the folder in which `train` lies.
        dataset: a recipe `{'_target_': 'my_package.MyData', …}` of any class that has a length and gives (image, label); its constructor is offered
            `root`, `train`, `download`, or `split` if it has no `train`. Without a target, options of the named set, such as EMNIST's
            `{'split': 'letters'}`. Every sample of a class is read once here; held in memory, what its transforms drew then stays.
        image_size: pixels. The shorter side becomes so long, antialiased, and the middle is cut out. None leaves sizes, which must agree.
        stream: reads samples one by one; None holds a set of up to `Readers.HELD` bytes in memory. What torchvision itself reads as one array stays that.
        download: may fetch what is missing.
        say: is told what takes long.

    Raises:
        ValueError: an unknown name or option, or data that are not as they should be; names the file or index.
        FileNotFoundError: the data are not there and cannot be fetched; says what to put where.
    """
    if image_size is not None:
        require(not isinstance(image_size, bool) and isinstance(image_size, int) and image_size >= 1, 'image_size', image_size, 'pixels, at least 1, or null')
    root = Path(root).expanduser()
    options = dict(dataset or {})
    if options.get('_target_'):
        where = f'dataset={options["_target_"]}'
        found = open_custom(options, train, root, image_size, stream, download, say)
    else:
        options.pop('_target_', None)
        name = find(name)
        where = f'task=classify/{name}'
        found = SETS[name](name, train, options).load(root, image_size, download, say)
    return source(name, found, stream, where, say)


def source(name: str, found: Found, stream: bool | None, where: str, say: Callable[[str], None]) -> Source:
    """Checks what was found, and takes it into memory."""
    reader, images = found.reader, found.images
    labels = checked(found, where)
    if images is None and held(reader, stream):
        if reader.threads > 1 and len(reader) >= MANY:
            say(f'{where}: decoding {len(reader)} images into memory ({len(reader) * np.prod(reader.shape) / 1e9:.1f} GB)')
        images = reader.read_all()
    elif images is None:
        reader.check_sizes()
    return Source(name, found.classes, labels, tuple(int(size) for size in reader.shape), images, reader if images is None else None)


def checked(found: Found, where: str) -> np.ndarray:
    """(N,) int64 labels. Raises: ValueError: there are none, other than images, or one is not that of a class."""
    labels, count = np.asarray(found.labels), len(found.reader)
    if not count:
        raise BadData(f'{where}: the set is empty')
    if labels.shape != (count,):
        raise BadData(f'{where}: {count} images but labels of shape {labels.shape}')
    if labels.dtype.kind not in 'iub':
        raise BadData(f'{where}: labels are {labels.dtype}, expected whole numbers')
    wrong = np.flatnonzero((labels < 0) | (labels >= len(found.classes)))
    if wrong.size:
        raise BadData(f'{where}: sample {wrong[0]} has label {labels[wrong[0]]}, expected 0 to {len(found.classes) - 1}, as many as classes')
    return np.ascontiguousarray(labels, np.int64)
