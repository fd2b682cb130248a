"""Getting a data set's files to their place.

torchvision downloads and unpacks into `.<name>.part` beside that place, and what is complete there is moved: a run that was killed half-way
leaves nothing that the next one could take for data. Archives that were fetched whole stay and need not be fetched again.
"""
from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from Blocks.Vision import import_torchvision
from Datasets.Labelled.Readers import reason

LOCK = 'lock'
SILENCE = 60  # seconds without a byte after which a download has failed
IDX_BYTES = {8: 1, 9: 1, 11: 2, 12: 4, 13: 4, 14: 8}  # of an item, by the type in an IDX file's header


class File(NamedTuple):
    """A file or folder of a data set.

    path: below the root. md5: '' where none is known. url: where it is fetched from."""

    path: str
    md5: str = ''
    url: str = ''


class Wanted(NamedTuple):
    """What a data set consists of.

    name: as in `task=classify/<name>`.
    files: what is read, unpacked. archives: what those come in, as it is fetched or put there by hand. beside: small files that unpacking also needs.
    page: where a person gets the archives, if they cannot be fetched.
    """

    name: str
    files: Sequence[File]
    archives: Sequence[File]
    beside: Sequence[File] = ()
    page: str = ''


def missing(root: Path, files: Sequence[File]) -> list[str]:
    return [file.path for file in files if not (root / file.path).exists()]


def intact(path: Path, md5: str) -> bool:
    return import_torchvision('datasets.utils').check_integrity(str(path), md5 or None)


def fetch(wanted: Wanted, root: Path, unpack: Callable[[Path], object], download: bool, say: Callable[[str], None]) -> None:
    """Brings what is missing of `wanted.files` to `root`, from archives that lie there already or from the network.

    Args:
        unpack: is called with a folder; downloads the archives that are not in it, and unpacks.

    Raises:
        FileNotFoundError: it cannot be had; says what to put where.
    """
    task, part = f'task=classify/{wanted.name}', root / f'.{wanted.name}.part'
    lacking = [file for file in wanted.archives if not intact(root / file.path, '' if wanted.page else file.md5)]
    absent = f'{task}: {listing(missing(root, wanted.files))} not in {root}'
    if lacking and wanted.page:
        raise FileNotFoundError(f'{absent}; {by_hand(root, lacking)}, from {wanted.page}')
    if lacking and not download:
        raise FileNotFoundError(f'{absent}; download=true fetches {listing(urls(lacking))}, or {by_hand(root, lacking)}')
    try:
        part.mkdir(parents=True, exist_ok=True)
        with alone(part, task, say), patience():
            if not missing(root, wanted.files):
                return  # another run has just fetched it
            clear(part, wanted.archives)
            lend(root, part, [file for file in wanted.archives if file not in lacking], wanted.beside)
            say(f'{task}: fetching {listing(urls(lacking))} to {root}' if lacking else f'{task}: unpacking {listing([f.path for f in wanted.archives])}')
            unpack(part)
            settle(part, root)
            shutil.rmtree(part)
    except MemoryError:
        raise
    except Exception as error:  # torchvision raises whatever sockets, archives and disks raise
        corrupt = [file.path for file in lacking if (root / file.path).exists()]
        note = f' ({listing(corrupt)} there: not what was published, its MD5 sum differs)' if corrupt else ''
        how = f'cannot be fetched from {listing(urls(lacking))}' if lacking else f'cannot be unpacked from {listing([f.path for f in wanted.archives])}'
        hand = f'; {by_hand(root, lacking)}' if lacking else ''
        raise FileNotFoundError(f'{absent}{note} and {how} ({reason(error)}){hand}') from error
    if left := missing(root, wanted.files):
        raise FileNotFoundError(f'{task}: {listing(left)} not in {listing([f.path for f in wanted.archives])}')


def urls(files: Sequence[File]) -> list[str]:
    return [file.url for file in files]


def by_hand(root: Path, files: Sequence[File]) -> str:
    folder = (root / files[0].path).parent
    return f'put {listing([Path(file.path).name for file in files])} into {folder} by hand, packed as they are'


def listing(words: Sequence[str]) -> str:
    return ', '.join(words[:6]) + (f' and {len(words) - 6} more' if len(words) > 6 else '')


@contextlib.contextmanager
def alone(part: Path, task: str, say: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other run is fetching the same set."""
    with open(part / LOCK, 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f'{task}: waiting for another run that is fetching it')
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """A server that falls silent is an error, not a run that waits for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def clear(part: Path, archives: Sequence[File]) -> None:
    """Leaves of an interrupted attempt only the archives that are whole: some of torchvision's sets believe any file that is there."""
    keep = {part / file.path for file in archives if intact(part / file.path, file.md5)} | {part / LOCK}
    for folder, folders, files in os.walk(part, topdown=False):
        for name in files:
            path = Path(folder, name)
            if path not in keep or path.is_symlink():
                path.unlink()
        for name in folders:
            with contextlib.suppress(OSError):  # one with an archive in it
                Path(folder, name).rmdir()


def lend(root: Path, part: Path, archives: Sequence[File], beside: Sequence[File]) -> None:
    """Shows torchvision the archives that lie in the root; never written to, as they are whole. Small files are copied."""
    for file in archives:
        place = part / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to((root / file.path).resolve())
    for file in beside:
        if intact(root / file.path, file.md5):
            (part / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file.path, part / file.path)


def settle(part: Path, root: Path) -> None:
    """Moves everything to where nothing stands yet; a folder that is there takes what it lacks."""
    for entry in sorted(part.iterdir()):
        place = root / entry.name
        if entry.is_symlink() or entry.name == LOCK:
            continue
        if entry.is_dir() and place.is_dir():
            settle(entry, place)
        elif not os.path.lexists(place):
            os.rename(entry, place)


def complaint(root: Path, files: Sequence[File]) -> str:
    """What is wrong with the first file that is not as it was published; '' where nothing is known to be."""
    for file in files:
        path = root / file.path
        if not path.exists():
            return f'{path} is missing'
        if file.md5 and not intact(path, file.md5):
            return f'{path} is corrupt or truncated: its MD5 sum is not that of the original'
        if '-idx' in path.name and (wrong := idx_complaint(path)):
            return f'{path} {wrong}'
    return ''


def idx_complaint(path: Path) -> str:
    """What is wrong with the size of an IDX file, which its header tells."""
    with open(path, 'rb') as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b'\0\0' or head[2] not in IDX_BYTES:
            return 'is no IDX file'
        sizes = file.read(4 * head[3])
    size, items = path.stat().st_size, math.prod(int.from_bytes(sizes[at:at + 4], 'big') for at in range(0, len(sizes), 4))
    expected = 4 + 4 * head[3] + IDX_BYTES[head[2]] * items
    if not items:
        return 'is empty'
    return '' if size == expected else f'is {"truncated" if size < expected else "corrupt"}: {size} bytes, its header asks for {expected}'
