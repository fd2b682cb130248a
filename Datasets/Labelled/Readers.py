"""Where samples are read from: an array, image files, a data set of the user's own. Readers travel to loader workers, forked or pickled."""
from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image

from Blocks.Vision import import_torchvision
from Utils import free_cores

HELD = 2 << 30  # bytes of samples; a larger set is read one by one. tiny_imagenet (1.2 GB) and CelebA at 64×64 (2.0 GB) are held
CHUNK = 64  # samples that are decoded or resized at a time
GREY = ('1', 'L', 'I;16', 'I;16B', 'I;16L')  # Pillow's modes of one channel
T = TypeVar('T')
R = TypeVar('R')


class BadData(ValueError):
    """The data are not what they should be; says which file or sample."""


class Reader:
    """Gives one sample at a time.

    Attributes:
        shape: (C, H, W) of each sample, or (D,).
        dtype: uint8, or float32 where samples are vectors.
        threads: how many may read at the same time.
    """

    shape: tuple[int, ...] = ()
    dtype: np.dtype = np.dtype(np.uint8)
    threads = 1

    def __len__(self) -> int:
        raise NotImplementedError

    def __call__(self, index: int) -> np.ndarray:
        """A sample, (*shape), an array of its own. Raises: ValueError: names the file or index that cannot be read."""
        raise NotImplementedError

    def read_all(self) -> np.ndarray:
        """(N, *shape), C-contiguous."""
        samples, at = np.empty((len(self), *self.shape), self.dtype), 0
        for chunk in self.chunks():
            samples[at:at + len(chunk)] = chunk
            at += len(chunk)
        return samples

    def chunks(self) -> Iterator[np.ndarray]:
        """All samples in order, (≤ CHUNK, *shape) at a time."""
        def chunk(start: int) -> np.ndarray:
            return np.stack([self(index) for index in range(start, min(start + CHUNK, len(self)))])

        return ahead(chunk, range(0, len(self), CHUNK), self.threads)

    def fingerprint(self) -> str:
        """Differs where the samples do."""
        raise NotImplementedError

    def check_sizes(self) -> None:
        """Raises ValueError when samples differ in size, as far as that is known without decoding them."""


