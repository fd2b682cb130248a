"""What a training set's pixels are like, for normalising: reckoned once and kept in a file."""
from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Benchmarking import replacing
from Datasets.Labelled.Readers import as_bytes
from Datasets.Labelled.Source import Source

VALUES = 1 << 21  # entries that are looked at together
FILE = 'statistics.json'


@dataclass(frozen=True)
class Statistics:
    """Of all samples, in the units of the images: 0–255 of bytes.

    Attributes:
        mean, std: of each channel, or of each entry of a vector; std is the population's.
        low, high: the least and the greatest value of all.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: float
    high: float


def statistics(source: Source, cache: Path | None) -> Statistics:
    """One pass in float64 over a set, the training one, unless `cache` has the result.

    Args:
        cache: a JSON file, or a folder for `statistics.json`, which several sets may share: an entry belongs to a name, length, shape and the content
            of the samples; of image files that are not in memory, to their names, sizes and times. Whatever else is in it is replaced. None keeps nothing.
    """
    file = None if cache is None else cache / FILE if cache.is_dir() else cache
    if file is None:
        return reckon(source)
    key = f'{source.name} {len(source)} {"x".join(map(str, source.shape))} {fingerprint(source)}'
    entries = read(file)
    if (known := parsed(entries.get(key), source.shape[0])) is not None:
        return known
    result = reckon(source)
    with contextlib.suppress(OSError), replacing(file) as temporary:  # a folder that may not be written to costs a pass each time, no more
        temporary.write_text(json.dumps(read(file) | {key: asdict(result)}, indent=1) + '\n')
    return result


def fingerprint(source: Source) -> str:
    """Differs where samples, labels or classes do."""
    digest = hashlib.blake2b(json.dumps(source.classes).encode(), digest_size=16)
    digest.update(as_bytes(source.labels))
    if source.images is not None:
        digest.update(as_bytes(source.images))
    elif source.reader is not None:
        digest.update(source.reader.fingerprint().encode())
    return digest.hexdigest()


def read(file: Path) -> dict[str, Any]:
    """Entries by key; none where the file is torn, or not one of ours."""
    with contextlib.suppress(OSError, ValueError):
        entries = json.loads(file.read_text())
        if isinstance(entries, dict):
            return {key: entry for key, entry in entries.items() if parsed(entry) is not None}
    return {}


def parsed(entry: Any, channels: int | None = None) -> Statistics | None:
    """None where it is not what `statistics` writes."""
    with contextlib.suppress(TypeError, ValueError, KeyError):
        found = Statistics(tuple(map(float, entry['mean'])), tuple(map(float, entry['std'])), float(entry['low']), float(entry['high']))
        if len(found.mean) == len(found.std) == (channels or len(found.mean)) and all(map(math.isfinite, (*found.mean, *found.std, found.low, found.high))):
            return found
    return None


def reckon(source: Source) -> Statistics:
    """The pass itself."""
    return of_bytes(source) if len(source.shape) == 3 else of_vectors(source)


def chunks(source: Source) -> Iterator[np.ndarray]:
    if source.images is None:
        assert source.reader is not None
        yield from source.reader.chunks()
    else:
        size = max(1, VALUES // math.prod(source.shape))
        for start in range(0, len(source), size):
            yield source.images[start:start + size]


def of_bytes(source: Source) -> Statistics:
    """From counts of the 256 values, so that only the last division rounds."""
    counts = np.zeros((source.shape[0], 256), np.int64)
    for chunk in chunks(source):
        for channel in range(len(counts)):
            counts[channel] += np.bincount(chunk[:, channel].reshape(-1), minlength=256)
    mean, std = [], []
    for row in counts.tolist():
        number, total = sum(row), sum(value * count for value, count in enumerate(row))
        squares = sum(value * value * count for value, count in enumerate(row))
        mean.append(total / number)
        std.append(math.sqrt((squares * number - total * total) / number ** 2))
    seen = np.flatnonzero(counts.sum(0))
    return Statistics(tuple(mean), tuple(std), float(seen[0]), float(seen[-1]))


def of_vectors(source: Source) -> Statistics:
    """Chunk by chunk; each chunk's mean and squared distances join those before it (Chan, Golub and LeVeque 1979), which loses no digits."""
    number, mean, squares = 0, np.zeros(source.shape[0]), np.zeros(source.shape[0])
    low, high = math.inf, -math.inf
    for chunk in chunks(source):
        values = chunk.astype(np.float64)
        count, middle = len(values), values.mean(0)
        shift = middle - mean
        squares += ((values - middle) ** 2).sum(0) + shift ** 2 * (number * count / (number + count))
        mean += shift * (count / (number + count))
        number += count
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return Statistics(tuple(mean.tolist()), tuple(np.sqrt(squares / number).tolist()), low, high)
