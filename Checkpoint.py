"""Checkpoints: everything a run is, written atomically, loaded without executing anything, falling back to the previous good one.

`checkpoint.pt` is the newest, `checkpoint.previous.pt` the one before. A file is written under a temporary name, flushed to the disk and
renamed, so that at any instant both are complete checkpoints: for whoever is killed, and for another process that reads along.
"""
from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

NEWEST, PREVIOUS, TEMPORARY, RETIRING = 'checkpoint.pt', 'checkpoint.previous.pt', 'checkpoint.writing.pt', 'checkpoint.retiring.pt'
CORRUPT = 'checkpoint.corrupt.pt'
FORMAT = 1


class BadCheckpoint(ValueError):
    """A checkpoint cannot be read: truncated, corrupt, foreign, or more than data."""


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain Python) as the folder's newest checkpoint. Raises: OSError; the last good one then survives."""
    temporary, newest, retiring = folder / TEMPORARY, folder / NEWEST, folder / RETIRING
    write(temporary, state)
    if newest.exists():
        retiring.unlink(missing_ok=True)  # of a save that was killed
        try:
            os.link(newest, retiring)
        except OSError:  # a disk without hard links: for an instant there is no newest
            os.replace(newest, retiring)
    os.replace(temporary, newest)
    if retiring.exists():
        os.replace(retiring, folder / PREVIOUS)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the renames themselves
    finally:
        os.close(descriptor)


def write(path: Path, state: dict[str, Any]) -> None:
    """One file, complete on the disk when this returns, or not there. Raises: OSError."""
    try:
        with open(path, 'wb') as file:
            torch.save({'graft': FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # torch reports a full disk so
            raise OSError(f'{path}: could not be written ({first_line(error)})') from error
        raise


def read(path: Path, device: str | torch.device = 'cpu') -> dict[str, Any]:
    """One checkpoint file. Only tensors and plain Python load: a pickle that would run code raises.

    Raises:
        BadCheckpoint: names the file and what is wrong."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not check the sums: flipped bits would load
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f'{damaged} does not match its checksum')
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise BadCheckpoint(f'{path}: no such checkpoint') from None
    except pickle.UnpicklingError as error:
        raise BadCheckpoint(f'{path}: refused, it holds more than data ({first_line(error)})') from None
    except Exception as error:  # whatever the parsers trip over in arbitrary bytes
        raise BadCheckpoint(f'{path}: truncated or corrupt ({first_line(error)})') from None
    if not isinstance(state, dict) or 'graft' not in state:
        raise BadCheckpoint(f'{path}: not a checkpoint of Graft')
    if state['graft'] != FORMAT:
        raise BadCheckpoint(f'{path}: format {state["graft"]}, this version reads {FORMAT}')
    return state


def load(folder: Path, device: str | torch.device = 'cpu') -> tuple[dict[str, Any], list[str]]:
    """The newest good checkpoint of a folder and a line for each bad one that was passed over.

    Raises:
        BadCheckpoint: there is none."""
    complaints: list[str] = []
    for name in (NEWEST, RETIRING, PREVIOUS):
        if (folder / name).exists():
            try:
                return read(folder / name, device), complaints
            except BadCheckpoint as error:
                complaints.append(str(error))
    raise BadCheckpoint('; '.join(complaints) or f'{folder}: no checkpoint here; a run writes one every save_per_steps and at its end')


def set_aside(folder: Path) -> None:
    """Takes a newest checkpoint that cannot be read out of the way: the next `save` would put it in the place of the good one before it."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder / NEWEST, folder / CORRUPT)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


@contextlib.contextmanager
def blamed_on(path: Path, state: dict[str, Any] | None) -> Iterator[None]:
    """Says of a checkpoint that could be read, but is not what this program writes, whose it is. Raises: BadCheckpoint."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        if state is None:
            raise
        raise BadCheckpoint(f'{path}: its checkpoint is not one of this run ({type(error).__name__}: {error})') from error


def weights_file(path: Path) -> Path:
    """The checkpoint meant by a run folder or a file."""
    return path / NEWEST if path.is_dir() else path
