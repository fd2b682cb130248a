"""The data sets that have a name, by what torchvision's class for them differs in."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from Blocks.Vision import import_torchvision
from Datasets.Labelled.Digits import open_digits
from Datasets.Labelled.Fetch import File
from Datasets.Labelled.Folder import ImageFolders, TinyImageNet, check_same_classes, check_there, class_folders
from Datasets.Labelled.Named import Named
from Datasets.Labelled.Readers import Arrays, BadData, Files, Found, reason
from Datasets.Suites.Names import nearest
from Utils import require

DIGITS = [str(digit) for digit in range(10)]


class Digits(Named):
    """Comes with scikit-learn."""

    def files(self) -> list[File]:
        return []

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        return open_digits(self.training, image_size)


class MNIST(Named):
    """IDX files in `<class>/raw`. torchvision takes an unpacked file that is there for a whole one, and does not compare images with labels."""

    dataset = 'MNIST'

    @property
    def folder(self) -> str:
        return f'{self.dataset}/raw'

    def files(self) -> list[File]:
        return [File(f'{self.folder}/{Path(archive).stem}') for archive, _ in self.cls.resources]

    def archives(self) -> list[File]:
        return [File(f'{self.folder}/{archive}', md5, self.cls.mirrors[0] + archive) for archive, md5 in self.cls.resources]

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        data = self.cls(str(root), **self.arguments)
        return Found(Arrays(data.data.numpy()[:, None], image_size), data.targets.numpy(), list(data.classes))


class FashionMNIST(MNIST):
    """Clothes."""

    dataset = 'FashionMNIST'


class KMNIST(MNIST):
    """Kuzushiji."""

    dataset = 'KMNIST'


class EMNIST(MNIST):
    """Letters and digits in six selections, one archive. Its images lie on their side, as published."""

    dataset = 'EMNIST'
    argument = 'split'
    train = test = ('balanced', 'byclass', 'bymerge', 'letters', 'digits', 'mnist')

    def choose(self) -> dict[str, Any]:
        return super().choose() | {'train': self.training}

    def files(self) -> list[File]:
        stem = f'{self.folder}/emnist-{self.arguments["split"]}-{"train" if self.training else "test"}'
        return [File(f'{stem}-images-idx3-ubyte'), File(f'{stem}-labels-idx1-ubyte')]

    def archives(self) -> list[File]:
        return [File(f'{self.folder}/{Path(self.cls.url).name}', self.cls.md5, self.cls.url)]


class QMNIST(MNIST):
    """MNIST with its 50,000 lost test images; a label's first column is the class."""

    dataset = 'QMNIST'
    argument, train, test = 'what', ('train', 'nist'), ('test', 'test10k', 'test50k')

    def resources(self) -> list[tuple[str, str]]:
        return self.cls.resources[self.cls.subsets[self.arguments['what']]]

    def files(self) -> list[File]:
        return [File(f'{self.folder}/{Path(url).stem}') for url, _ in self.resources()]

    def archives(self) -> list[File]:
        return [File(f'{self.folder}/{Path(url).name}', md5, url) for url, md5 in self.resources()]

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        found = super().open(root, image_size, say)
        return found._replace(labels=found.labels[:, 0])


class USPS(Named):
    """Text in bz2, which torchvision does not check once it is there."""

    dataset = 'USPS'

    def files(self) -> list[File]:
        url, file, md5 = self.cls.split_list['train' if self.training else 'test']
        return [File(file, md5, url)]

    archives = files

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        data = self.cls(str(root), **self.arguments)
        return Found(Arrays(data.data[:, None], image_size), data.targets, DIGITS)


class SVHN(Named):
    """House numbers in a MATLAB file. `dataset.split=extra` trains on the 531,131 easier ones."""

    dataset = 'SVHN'
    argument, train, test = 'split', ('train', 'extra'), ('test',)

    def files(self) -> list[File]:
        url, file, md5 = self.cls.split_list[self.arguments['split']]
        return [File(file, md5, url)]

    archives = files

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        data = self.cls(str(root), **self.arguments)
        return Found(Arrays(data.data, image_size), np.atleast_1d(data.labels), DIGITS)