def ahead(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map(work, items)`, done by threads that run no further ahead than twice their number: what is not yet wanted takes memory."""
    if threads <= 1:
        yield from map(work, items)
        return
    pool, waiting = ThreadPoolExecutor(threads), deque[Future[R]]()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Arrays(Reader):
    """Samples that are in memory already, as one array.

    Args:
        samples: (N, C, H, W) uint8 in any order of strides.
        image_size: see `load`; they are resized when they are read.
    """

    def __init__(self, samples: np.ndarray, image_size: int | None = None) -> None:
        self.samples, self.image_size = samples, image_size
        self.shape = samples.shape[1:] if image_size is None else (samples.shape[1], image_size, image_size)
        if samples.dtype != np.uint8 or samples.ndim != 4:
            raise BadData(f'images are {samples.dtype} of shape {samples.shape}, expected uint8 of shape (N, C, H, W)')

    def __len__(self) -> int:
        return len(self.samples)

    def __call__(self, index: int) -> np.ndarray:
        sample = np.array(self.samples[index], order='C')
        return sample if self.image_size is None else resized(sample[None], self.image_size)[0]

    def chunks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), CHUNK):
            chunk = np.array(self.samples[start:start + CHUNK], order='C')
            yield chunk if self.image_size is None else resized(chunk, self.image_size)

    def read_all(self) -> np.ndarray:
        return in_order(self.samples) if self.image_size is None else super().read_all()

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(str((self.samples.shape, self.image_size)).encode(), digest_size=16)
        for start in range(0, len(self), CHUNK):
            digest.update(as_bytes(self.samples[start:start + CHUNK]))
        return digest.hexdigest()


def in_order(images: np.ndarray) -> np.ndarray:
    """C-contiguous; square images of which only rows and columns are exchanged in memory (STL10, SVHN) are turned where they lie, without a second copy."""
    turned = images.swapaxes(2, 3)
    if images.flags.c_contiguous or not (turned.flags.c_contiguous and turned.flags.writeable and images.shape == turned.shape):
        return np.ascontiguousarray(images)
    for start in range(0, len(images), CHUNK):
        turned[start:start + CHUNK] = images[start:start + CHUNK].copy()
    return turned


class Files(Reader):
    """Image files, decoded when they are read.

    Args:
        mode: 'RGB' or 'L', Pillow's name of what every image is converted to.
        image_size: see `load`.
        alike: they are known to have one size.
    """

    def __init__(self, paths: Sequence[str], mode: str = 'RGB', image_size: int | None = None, alike: bool = False) -> None:
        # One block of bytes: of a list of strings, forked workers would come to own a copy of every page.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.mode, self.image_size, self.alike = mode, image_size, alike
        self.threads = min(free_cores(), 16)
        self.shape = self.decoded(0).shape if len(self) else ()

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def decoded(self, index: int) -> np.ndarray:
        def decode(image: Image.Image) -> np.ndarray:
            return pixels(image, self.mode, self.image_size)

        return opened(self.path(index), decode)

    def __call__(self, index: int) -> np.ndarray:
        image = self.decoded(index)
        if image.shape != self.shape:
            raise self.differ(index, image.shape[1:])
        return image

    def differ(self, index: int, size: tuple[int, ...]) -> BadData:
        height, width = self.shape[1:]
        return BadData(f'images differ in size: {self.path(0)} has {width}×{height} pixels, {self.path(index)} {size[1]}×{size[0]}; '
                       'image_size=N makes them all N×N')

    def check_sizes(self) -> None:
        if self.alike or self.image_size is not None:
            return

        def sizes(start: int) -> list[tuple[int, int]]:
            return [opened(self.path(index), lambda image: image.size) for index in range(start, min(start + CHUNK, len(self)))]

        for number, chunk in enumerate(ahead(sizes, range(0, len(self), CHUNK), self.threads)):
            for offset, (width, height) in enumerate(chunk):
                if (height, width) != self.shape[1:]:
                    raise self.differ(number * CHUNK + offset, (height, width))

    def fingerprint(self) -> str:
        """Of names, sizes and times of change: reading every file would take as long as what it is to save."""
        digest = hashlib.blake2b(str((self.mode, self.image_size)).encode(), digest_size=16)
        for index in range(len(self)):
            state = os.stat(self.path(index))
            digest.update(f'{state.st_size} {state.st_mtime_ns} '.encode() + bytes(self.paths[index]) + b'\0')
        return digest.hexdigest()


def as_bytes(array: np.ndarray) -> memoryview:
    """What hashlib takes."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class Found(NamedTuple):
    """A set as it was found: labels in any array of whole numbers; images where reading the labels brought them along."""

    reader: Reader
    labels: Any
    classes: list[str]
    images: np.ndarray | None = None


def held(reader: Reader, stream: bool | None) -> bool:
    """Whether the samples shall be in memory."""
    return int(np.prod(reader.shape)) * reader.dtype.itemsize * len(reader) <= HELD if stream is None else not stream


# --- images

def opened(path: str, use: Callable[[Image.Image], R]) -> R:
    """What `use` makes of an image file. Raises: ValueError: it is not there, or no whole image."""
    try:
        with Image.open(path) as image:
            return use(image)
    except MemoryError:
        raise
    except FileNotFoundError:
        raise BadData(f'{path} is missing') from None
    except BadData as error:
        raise BadData(f'{path}: {error}') from None
    except Exception as error:  # each of Pillow's decoders has its own
        raise BadData(f'{path} is corrupt, or no image ({reason(error)})') from error


def pixels(image: Image.Image, mode: str, image_size: int | None) -> np.ndarray:
    """(C, H, W) uint8 of a Pillow image of any mode. mode: 'RGB' or 'L'."""
    if image.mode.startswith('I;16'):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # Pillow would clip at 255
    elif image.mode in ('I', 'F'):
        raise BadData(f'its pixels have mode {image.mode}, expected 8 or 16 bits a channel')
    if image.mode == 'P' and 'transparency' in image.info:
        image = image.convert('RGBA')
    if image.mode != mode:
        image = image.convert(mode)
    if image_size is not None:
        functional = import_torchvision('transforms.functional')
        image = functional.center_crop(functional.resize(image, [image_size]), [image_size])
    array = np.asarray(image)
    return np.array(array[None] if mode == 'L' else array.transpose(2, 0, 1), order='C')


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Shorter side to `size`, antialiased, then the square in the middle. images: (B, C, H, W) uint8, C-contiguous."""
    functional = import_torchvision('transforms.functional')
    return functional.center_crop(functional.resize(torch.from_numpy(images), [size], antialias=True), [size]).contiguous().numpy()


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text}'[:240].rstrip(': ')
