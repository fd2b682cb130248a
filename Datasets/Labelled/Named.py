"""What the data sets with a name of their own have in common: which options, files and archives they have, and how they are opened."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from Blocks.Vision import import_torchvision
from Datasets.Labelled.Fetch import File, Wanted, complaint, fetch, listing, missing
from Datasets.Labelled.Readers import BadData, Found, reason
from Datasets.Suites.Names import nearest


class Named:
    """A set that torchvision reads. A subclass says what is different about its class.

    Attributes:
        dataset: torchvision's class.
        argument: the constructor's argument that chooses the part, where that is not `train`.
        train, test: its values for training and for testing, the default first. A value that is only for the other of the two leaves the default.
        options: further arguments of the constructor that `dataset.<option>=` may set.
        page: where a person gets what cannot be fetched.

    Args:
        name: as in `task=classify/<name>`.
        training: which of the two parts.
        given: options.

    Raises:
        ValueError: an option that the set does not have, or a value that it does not know.
    """

    dataset = ''
    argument = ''
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    page = ''

    def __init__(self, name: str, training: bool, given: Mapping[str, Any]) -> None:
        self.name, self.training, self.given = name, training, dict(given)
        known = [*self.options, *([self.argument] if self.argument else [])]
        for option in given:
            if option not in known:
                raise ValueError(f'dataset.{option}: {name} has no such option; '
                                 + (f'nearest: {", ".join(nearest(option, known) or known)}' if known else 'it has none'))
        self.cls: Any = getattr(import_torchvision('datasets'), self.dataset) if self.dataset else None
        self.arguments = self.choose()

    def choose(self) -> dict[str, Any]:
        """The constructor's arguments."""
        arguments = {option: self.given[option] for option in self.options if option in self.given}
        if not self.argument:
            return arguments | {'train': self.training}
        mine = self.train if self.training else self.test
        chosen = self.given.get(self.argument, mine[0])
        if chosen not in self.train + self.test:
            values = ', '.join(dict.fromkeys(self.train + self.test))
            raise ValueError(f'dataset.{self.argument}={chosen}: {self.name} has {values}')
        return arguments | {self.argument: chosen if chosen in mine else mine[0]}

    def files(self) -> list[File]:
        """What is read."""
        raise NotImplementedError

    def archives(self) -> list[File]:
        """What is fetched."""
        raise NotImplementedError

    def beside(self) -> list[File]:
        """Small files that unpacking also needs."""
        return []

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        """Reads what is there."""
        raise NotImplementedError

    def unpack(self, part: Path) -> None:
        """Downloads and unpacks into a folder."""
        self.cls(str(part), download=True, **self.arguments)

    def load(self, root: Path, image_size: int | None, download: bool, say: Callable[[str], None]) -> Found:
        """Reads the set, fetched before if need be.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: a file is corrupt.
        """
        files = self.files()
        if missing(root, files):
            fetch(Wanted(self.name, files, self.archives(), self.beside(), self.page), root, self.unpack, download, say)
        try:
            return self.open(root, image_size, say)
        except (BadData, MemoryError, ImportError, PermissionError):
            raise
        except Exception as error:  # torchvision's readers check little: a broken file fails somewhere inside numpy, torch, pickle or scipy
            if not files:
                raise
            again = 'put a whole one there' if self.page else 'delete it, and it is fetched again'
            told = complaint(root, files) or f'cannot read {listing([str(root / file.path) for file in files])} ({reason(error)})'
            raise BadData(f'task=classify/{self.name}: {told}; {again}') from error
