"""Sets that torchvision reads: files in the real format of each are read pixel by pixel as they were written."""
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from Datasets.Labelled import load, names
from Datasets.Labelled.Readers import in_order
from Datasets.Suites.Names import SETS
from tests.Datasets import labelled_files as write
from tests.Datasets.labelled_files import datasets

ROOT = Path(__file__).parents[2]


def no_network(*args, **options):
    raise AssertionError('the network was asked')


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr('urllib.request.urlopen', no_network)


def quiet(line):
    raise AssertionError(f'said {line}')


def get(name, root, train=True, **options):
    return load(name, train=train, root=root, say=options.pop('say', quiet), **options)


def assert_part(source, part, name, classes=None):
    assert source.name == name and len(source) == len(part.labels)
    assert source.labels.dtype == np.int64 and source.labels.tolist() == part.labels.tolist()
    assert source.images.dtype == np.uint8 and source.images.flags.c_contiguous
    np.testing.assert_array_equal(source.images, part.images)
    assert source.shape == part.images.shape[1:] and all(type(size) is int for size in source.shape)
    one = source.read(3)
    np.testing.assert_array_equal(one, part.images[3])
    one[:] = 0  # a sample is the caller's own
    np.testing.assert_array_equal(source.read(3), part.images[3])
    if classes is not None:
        assert source.classes == classes


DIGITS = [str(digit) for digit in range(10)]
ZERO_TO_NINE = ['0 - zero', '1 - one', '2 - two', '3 - three', '4 - four', '5 - five', '6 - six', '7 - seven', '8 - eight', '9 - nine']


def test_the_names_of_tasks_are_those_of_the_sets():
    assert set(SETS) == {*names(), 'custom'}


def test_names_are_those_that_are_documented():
    assert names() == sorted(['digits', 'mnist', 'fashion_mnist', 'emnist', 'kmnist', 'qmnist', 'usps', 'svhn', 'cifar10', 'cifar100', 'stl10',
                              'tiny_imagenet', 'places365', 'celeba', 'imagenet', 'folder'])


@pytest.mark.parametrize(('name', 'cls', 'classes'), [
    ('mnist', 'MNIST', ZERO_TO_NINE), ('kmnist', 'KMNIST', ['o', 'ki', 'su', 'tsu', 'na', 'ha', 'ma', 'ya', 're', 'wo']),
    ('fashion_mnist', 'FashionMNIST', ['T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot'])])
def test_idx(name, cls, classes, tmp_path):
    train, test = write.mnist(tmp_path, cls)
    assert_part(get(name, tmp_path), train, name, classes)
    assert_part(get(cls, tmp_path, train=False), test, name, classes)  # torchvision's spelling


def test_emnist_is_balanced_unless_another_selection_is_asked_for(tmp_path):
    train, test = write.emnist(tmp_path)
    assert_part(get('emnist', tmp_path), train, 'emnist')
    source = get('emnist', tmp_path, train=False)
    assert_part(source, test, 'emnist')
    assert len(source.classes) == 47 and source.classes[9:12] == ['9', 'A', 'B'] and source.classes[-1] == 't'
    letters, _ = write.emnist(tmp_path, 'letters', 27)
    source = get('emnist', tmp_path, dataset={'split': 'letters'})
    assert_part(source, letters, 'emnist')
    assert source.classes[:3] == ['N/A', 'a', 'b'] and len(source.classes) == 27


def test_qmnist_labels_are_the_first_of_eight_columns(tmp_path):
    train, test = write.qmnist(tmp_path)
    assert_part(get('qmnist', tmp_path), train, 'qmnist', ZERO_TO_NINE)
    assert_part(get('qmnist', tmp_path, train=False), test, 'qmnist', ZERO_TO_NINE)
    source = get('qmnist', tmp_path, train=False, dataset={'what': 'test10k'})
    np.testing.assert_array_equal(source.images, test.images[:10000])
    assert_part(get('qmnist', tmp_path, dataset={'what': 'test10k'}), train, 'qmnist')  # a choice of test images leaves training alone


