"""Small data sets in the real files of each: written here by hand, read by torchvision."""
import bz2
import gzip
import hashlib
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from Blocks.Vision import import_torchvision

datasets = import_torchvision('datasets')


class Part(NamedTuple):
    """images: (N, C, H, W) uint8. labels: (N,) int64, as they are to be read."""
    images: np.ndarray
    labels: np.ndarray


def part(seed, count, classes, *shape):
    rng = np.random.default_rng(seed)
    return Part(rng.integers(0, 256, (count, *shape), np.uint8), rng.permutation(np.arange(count) % classes))


def md5(path):
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


def idx(array):
    """An array in the IDX format, big-endian."""
    kinds = {'uint8': 8, 'int32': 12}
    head = bytes([0, 0, kinds[array.dtype.name], array.ndim]) + b''.join(size.to_bytes(4, 'big') for size in array.shape)
    return head + array.astype(array.dtype.newbyteorder('>')).tobytes()


def put(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


# --- IDX: MNIST and its kin

def mnist(root, cls='MNIST', train=None, test=None):
    """Unpacked, as `<cls>/raw`."""
    train, test = train or part(1, 12, 10, 1, 28, 28), test or part(2, 10, 10, 1, 28, 28)
    for name, which in (('train', train), ('t10k', test)):
        put(root / cls / 'raw' / f'{name}-images-idx3-ubyte', idx(which.images[:, 0]))
        put(root / cls / 'raw' / f'{name}-labels-idx1-ubyte', idx(which.labels.astype(np.uint8)))
    return train, test


def packed(folder):
    """Every IDX file of a folder in gzip, and nothing else; name → MD5 sum."""
    sums = {}
    for file in sorted(folder.glob('*ubyte')):
        archive = put(folder / f'{file.name}.gz', gzip.compress(file.read_bytes(), mtime=0))
        file.unlink()
        sums[archive.name] = md5(archive)
    return sums


def emnist(root, split='balanced', classes=47):
    train, test = part(3, 60, classes, 1, 28, 28), part(4, 50, classes, 1, 28, 28)
    for name, which in (('train', train), ('test', test)):
        put(root / 'EMNIST' / 'raw' / f'emnist-{split}-{name}-images-idx3-ubyte', idx(which.images[:, 0]))
        put(root / 'EMNIST' / 'raw' / f'emnist-{split}-{name}-labels-idx1-ubyte', idx(which.labels.astype(np.uint8)))
    return train, test


def qmnist(root):
    """A label has eight columns, the class first."""
    train, test = part(5, 14, 10, 1, 28, 28), part(6, 11, 10, 1, 28, 28)
    for name, which in (('train', train), ('test', test)):
        columns = np.random.default_rng(7).integers(-100, 2000, (len(which.labels), 8)).astype(np.int32)
        columns[:, 0] = which.labels
        put(root / 'QMNIST' / 'raw' / f'qmnist-{name}-images-idx3-ubyte', idx(which.images[:, 0]))
        put(root / 'QMNIST' / 'raw' / f'qmnist-{name}-labels-idx2-int', idx(columns))
    return train, test


# --- others that torchvision reads into one array

def usps(root):
    """Values of −1 … 1 as text; torchvision cuts them off to bytes, so they stand half a step above."""
    train, test = part(8, 13, 10, 1, 16, 16), part(9, 12, 10, 1, 16, 16)
    for name, which in (('usps.bz2', train), ('usps.t.bz2', test)):
        values = (np.minimum(which.images.reshape(-1, 256) + 0.5, 255) / 255 * 2 - 1)
        lines = [f'{label + 1} ' + ' '.join(f'{at}:{value:.6f}' for at, value in enumerate(row, 1)) for label, row in zip(which.labels, values)]
        put(root / name, bz2.compress(('\n'.join(lines) + '\n').encode()))
    return train, test


def svhn(root, monkeypatch, **parts):
    """MATLAB files, (H, W, C, N), the digit 0 as 10."""
    from scipy.io import savemat
    parts = parts or {'train': part(10, 15, 10, 3, 32, 32), 'test': part(11, 11, 10, 3, 32, 32)}
    table = dict(datasets.SVHN.split_list)
    root.mkdir(parents=True, exist_ok=True)
    for name, which in parts.items():
        file = root / f'{name}_32x32.mat'
        savemat(file, {'X': which.images.transpose(2, 3, 1, 0), 'y': np.where(which.labels == 0, 10, which.labels).astype(np.uint8)[:, None]})
        table[name] = [f'http://nowhere.invalid/{file.name}', file.name, md5(file)]
    monkeypatch.setattr(datasets.SVHN, 'split_list', table)
    return parts


CIFAR_NAMES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']


def cifar10(root, monkeypatch, count=7):
    """Pickles of byte-string keys read as latin1, as published: protocol 2 from Python 2. -> parts of five files and of one."""
    folder, lists = root / 'cifar-10-batches-py', {}
    batches = [part(20 + number, count, 10, 3, 32, 32) for number in range(6)]
    for number, batch in enumerate(batches):
        name = f'data_batch_{number + 1}' if number < 5 else 'test_batch'
        body = {'data': batch.images.reshape(count, 3072), 'labels': batch.labels.tolist(), 'batch_label': name, 'filenames': []}
        file = put(folder / name, pickle.dumps(body, protocol=2))
        lists.setdefault('train_list' if number < 5 else 'test_list', []).append([name, md5(file)])
    meta = put(folder / 'batches.meta', pickle.dumps({'label_names': CIFAR_NAMES, 'num_vis': 3072}, protocol=2))
    for name, value in lists.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    monkeypatch.setattr(datasets.CIFAR10, 'meta', {'filename': 'batches.meta', 'key': 'label_names', 'md5': md5(meta)})
    train = Part(np.concatenate([batch.images for batch in batches[:5]]), np.concatenate([batch.labels for batch in batches[:5]]))
    return train, batches[5]


def cifar100(root, monkeypatch):
    parts, folder = (part(30, 120, 100, 3, 32, 32), part(31, 100, 100, 3, 32, 32)), root / 'cifar-100-python'
    for name, which in zip(('train', 'test'), parts):
        body = {'data': which.images.reshape(-1, 3072), 'fine_labels': which.labels.tolist(), 'coarse_labels': [0] * len(which.labels)}
        file = put(folder / name, pickle.dumps(body, protocol=2))
        monkeypatch.setattr(datasets.CIFAR100, f'{name}_list', [[name, md5(file)]])
    meta = put(folder / 'meta', pickle.dumps({'fine_label_names': [f'thing {n}' for n in range(100)], 'coarse_label_names': ['all']}, protocol=2))
    monkeypatch.setattr(datasets.CIFAR100, 'meta', {'filename': 'meta', 'key': 'fine_label_names', 'md5': md5(meta)})
    return parts


def stl10(root, monkeypatch, first_label=None):
    """Bytes with columns before rows, labels from 1."""
    parts, folder = (part(40, 12, 10, 3, 96, 96), part(41, 10, 10, 3, 96, 96)), root / 'stl10_binary'
    lists = {'train': [], 'test': []}
    for name, which in zip(('train', 'test'), parts):
        labels = which.labels + 1
        if first_label is not None:
            labels[0] = first_label
        for file, body in ((f'{name}_X.bin', which.images.transpose(0, 1, 3, 2)), (f'{name}_y.bin', labels.astype(np.uint8))):
            lists[name].append([file, md5(put(folder / file, body.tobytes()))])
    lists['train'].append(['unlabeled_X.bin', md5(put(folder / 'unlabeled_X.bin', bytes(3 * 96 * 96)))])
    put(folder / 'class_names.txt', b'airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n')
    put(folder / 'fold_indices.txt', ''.join(f'{n} {n + 1} {n + 2} \n' for n in range(10)).encode())
    monkeypatch.setattr(datasets.STL10, 'train_list', lists['train'])
    monkeypatch.setattr(datasets.STL10, 'test_list', lists['test'])
    return parts


# --- sets of image files

def picture(path, array, **options):
    """A file of a (C, H, W) uint8 image, in the format of its extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)).save(path, **options)
    return path


def smooth(seed, height, width, channels=3):
    """An image that JPEG hardly changes, unlike any other."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(30, 226, (channels, 1, 1))
    ramp = np.linspace(-20, 20, height)[:, None] + np.linspace(-9, 9, width)[None]
    return (colour + ramp).round().astype(np.uint8)


def celeba(root, monkeypatch, sizes=((178, 218),) * 9):
    """Three parts, 0 train, 1 valid, 2 test; jpegs. -> images (C, H, W), attributes (N, 4) of −1 and 1, partition."""
    folder, count = root / 'celeba', len(sizes)
    rng = np.random.default_rng(50)
    images = [smooth(60 + at, height, width) for at, (width, height) in enumerate(sizes)]
    names, partition = [f'{at + 1:06}.jpg' for at in range(count)], np.arange(count) % 3
    attributes = rng.choice([-1, 1], (count, 4))
    attributes[:2, 2] = -1, 1
    for name, image in zip(names, images):
        picture(folder / 'img_align_celeba' / name, image, quality=98)

    def table(head, rows):
        return (head + ''.join(f'{name} {" ".join(f"{value:2}" for value in row)}\n' for name, row in zip(names, rows))).encode()

    bodies = {'list_attr_celeba.txt': table(f'{count}\nBald Male Smiling Young \n', attributes), 'list_eval_partition.txt': table('', partition[:, None]),
              'identity_CelebA.txt': table('', rng.integers(1, 99, (count, 1))),
              'list_bbox_celeba.txt': table(f'{count}\nid x y w h\n', rng.integers(1, 9, (count, 4))),
              'list_landmarks_align_celeba.txt': table(f'{count}\n' + 'x ' * 10 + '\n', rng.integers(1, 9, (count, 10)))}
    sums = {file: md5(put(folder / file, body)) for file, body in bodies.items()}
    kept = [(drive, sums.get(file, old), file) for drive, old, file in datasets.CelebA.file_list]
    monkeypatch.setattr(datasets.CelebA, 'file_list', kept)
    return images, attributes, partition


WNIDS = ('n02124075', 'n01443537', 'n04067472')


def tiny_imagenet(root):
    """Three classes, the lines of wnids.txt unsorted, one train image grey. -> {(part, file name): (class, image)}."""
    folder, written = root / 'tiny-imagenet-200', {}
    put(folder / 'wnids.txt', '\n'.join(WNIDS).encode())
    put(folder / 'words.txt', b'n01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn04067472\treel\nn00001740\tentity\n')
    annotations = []
    for number, wnid in enumerate(WNIDS):
        for at in range(4):
            name, image = f'{wnid}_{at}.JPEG', smooth(100 * number + at, 64, 64, 1 if (number, at) == (1, 2) else 3)
            picture(folder / 'train' / wnid / 'images' / name, image, quality=98)
            written['train', name] = wnid, image
        put(folder / 'train' / wnid / f'{wnid}_boxes.txt', b'x\t0\t0\t62\t62\n')
    for at in range(6):
        name, wnid, image = f'val_{at}.JPEG', WNIDS[(at * 2) % 3], smooth(500 + at, 64, 64)
        picture(folder / 'val' / 'images' / name, image, quality=98)
        annotations.append(f'{name}\t{wnid}\t0\t32\t44\t62\n')
        written['val', name] = wnid, image
    put(folder / 'val' / 'val_annotations.txt', ''.join(annotations).encode())
    picture(folder / 'test' / 'images' / 'test_0.JPEG', smooth(900, 64, 64))
    return written


def imagenet(root):
    """Two classes as torchvision leaves them. -> {(part, file name): (class, image)}."""
    import torch
    names = {'n01440764': ('tench', 'Tinca tinca'), 'n03126707': ('crane',)}
    written = {}
    for name, sizes in (('train', ((80, 60), (50, 70))), ('val', ((64, 64),))):
        for number, wnid in enumerate(names):
            for at, (width, height) in enumerate(sizes):
                file, image = f'{name}_{wnid}_{at}.JPEG', smooth(10 * number + at + len(name), height, width)
                picture(root / name / wnid / file, image, quality=98)
                written[name, file] = wnid, image
    torch.save((names, ['n03126707', 'n01440764']), root / 'meta.bin')
    return written


def places365(root, monkeypatch, side=32):
    """Three scenes; the lists name files by scene (train) or alone (val). -> (train, val) as [(image, label)]."""
    table = put(root / 'categories_places365.txt', b'/a/airfield 0\n/a/alley 1\n/b/beach 2\n')
    monkeypatch.setattr(datasets.Places365, '_CATEGORIES_META', (table.name, md5(table)))
    lists, parts = dict(datasets.Places365._FILE_LIST_META), []
    scenes = ('/a/airfield', '/a/alley', '/b/beach')
    for split, folder, stem in (('train-standard', 'data_256_standard', 'places365_train_standard.txt'), ('val', 'val_256', 'places365_val.txt')):
        lines, written = [], []
        for at in range(6):
            label = (at * 2 + 1) % 3
            name = f'{scenes[label]}/{at:08}.jpg' if split != 'val' else f'Places365_val_{at:08}.jpg'
            image = smooth(700 + at + len(split), side, side)
            picture(root / folder / name.lstrip('/'), image, quality=98)
            lines.append(f'{name} {label}\n')
            written.append((image, label))
        lists[split] = (stem, md5(put(root / stem, ''.join(lines).encode())))
        parts.append(written)
    monkeypatch.setattr(datasets.Places365, '_FILE_LIST_META', lists)
    return parts


# --- archives

def tarred(archive, base, *folders, mode='w:gz'):
    """An archive of folders below `base`; -> its MD5 sum."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, mode) as tar:
        for folder in folders:
            tar.add(base / folder, folder)
    return md5(archive)


def zipped(archive, base):
    """Likewise, of everything below `base`."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, 'w') as bundle:
        for file in sorted(base.rglob('*')):
            bundle.write(file, file.relative_to(base))
    return md5(archive)