class CIFAR10(Named):
    """Pickles, which torchvision reads only when their MD5 sums are right."""

    dataset = 'CIFAR10'

    def listed(self) -> list[list[str]]:
        return self.cls.train_list if self.training else self.cls.test_list

    def files(self) -> list[File]:
        meta = (self.cls.meta['filename'], self.cls.meta['md5'])
        return [File(f'{self.cls.base_folder}/{file}', md5) for file, md5 in (*self.listed(), meta)]

    def archives(self) -> list[File]:
        return [File(self.cls.filename, self.cls.tgz_md5, self.cls.url)]

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        """File by file into one array: with all at once, torchvision holds every image twice while it joins them."""
        room = sum(os.path.getsize(root / self.cls.base_folder / file) for file, _ in self.listed()) // 3072  # at least the number of images
        images = np.empty((room, 3, 32, 32), np.uint8)
        labels: list[int] = []
        classes: list[str] = []
        for entry in self.listed():
            lists = {'train_list': [], 'test_list': [], 'train_list' if self.training else 'test_list': [entry]}
            try:
                data = type(self.dataset, (self.cls,), lists)(str(root), **self.arguments)
                images[len(labels):len(labels) + len(data)] = data.data.transpose(0, 3, 1, 2)
                if len(data.targets) != len(data):
                    raise ValueError(f'{len(data)} images, {len(data.targets)} labels')
            except (RuntimeError, MemoryError):  # another MD5 sum
                raise
            except Exception as error:
                raise BadData(f'task=classify/{self.name}: {root / self.cls.base_folder / entry[0]} cannot be read ({reason(error)}); '
                              'delete it, and it is fetched again') from error
            labels += data.targets
            classes = list(data.classes)
        return Found(Arrays(images[:len(labels)], image_size), labels, classes)


class CIFAR100(CIFAR10):
    """The hundred fine classes."""

    dataset = 'CIFAR100'


class STL10(Named):
    """Raw bytes, columns first. `dataset.folds=` 0–9 trains on one of the published folds of 1,000."""

    dataset = 'STL10'
    argument, train, test = 'split', ('train',), ('test',)
    options = ('folds',)

    def choose(self) -> dict[str, Any]:
        arguments = super().choose()
        folds = arguments.get('folds')
        require(folds is None or type(folds) is int and 0 <= folds <= 9, 'dataset.folds', folds, '0 to 9, or null for all')
        return arguments

    def files(self) -> list[File]:
        listed = self.cls.train_list + self.cls.test_list  # torchvision wants all of them, the unlabelled ones too
        return [File(f'{self.cls.base_folder}/{file}', md5) for file, md5 in listed] + [File(f'{self.cls.base_folder}/{self.cls.class_names_file}')]

    def archives(self) -> list[File]:
        return [File(self.cls.filename, self.cls.tgz_md5, self.cls.url)]

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        data = self.cls(str(root), **self.arguments)
        labels = data.labels.astype(np.int64)
        labels[labels == 255] = -1  # torchvision's uint8 − 1 of label 0
        return Found(Arrays(data.data, image_size), labels, list(data.classes))


class CelebA(Named):
    """Faces; the label is one attribute of forty, 1 where the face has it. 64×64 pixels, unless image_size says otherwise."""

    dataset = 'CelebA'
    argument, train, test = 'split', ('train',), ('test', 'valid')
    options = ('attribute',)

    def choose(self) -> dict[str, Any]:
        arguments = super().choose()
        self.attribute = arguments.pop('attribute', 'Smiling')
        return arguments

    def files(self) -> list[File]:
        return [File(f'celeba/{file}', md5) for _, md5, file in self.cls.file_list if file.endswith('.txt')] + [File('celeba/img_align_celeba')]

    def archives(self) -> list[File]:
        return [File(f'celeba/{file}', md5, f'https://drive.google.com/uc?id={drive}') for drive, md5, file in self.cls.file_list]

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        data = self.cls(str(root), **self.arguments)
        names = [name for name in data.attr_names if name]
        if self.attribute not in names:
            raise BadData(f'dataset.attribute={self.attribute}: no such attribute; nearest: {", ".join(nearest(str(self.attribute), names) or names)}')
        folder = root / 'celeba' / 'img_align_celeba'
        check_there(folder, data.filename)
        reader = Files([str(folder / file) for file in data.filename], 'RGB', image_size or 64)
        return Found(reader, data.attr[:, names.index(self.attribute)].numpy(), [f'not {self.attribute}', self.attribute])