def test_usps(tmp_path):
    train, test = write.usps(tmp_path)
    assert_part(get('usps', tmp_path), train, 'usps', DIGITS)
    assert_part(get('usps', tmp_path, train=False), test, 'usps', DIGITS)


def test_svhn_stores_columns_first_and_zero_as_ten(tmp_path, monkeypatch):
    extra = write.part(12, 9, 10, 3, 32, 32)
    parts = write.svhn(tmp_path, monkeypatch, train=write.part(10, 150, 10, 3, 32, 32), test=write.part(11, 11, 10, 3, 32, 32), extra=extra)
    assert 0 in parts['train'].labels
    assert_part(get('svhn', tmp_path), parts['train'], 'svhn', DIGITS)
    assert_part(get('svhn', tmp_path, train=False), parts['test'], 'svhn', DIGITS)
    assert_part(get('svhn', tmp_path, dataset={'split': 'extra'}), extra, 'svhn')
    assert_part(get('svhn', tmp_path, train=False, dataset={'split': 'extra'}), parts['test'], 'svhn')


def test_cifar10_joins_five_files_in_their_order(tmp_path, monkeypatch):
    train, test = write.cifar10(tmp_path, monkeypatch)
    assert_part(get('cifar10', tmp_path), train, 'cifar10', write.CIFAR_NAMES)
    assert_part(get('cifar10', tmp_path, train=False), test, 'cifar10', write.CIFAR_NAMES)
    reference = datasets.CIFAR10(str(tmp_path))
    np.testing.assert_array_equal(get('cifar10', tmp_path).images.transpose(0, 2, 3, 1), reference.data)
    assert get('cifar10', tmp_path).labels.tolist() == reference.targets


def test_cifar100_has_the_fine_labels(tmp_path, monkeypatch):
    train, test = write.cifar100(tmp_path, monkeypatch)
    classes = [f'thing {number}' for number in range(100)]
    assert_part(get('cifar100', tmp_path), train, 'cifar100', classes)
    assert_part(get('cifar100', tmp_path, train=False), test, 'cifar100', classes)


def test_stl10_stores_columns_first(tmp_path, monkeypatch):
    train, test = write.stl10(tmp_path, monkeypatch)
    assert_part(get('stl10', tmp_path), train, 'stl10')
    source = get('stl10', tmp_path, train=False)
    assert_part(source, test, 'stl10')
    assert source.classes[0] == 'airplane' and source.classes[9] == 'truck'
    fold = get('stl10', tmp_path, dataset={'folds': 4})
    assert_part(get('stl10', tmp_path, train=False, dataset={'folds': 4}), test, 'stl10')
    np.testing.assert_array_equal(fold.images, train.images[4:7])


def close(image, written, tolerance=6):
    """JPEG is not exact; the images differ by far more."""
    assert image.shape == written.shape and image.dtype == np.uint8
    assert np.abs(image.astype(int) - written).max() <= tolerance


def test_celeba_is_one_attribute_at_64_pixels(tmp_path, monkeypatch):
    images, attributes, partition = write.celeba(tmp_path, monkeypatch)
    for train, number in ((True, 0), (False, 2)):
        source = get('celeba', tmp_path, train)
        mine = np.flatnonzero(partition == number)
        assert source.classes == ['not Smiling', 'Smiling'] and source.shape == (3, 64, 64)
        assert source.labels.tolist() == (attributes[mine, 2] == 1).astype(int).tolist()
        for at, index in enumerate(mine):
            colours, expected = source.images[at].reshape(3, -1).mean(1), images[index].reshape(3, -1).mean(1)
            assert np.abs(colours - expected).max() < 3, (at, index)
    bald = get('celeba', tmp_path, dataset={'attribute': 'Bald'}, image_size=32)
    assert bald.classes == ['not Bald', 'Bald'] and bald.shape == (3, 32, 32)
    assert bald.labels.tolist() == (attributes[partition == 0, 0] == 1).astype(int).tolist()
    valid = get('celeba', tmp_path, train=False, dataset={'split': 'valid'})
    assert valid.labels.tolist() == (attributes[partition == 1, 2] == 1).astype(int).tolist()
    with pytest.raises(ValueError, match=r'^dataset.attribute=smilling: no such attribute; nearest: Smiling'):
        get('celeba', tmp_path, dataset={'attribute': 'smilling'})


