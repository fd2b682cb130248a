"""Sets of image files in folders: any user's, `<root>/<train|test|val>/<class>/<file>`, and tiny_imagenet, which torchvision does not have."""
from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from Blocks.Vision import import_torchvision
from Datasets.Labelled.Fetch import File
from Datasets.Labelled.Named import Named
from Datasets.Labelled.Readers import GREY, BadData, Files, Found, opened


class ImageFolders(Named):
    """`folder`: a folder for each class, in `train` and in `test` or `val`. Every file whose extension Pillow reads counts, also in folders below.

    Images are RGB, whatever their files hold (palettes, transparency, CMYK), unless all of both parts are grey: then they have one channel."""

    def files(self) -> list[File]:
        return []

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        training = root / 'train'
        testing = next((root / part for part in ('test', 'val') if (root / part).is_dir()), None)
        if not training.is_dir():
            there = sorted(entry.name for entry in root.iterdir())[:6] if root.is_dir() else []
            raise BadData(f'task=classify/folder: no folder {training}; expected {root}/train/<class>/<images> and {root}/test/<class>/<images>'
                          f'{", found " + ", ".join(there) if there else ""}')
        if testing is None and not self.training:
            raise BadData(f'task=classify/folder: no test part: expected {root}/test/<class>/<images>, or val in place of test')
        classes = class_folders(training)
        part = training if self.training else testing
        assert part is not None
        if not self.training:
            check_same_classes(training, classes, part, class_folders(part))
        paths, labels = listed(part, classes, say)
        other = testing if self.training else training
        others = image_files(other) if other is not None else []
        mode = 'L' if all(map(is_grey, paths)) and all(map(is_grey, others)) else 'RGB'
        reader = Files(paths, mode, image_size)
        if not self.training and others:
            trained = Files(others[:1], mode, image_size)
            if trained.shape != reader.shape:
                raise BadData(f'images differ in size: {trained.path(0)} has {trained.shape[2]}×{trained.shape[1]} pixels, {reader.path(0)} '
                              f'{reader.shape[2]}×{reader.shape[1]}; image_size=N makes them all N×N')
        return Found(reader, labels, classes)


class TinyImageNet(Named):
    """200 classes of ImageNet at 64×64 pixels. The published test images have no labels: the validation part is for testing."""

    url, md5 = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip', '90528d7ca1a48142e341f4ef8d21d0de'
    base = 'tiny-imagenet-200'

    def files(self) -> list[File]:
        part = ('train',) if self.training else ('train', 'val/images', 'val/val_annotations.txt')
        return [File(f'{self.base}/{file}') for file in ('wnids.txt', 'words.txt', *part)]

    def archives(self) -> list[File]:
        return [File(Path(self.url).name, self.md5, self.url)]

    def unpack(self, part: Path) -> None:
        import_torchvision('datasets.utils').download_and_extract_archive(self.url, str(part), md5=self.md5)

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        folder = root / self.base
        wnids = sorted((folder / 'wnids.txt').read_text().split())
        lines = (line.split('\t') for line in (folder / 'words.txt').read_text().splitlines())
        words = {line[0]: line[1].partition(',')[0] for line in lines if len(line) > 1}
        check_same_classes(folder / 'wnids.txt', wnids, folder / 'train', class_folders(folder / 'train'))
        if self.training:
            paths, labels = listed(folder / 'train', wnids)
        else:
            paths, labels = self.annotated(folder / 'val', wnids)
        return Found(Files(paths, 'RGB', image_size), labels, [f'{wnid} {words.get(wnid, "")}'.rstrip() for wnid in wnids])

    def annotated(self, folder: Path, wnids: list[str]) -> tuple[list[str], list[int]]:
        """The labels of the validation part lie in a file: name, class and box in each line."""
        index, file = {wnid: label for label, wnid in enumerate(wnids)}, folder / 'val_annotations.txt'
        names, labels = [], []
        for number, line in enumerate(file.read_text().splitlines(), 1):
            name, wnid = (line.split('\t') + ['', ''])[:2]
            if wnid not in index:
                raise BadData(f'{file}, line {number}: {wnid or line!r} is none of the classes in wnids.txt')
            names.append(name)
            labels.append(index[wnid])
        check_there(folder / 'images', names)
        return [str(folder / 'images' / name) for name in names], labels


def class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))


def check_same_classes(one: Path, classes: list[str], other: Path, others: list[str]) -> None:
    """Raises ValueError that names what only one of the two has."""
    for has, lacks, names in ((one, other, set(classes) - set(others)), (other, one, set(others) - set(classes))):
        if names:
            shown = ', '.join(sorted(names)[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
            raise BadData(f'{has} and {lacks} have different classes: only the first has {shown}')


def check_there(folder: Path, names: Iterable[str]) -> None:
    """Raises ValueError that names a file which is listed and not there: an archive that was not unpacked to its end."""
    there = set(os.listdir(folder))
    if absent := [name for name in names if name not in there]:
        raise BadData(f'{folder / absent[0]} is missing, as are {len(absent) - 1} more that are listed: was the archive unpacked to its end?')


@functools.cache
def extensions() -> frozenset[str]:
    """Those that Pillow reads, in lower case."""
    Image.init()
    return frozenset(extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def image_files(folder: Path, passed_over: list[str] | None = None) -> list[str]:
    """Every image below a folder, sorted by folder and name; hidden files aside, what is none is added to `passed_over`."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in extensions() and not name.startswith('.'):
                found.append(os.path.join(place, name))
            elif passed_over is not None and not name.startswith('.'):
                passed_over.append(os.path.join(place, name))
    return found


def listed(folder: Path, classes: list[str], say: Callable[[str], None] | None = None) -> tuple[list[str], list[int]]:
    """Paths and labels of the images in the folders of `classes`. Raises: ValueError: one is empty."""
    paths: list[str] = []
    labels: list[int] = []
    passed_over: list[str] = []
    for label, name in enumerate(classes):
        found = image_files(folder / name, passed_over)
        if not found:
            raise BadData(f'{folder / name} has no image: every class needs some')
        paths += found
        labels += [label] * len(found)
    if not classes:
        raise BadData(f'{folder} has no folder: expected one for each class')
    if passed_over and say is not None:
        say(f'{folder}: {len(passed_over)} files are no images and are passed over, e.g. {passed_over[0]}')
    return paths, labels


def is_grey(path: str) -> bool:
    """Whether an image has one channel, by its header."""
    return opened(path, lambda image: image.mode) in GREY