class Places365(Named):
    """Scenes, 256×256 pixels with `dataset.small=true`, the default. The published test images have no labels: the validation part is for testing."""

    dataset = 'Places365'
    argument, train, test = 'split', ('train-standard', 'train-challenge'), ('val',)
    options = ('small',)

    def choose(self) -> dict[str, Any]:
        arguments = {'small': True} | super().choose()
        require(type(arguments['small']) is bool, 'dataset.small', arguments['small'], 'true or false')
        return arguments

    @property
    def images(self) -> str:
        size, split = '256' if self.arguments['small'] else 'large', self.arguments['split']
        return f'data_{size}_{split.removeprefix("train-")}' if split.startswith('train') else f'{split}_{size}'

    def beside(self) -> list[File]:
        return [File(*self.cls._CATEGORIES_META), File(*self.cls._FILE_LIST_META[self.arguments['split']])]

    def files(self) -> list[File]:
        return [*self.beside(), File(self.images)]

    def archives(self) -> list[File]:
        kit = self.cls._DEVKIT_META['challenge' if 'challenge' in self.arguments['split'] else 'standard']
        return [File(file, md5, self.cls._BASE_URL + file) for file, md5 in (kit, self.cls._IMAGES_META[self.arguments['split'], self.arguments['small']])]

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        data = self.cls(str(root), **self.arguments)
        reader = Files([file for file, _ in data.imgs], 'RGB', image_size, alike=self.arguments['small'])
        return Found(reader, data.targets, sorted(data.class_to_idx, key=data.class_to_idx.__getitem__))


class ImageNet(Named):
    """ILSVRC 2012, put there by hand: its archives, or what torchvision has made of them (meta.bin, train/, val/)."""

    dataset = 'ImageNet'
    argument, train, test = 'split', ('train',), ('val',)
    page = 'https://image-net.org/challenges/LSVRC/2012/2012-downloads.php'

    def beside(self) -> list[File]:
        return [File('meta.bin')]

    def files(self) -> list[File]:
        return [File('meta.bin'), File(self.arguments['split'])]

    def archives(self) -> list[File]:
        known = import_torchvision('datasets.imagenet').ARCHIVE_META
        return [File(*known[archive]) for archive in ('devkit', self.arguments['split'])]

    def unpack(self, part: Path) -> None:
        self.cls(str(part), **self.arguments)

    def open(self, root: Path, image_size: int | None, say: Callable[[str], None]) -> Found:
        folder = root / self.arguments['split']
        if loose := next((entry for entry in sorted(folder.iterdir()) if entry.is_file() and not entry.name.startswith('.')), None):
            raise BadData(f'task=classify/{self.name}: {folder} was not unpacked to the end ({loose.name} lies in no class): delete the folder, '
                          'and it is unpacked again from its archive')
        data = self.cls(str(root), **self.arguments)
        if not self.training and (root / 'train').is_dir():
            check_same_classes(root / 'train', class_folders(root / 'train'), folder, data.wnids)
        reader = Files([file for file, _ in data.samples], 'RGB', image_size)
        return Found(reader, data.targets, [f'{wnid} {names[0]}' for wnid, names in zip(data.wnids, data.classes, strict=True)])


SETS: Mapping[str, type[Named]] = {
    'digits': Digits, 'mnist': MNIST, 'fashion_mnist': FashionMNIST, 'emnist': EMNIST, 'kmnist': KMNIST, 'qmnist': QMNIST, 'usps': USPS, 'svhn': SVHN,
    'cifar10': CIFAR10, 'cifar100': CIFAR100, 'stl10': STL10, 'celeba': CelebA, 'places365': Places365, 'imagenet': ImageNet,
    'tiny_imagenet': TinyImageNet, 'folder': ImageFolders}
