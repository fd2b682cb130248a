"""A data set class of the user's own: any that has a length and gives (image, label)."""
from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from Blocks.Vision import import_torchvision
from Datasets.Labelled.Readers import GREY, BadData, Found, Reader, as_bytes, held, pixels, reason, resized
from Utils import accepted, build, locate

SPLITS = {True: ('train', 'trainval'), False: ('test', 'val', 'valid')}  # what a constructor with `split` and without `train` is offered, in turn
MOST_CLASSES = 100_000  # that are believed of labels alone


def open_custom(recipe: Mapping[str, Any], train: bool, root: Path, image_size: int | None, stream: bool | None, download: bool,
                say: Callable[[str], None]) -> Found:
    """Reads every sample once, for the labels and to check them all.

    Classes are those of the `classes` attribute, else 0 … the greatest label of the training part.

    Raises:
        ValueError: it cannot be built, or a sample is not what was expected.
    """
    where = f'dataset={recipe["_target_"]}'
    data = construct(recipe, train, root, download, where)
    items = Items(data, where, image_size)
    told = chooses_part(recipe, where)
    if not train and not told:
        say(f'{where}: takes neither train nor split; all of it is for testing')
    images, labels = items.examine(stream)
    classes = getattr(data, 'classes', None)
    if isinstance(classes, list | tuple | np.ndarray) and len(classes):
        return Found(items, labels, [str(name) for name in classes], images)
    known = labels
    if not train and told:  # the test part may lack the last class
        known = Items(construct(recipe, True, root, download, where), where, image_size).examine(stream=True)[1]
    count = int(known.max(initial=-1)) + 1
    if count > MOST_CLASSES:
        raise BadData(f'{where}: label {count - 1} of sample {int(known.argmax())}; expected classes numbered from 0, or an attribute `classes`')
    return Found(items, labels, [str(label) for label in range(count)], images)


def chooses_part(recipe: Mapping[str, Any], where: str) -> bool:
    """Whether the class is told which part it is to be: by `train`, or by a `split` that the recipe leaves open."""
    names, anything = accepted(locate(recipe['_target_'], where))
    return any((name in names or anything) and name not in recipe for name in ('train', 'split'))


def construct(recipe: Mapping[str, Any], train: bool, root: Path, download: bool, where: str) -> Any:
    with contextlib.suppress(ImportError):
        import_torchvision()  # so that the user's module can import it too
    target = locate(recipe['_target_'], 'dataset')
    names, _ = accepted(target)
    offered: dict[str, Any] = {'root': str(root), 'train': train, 'download': download}
    open_split = 'split' in names and 'train' not in names and 'split' not in recipe
    tries = [{'split': split} for split in SPLITS[train]] if open_split else [{}]
    failed: Exception | None = None
    for split in tries:
        try:
            return sized(build(recipe, '', 'dataset', **offered, **split), where)
        except (BadData, MemoryError):
            raise
        except Exception as error:  # the user's own code
            if isinstance(error, ValueError) and str(error).startswith('dataset'):
                raise  # the recipe does not fit, which `build` says in one line
            failed = failed or error
            if not isinstance(error, ValueError):  # not about the name of the split
                break
    assert failed is not None
    raise BadData(f'{where}: its constructor fails ({reason(failed)})') from failed


def sized(data: Any, where: str) -> Any:
    """Raises ValueError where `data` cannot be a data set with a length."""
    for method in ('__len__', '__getitem__'):
        if not hasattr(data, method):
            raise BadData(f'{where}: {type(data).__name__} has no {method}; expected a data set with a length that gives (image, label) for an index')
    return data