def test_tiny_imagenet_reads_the_labels_of_its_validation_part_from_their_file(tmp_path):
    written = write.tiny_imagenet(tmp_path)
    wnids = sorted(write.WNIDS)
    train, test = get('tiny_imagenet', tmp_path), get('TinyImageNet', tmp_path, train=False)
    assert train.classes == test.classes == ['n01443537 goldfish', 'n02124075 Egyptian cat', 'n04067472 reel']
    for source, part in ((train, 'train'), (test, 'val')):
        assert len(source) == sum(key[0] == part for key in written) and source.shape == (3, 64, 64)
    order = [written['train', f'{wnid}_{at}.JPEG'] for wnid in wnids for at in range(4)]
    order_test = [written['val', f'val_{at}.JPEG'] for at in range(6)]
    for source, expected in ((train, order), (test, order_test)):
        assert source.labels.tolist() == [wnids.index(wnid) for wnid, _ in expected]
        for image, (_, original) in zip(source.images, expected, strict=True):
            close(image, np.broadcast_to(original, (3, 64, 64)))  # one is grey


def test_places365_is_small_and_tested_on_its_validation_part(tmp_path, monkeypatch):
    train, val = write.places365(tmp_path, monkeypatch)
    for source, expected in ((get('places365', tmp_path), train), (get('places365', tmp_path, train=False), val)):
        assert source.classes == ['/a/airfield', '/a/alley', '/b/beach']
        assert source.labels.tolist() == [label for _, label in expected]
        for image, (original, _) in zip(source.images, expected, strict=True):
            close(image, original)
    with pytest.raises(FileNotFoundError, match=r'task=classify/places365: .*data_large_standard not in .*train_large_places365standard.tar'):
        get('places365', tmp_path, dataset={'small': False}, download=False)


def test_imagenet_as_torchvision_leaves_it(tmp_path):
    written = write.imagenet(tmp_path)
    with pytest.raises(ValueError, match=r'differ in size: .*train_n01440764_0.JPEG has 80×60 pixels, .*train_n01440764_1.JPEG 50×70; image_size=N'):
        get('imagenet', tmp_path)
    train = get('imagenet', tmp_path, image_size=40)
    assert train.classes == ['n01440764 tench', 'n03126707 crane'] and train.labels.tolist() == [0, 0, 1, 1] and train.shape == (3, 40, 40)
    test = get('imagenet', tmp_path, train=False)
    assert test.labels.tolist() == [0, 1]
    for image, wnid in zip(test.images, ('n01440764', 'n03126707'), strict=True):
        close(image, written['val', f'val_{wnid}_0.JPEG'][1])


def test_imagenet_says_what_to_put_where(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        get('imagenet', tmp_path)
    text = str(caught.value)
    assert 'ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar into ' + str(tmp_path) in text and 'https://image-net.org' in text and '\n' not in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('loose', ['n01440764.tar', 'ILSVRC2012_val_00000001.JPEG'])
def test_imagenet_that_was_not_unpacked_to_its_end_is_noticed(tmp_path, loose):
    write.imagenet(tmp_path)
    for part in ('train', 'val'):
        (tmp_path / part / loose).write_bytes(b'x')
        with pytest.raises(ValueError, match=rf'{part} was not unpacked to the end \({loose} lies in no class\): delete the folder'):
            get('imagenet', tmp_path, part == 'train', image_size=8)


def test_imagenet_parts_of_different_classes_are_refused(tmp_path):
    write.imagenet(tmp_path)
    (tmp_path / 'train' / 'n03126707').rename(tmp_path / 'gone')
    with pytest.raises(ValueError, match=r'/train have different classes: only the first has n03126707'):
        get('imagenet', tmp_path, train=False)


# --- sizes, and what is in memory

def test_arrays_are_resized_like_torchvision_resizes_tensors(tmp_path):
    import torch

    from Blocks.Vision import import_torchvision
    functional = import_torchvision('transforms.functional')
    train, _ = write.mnist(tmp_path, train=write.part(1, 70, 10, 1, 28, 36))
    for size in (14, 50):
        source = get('mnist', tmp_path, image_size=size)
        assert source.shape == (1, size, size)
        for at in (0, 65, 69):
            expected = functional.center_crop(functional.resize(torch.from_numpy(train.images[at]), [size], antialias=True), [size, size])
            np.testing.assert_array_equal(source.images[at], expected.numpy())


def test_a_stream_reads_what_memory_holds(tmp_path, monkeypatch):
    write.stl10(tmp_path, monkeypatch)
    write.tiny_imagenet(tmp_path)
    for name, size in (('stl10', None), ('stl10', 20), ('tiny_imagenet', None), ('tiny_imagenet', 30)):
        memory, stream = (get(name, tmp_path, image_size=size, stream=stream) for stream in (False, True))
        assert stream.images is None and memory.images is not None and stream.shape == memory.shape
        assert stream.labels.tolist() == memory.labels.tolist()
        travelled = pickle.loads(pickle.dumps(stream))
        for index in range(len(memory)):
            one = stream.read(index)
            assert one.flags.c_contiguous and one.flags.writeable
            np.testing.assert_array_equal(one, memory.read(index))
            np.testing.assert_array_equal(travelled.read(index), memory.images[index])


def test_the_size_of_a_set_decides_whether_it_is_held(tmp_path, monkeypatch):
    write.mnist(tmp_path)
    monkeypatch.setattr('Datasets.Labelled.Readers.HELD', 12 * 28 * 28)
    assert get('mnist', tmp_path).images is not None
    monkeypatch.setattr('Datasets.Labelled.Readers.HELD', 12 * 28 * 28 - 1)
    assert get('mnist', tmp_path).images is None
    assert get('mnist', tmp_path, stream=False).images is not None


def test_square_images_stored_columns_first_are_turned_where_they_lie():
    stored = np.random.default_rng(0).integers(0, 256, (150, 3, 8, 8), np.uint8)
    expected = stored.transpose(0, 1, 3, 2).copy()
    turned = in_order(stored.transpose(0, 1, 3, 2))
    np.testing.assert_array_equal(turned, expected)
    assert turned.flags.c_contiguous and np.shares_memory(turned, stored)
    for other in (stored[:, :, :, :5].transpose(0, 1, 3, 2), stored[:, ::-1], stored[::2].transpose(0, 1, 3, 2)):  # no such luck: copied
        copied = other.copy()
        np.testing.assert_array_equal(in_order(other), copied)
        assert in_order(other).flags.c_contiguous


PEAK = """
import sys
import numpy as np
from unittest.mock import patch
from Datasets.Labelled import load
from Datasets.Labelled.Readers import import_torchvision
cls = import_torchvision('datasets').CIFAR10
from pathlib import Path
root = Path(sys.argv[1])
names = [f'data_batch_{n}' for n in range(1, 6)]
patches = [patch.object(cls, 'train_list', [[name, None] for name in names]), patch.object(cls, 'meta', {**cls.meta, 'md5': None})]
for one in patches: one.start()
def peak():  # of this process alone; getrusage begins with that of its parent
    return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith('VmHWM'))
before = peak()
source = load('cifar10', train=True, root=root)
after = peak()
assert source.images.shape == (50_000, 3, 32, 32)
print((after - before) / source.images.nbytes)
"""


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='needs /proc')
def test_cifar10_is_held_once(tmp_path):
    """50,000 images, 154 MB: the peak is one copy and a file or two, where torchvision alone has two copies."""
    folder = tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    data, labels = np.tile(np.arange(256, dtype=np.uint8), (10_000, 12)), [at % 10 for at in range(10_000)]
    for number in range(1, 6):
        with open(folder / f'data_batch_{number}', 'wb') as file:
            pickle.dump({'data': data, 'labels': labels}, file, protocol=4)
    (folder / 'batches.meta').write_bytes(pickle.dumps({'label_names': write.CIFAR_NAMES}))
    # freed memory goes back at once: else the allocator may keep a file or two, by chance
    env = os.environ | {'MALLOC_MMAP_THRESHOLD_': str(2 ** 20)}
    done = subprocess.run([sys.executable, '-c', PEAK, str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout.split()[-1]) < 1.6


# --- bad files and options

def one_line(name, root, train=True, error=ValueError, **options):
    with pytest.raises(error) as caught:
        get(name, root, train, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def cut(path, keep=0.6):
    body = path.read_bytes()
    path.write_bytes(body[:int(len(body) * keep)])


@pytest.mark.parametrize('file', ['train-images-idx3-ubyte', 'train-labels-idx1-ubyte'])
@pytest.mark.parametrize('keep', [0.6, 0.002])
def test_a_truncated_idx_file_is_named_with_its_size(file, keep, tmp_path):
    write.mnist(tmp_path)
    path = tmp_path / 'MNIST' / 'raw' / file
    size = path.stat().st_size
    cut(path, keep)
    text = one_line('mnist', tmp_path)
    assert f'{path} is ' in text and 'delete it, and it is fetched again' in text
    if path.stat().st_size >= 16:
        assert f'truncated: {path.stat().st_size} bytes, its header asks for {size}' in text


@pytest.mark.parametrize('body', [b'', b'<html>404</html>', b'\0\0\x08'])
def test_what_is_no_idx_file_is_named(body, tmp_path):
    write.mnist(tmp_path)
    path = tmp_path / 'MNIST' / 'raw' / 't10k-images-idx3-ubyte'
    path.write_bytes(body)
    assert f'{path} is no IDX file' in one_line('mnist', tmp_path, train=False)


def test_a_truncated_qmnist_label_file_is_named(tmp_path):
    write.qmnist(tmp_path)
    path = tmp_path / 'QMNIST' / 'raw' / 'qmnist-train-labels-idx2-int'
    cut(path)
    assert f'{path} is truncated' in one_line('qmnist', tmp_path)


def test_other_broken_files_are_named(tmp_path, monkeypatch):
    write.usps(tmp_path)
    write.svhn(tmp_path, monkeypatch)
    write.cifar10(tmp_path, monkeypatch)
    write.stl10(tmp_path, monkeypatch)
    write.celeba(tmp_path, monkeypatch)
    for name, file in (('usps', 'usps.bz2'), ('svhn', 'train_32x32.mat'), ('cifar10', 'cifar-10-batches-py/data_batch_3'),
                       ('stl10', 'stl10_binary/train_X.bin'), ('cifar10', 'cifar-10-batches-py/batches.meta'), ('celeba', 'celeba/list_attr_celeba.txt')):
        whole = (tmp_path / file).read_bytes()
        cut(tmp_path / file)
        text = one_line(name, tmp_path)
        assert f'task=classify/{name}: {tmp_path / file} is corrupt or truncated' in text and 'delete it, and it is fetched again' in text
        (tmp_path / file).write_bytes(whole)
    assert len(get('cifar10', tmp_path)) == 35


def test_broken_files_whose_checksum_is_right_are_named_too(tmp_path, monkeypatch):
    """What a checksum does not catch: files that a user made in these formats."""
    write.svhn(tmp_path, monkeypatch)
    write.cifar10(tmp_path, monkeypatch)
    batch, mat = tmp_path / 'cifar-10-batches-py' / 'data_batch_3', tmp_path / 'train_32x32.mat'
    cut(batch)
    cut(mat)
    monkeypatch.setattr(datasets.CIFAR10, 'train_list', [[f'data_batch_{n}', write.md5(batch.with_name(f'data_batch_{n}'))] for n in range(1, 6)])
    monkeypatch.setitem(datasets.SVHN.split_list, 'train', ['', mat.name, write.md5(mat)])
    assert f'{batch} cannot be read (' in one_line('cifar10', tmp_path)
    assert f'cannot read {mat} (' in one_line('svhn', tmp_path)
    body = {'data': np.zeros((4, 3072), np.uint8), 'labels': [0, 1]}
    batch.write_bytes(pickle.dumps(body))
    datasets.CIFAR10.train_list[2][1] = write.md5(batch)
    assert f'{batch} cannot be read (ValueError: 4 images, 2 labels)' in one_line('cifar10', tmp_path)


def test_labels_outside_the_classes_are_named(tmp_path, monkeypatch):
    train, test = write.part(1, 12, 10, 1, 28, 28), write.part(2, 10, 10, 1, 28, 28)
    train.labels[7] = 10
    write.mnist(tmp_path, train=train, test=test)
    assert one_line('mnist', tmp_path) == 'task=classify/mnist: sample 7 has label 10, expected 0 to 9, as many as classes'
    write.stl10(tmp_path, monkeypatch, first_label=0)
    assert 'task=classify/stl10: sample 0 has label -1, expected 0 to 9' in one_line('stl10', tmp_path)


def test_images_without_labels_and_empty_sets_are_refused(tmp_path):
    train, test = write.part(1, 12, 10, 1, 28, 28), write.part(2, 10, 10, 1, 28, 28)
    write.mnist(tmp_path, train=write.Part(train.images, train.labels[:9]), test=write.Part(test.images[:0], test.labels[:0]))
    assert one_line('mnist', tmp_path) == 'task=classify/mnist: 12 images but labels of shape (9,)'
    assert one_line('mnist', tmp_path, train=False).startswith(f'task=classify/mnist: {tmp_path}/MNIST/raw/t10k-images-idx3-ubyte is empty')


def test_files_that_are_listed_and_not_there_are_named(tmp_path, monkeypatch):
    write.tiny_imagenet(tmp_path)
    write.celeba(tmp_path, monkeypatch)
    write.places365(tmp_path, monkeypatch)
    for name, file, train in (('tiny_imagenet', 'tiny-imagenet-200/val/images/val_3.JPEG', False), ('celeba', 'celeba/img_align_celeba/000004.jpg', True),
                              ('places365', 'val_256/Places365_val_00000002.jpg', False)):
        (tmp_path / file).unlink()
        assert f'{tmp_path / file} is missing' in one_line(name, tmp_path, train)
        if name != 'places365':  # 1.8 million files: each is missed when its turn comes
            assert f'{tmp_path / file} is missing' in one_line(name, tmp_path, train, stream=True)


def test_tiny_imagenet_half_unpacked_is_noticed(tmp_path):
    write.tiny_imagenet(tmp_path)
    base = tmp_path / 'tiny-imagenet-200'
    with open(base / 'val' / 'val_annotations.txt', 'a') as file:
        file.write('val_6.JPEG\tn09999999\t0\t0\t1\t1\n')
    assert 'val_annotations.txt, line 7: n09999999' in one_line('tiny_imagenet', tmp_path, train=False).replace("'", '')
    for image in (base / 'train' / 'n04067472' / 'images').iterdir():
        image.unlink()
    assert f'{base}/train/n04067472 has no image' in one_line('tiny_imagenet', tmp_path)
    (base / 'train' / 'n04067472').rename(tmp_path / 'gone')
    assert 'have different classes: only the first has n04067472' in one_line('tiny_imagenet', tmp_path)


@pytest.mark.parametrize(('name', 'options', 'expected'), [
    ('mnits', {}, 'task=classify/mnits: no such data set; nearest: classify/mnist'),
    ('mnist', {'dataset': {'split': 'letters'}}, 'dataset.split: mnist has no such option; it has none'),
    ('emnist', {'dataset': {'spilt': 'letters'}}, 'dataset.spilt: emnist has no such option; nearest: split'),
    ('emnist', {'dataset': {'split': 'leters'}}, 'dataset.split=leters: emnist has balanced, byclass'),
    ('stl10', {'dataset': {'folds': 10}}, 'dataset.folds=10: expected 0 to 9'),
    ('stl10', {'dataset': {'split': 'unlabeled'}}, 'dataset.split=unlabeled: stl10 has train, test'),
    ('places365', {'dataset': {'small': 'yes'}}, 'dataset.small=yes: expected true or false'),
    ('digits', {'image_size': 0}, 'image_size=0: expected pixels, at least 1'),
    ('digits', {'image_size': 8.5}, 'image_size=8.5: expected pixels, at least 1')])
def test_options_are_checked(name, options, expected, tmp_path):
    assert expected in one_line(name, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