class Items(Reader):
    """A user's data set, sample by sample.

    Args:
        data: has a length and gives (image, label); goes to workers as it is, and so must be picklable where those are spawned.
        where: the config key and class, for messages.
        image_size: see `load`.
    """

    def __init__(self, data: Any, where: str, image_size: int | None = None) -> None:
        self.data, self.where, self.image_size = data, where, image_size
        self.digest = ''
        try:
            self.length = len(data)
        except Exception as error:
            raise BadData(f'{where}: its length cannot be told ({reason(error)})') from error
        if self.length:
            first, _ = self.sample(0)
            self.shape, self.dtype = first.shape, first.dtype

    def __len__(self) -> int:
        return self.length

    def __call__(self, index: int) -> np.ndarray:
        return self.alike(index, self.sample(index)[0])

    def sample(self, index: int) -> tuple[np.ndarray, int]:
        try:
            pair = self.data[index]
        except MemoryError:
            raise
        except Exception as error:  # the user's own code
            raise BadData(f'{self.where}: sample {index} cannot be read ({reason(error)})') from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            what = f'{type(pair).__name__} of {len(pair)}' if isinstance(pair, tuple | list) else type(pair).__name__
            raise BadData(f'{self.where}: sample {index} is a {what}, expected (image, label)')
        try:
            return as_sample(pair[0], self.image_size), as_label(pair[1])
        except BadData as error:
            raise BadData(f'{self.where}: sample {index}: {error}') from error

    def alike(self, index: int, sample: np.ndarray) -> np.ndarray:
        if sample.shape != self.shape or sample.dtype != self.dtype:
            hint = '; image_size=N makes images N×N' if len(sample.shape) == len(self.shape) == 3 and len(sample) == self.shape[0] else ''
            raise BadData(f'{self.where}: samples differ: 0 has shape {self.shape} {self.dtype}, {index} has {sample.shape} {sample.dtype}{hint}')
        return sample

    def examine(self, stream: bool | None) -> tuple[np.ndarray | None, np.ndarray]:
        """(images where they are to be held, labels), after a look at every sample."""
        labels, digest = np.empty(len(self), np.int64), hashlib.blake2b(digest_size=16)
        images = np.empty((len(self), *self.shape), self.dtype) if len(self) and held(self, stream) else None
        for index in range(len(self)):
            sample, labels[index] = self.sample(index)
            digest.update(as_bytes(self.alike(index, sample)))
            if images is not None:
                images[index] = sample
        self.digest = digest.hexdigest()
        return images, labels

    def fingerprint(self) -> str:
        return self.digest


def as_sample(value: Any, image_size: int | None = None) -> np.ndarray:
    """A user's image as (C, H, W) uint8, or a vector as (D,) float32.

    Floats of images are 0–1. Of three dimensions, the channels are the one with 1, 3 or 4 entries; where the first and the last are such, the first
    of a tensor and the last of an array, as in torchvision.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, Image.Image):
        return pixels(value, 'L' if value.mode in GREY else 'RGB', image_size)
    tensor = isinstance(value, torch.Tensor)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    if not isinstance(value, np.ndarray):
        raise BadData(f'its image is a {type(value).__name__}, expected a Pillow image, an array or a tensor')
    floats = np.issubdtype(value.dtype, np.floating)
    if not (floats and value.ndim == 1 or (floats or value.dtype == np.uint8) and value.ndim in (2, 3)) or not value.size:
        raise BadData(f'its image is {value.dtype} of shape {value.shape}, expected uint8 or floats of shape (C, H, W), (H, W, C) or (H, W), '
                      'or a vector of floats')
    if value.ndim == 1:
        return as_vector(value, image_size)
    if floats:
        low, high = float(value.min()), float(value.max())
        if not (low >= 0 and high <= 1):
            raise BadData(f'its image has floats from {low:.4g} to {high:.4g}, expected 0 to 1, or uint8 (images are normalised later)')
        value = np.rint(value * 255).astype(np.uint8)
    if value.ndim == 2:
        value = value[None]
    elif value.shape[2] in (1, 3, 4) and not (tensor and value.shape[0] in (1, 3, 4)):
        value = value.transpose(2, 0, 1)
    value = np.array(value, order='C')
    return value if image_size is None else resized(value[None], image_size)[0]


def as_vector(value: np.ndarray, image_size: int | None) -> np.ndarray:
    if image_size is not None:
        raise BadData(f'image_size={image_size}: samples are vectors of {len(value)} numbers, which have no size in pixels')
    with np.errstate(over='ignore'):
        vector = value.astype(np.float32)
    if not np.isfinite(vector).all():
        raise BadData('its vector has entries that are NaN or infinite')
    return vector


def as_label(value: Any) -> int:
    """A whole number, alone or in an array or tensor of one. Raises: ValueError."""
    array = np.asarray(value.detach().cpu()) if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.dtype.kind not in 'iub' or array.size != 1 or int(array.item()) > np.iinfo(np.int64).max:
        shown = ' '.join(repr(value).split())
        raise BadData(f'its label is {shown[:60] + "…" * (len(shown) > 60)}, expected a whole number')
    return int(array.item())
