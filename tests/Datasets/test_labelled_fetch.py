"""Fetching: from a server that this file plays, from archives put there by hand, interrupted, truncated, without a network."""
import fcntl
import io
import os
import shutil
import sys
import tarfile
import threading
import urllib.error

import numpy as np
import pytest

from Blocks.Vision import import_torchvision
from Datasets.Labelled import Fetch, load
from Datasets.Labelled.Folder import TinyImageNet
from tests.Datasets import labelled_files as write
from tests.Datasets.labelled_files import datasets


class Server:
    """Stands for the network. files: name at the end of the address → body. cut: name → how many bytes arrive before `then` happens."""

    def __init__(self):
        self.files, self.asked, self.cut, self.then = {}, [], {}, None

    def open(self, request, *args, **options):
        name = request.full_url.rpartition('/')[2]
        self.asked.append(name)
        if name not in self.files:
            raise urllib.error.URLError('Name or service not known')
        return Answer(self, name, request.full_url)

    def take(self, folder, *names):
        """Serves files, which leave their folder. -> MD5 sums by name."""
        sums = {}
        for name in names:
            self.files[name] = (folder / name).read_bytes()
            sums[name] = write.md5(folder / name)
            (folder / name).unlink()
        return sums


class Answer(io.BytesIO):
    def __init__(self, server, name, url):
        super().__init__(server.files[name])
        self.server, self.name, self.url, self.length = server, name, url, len(server.files[name])

    def read(self, size=-1):
        limit = self.server.cut.get(self.name)
        if limit is None:
            return super().read(size)
        body = super().read(min(size, 100, limit - self.tell()))
        if not body and self.server.then is not None:
            raise self.server.then
        return body


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr('urllib.request.urlopen', server.open)
    return server


def get(name, root, train=True, **options):
    return load(name, train=train, root=root, **{'say': lambda line: None} | options)


def no_mnist(tmp_path, monkeypatch, cls='MNIST'):
    """A root without MNIST. -> (what it would hold, folder of its archives)."""
    train, _ = write.mnist(tmp_path / 'made', cls)
    folder = tmp_path / 'made' / cls / 'raw'
    sums = write.packed(folder)
    monkeypatch.setattr(getattr(datasets, cls), 'resources', [(name, sums[name]) for name, _ in getattr(datasets, cls).resources])
    return train, folder


MNIST = [name for name, _ in datasets.MNIST.resources]


def assert_settled(root):
    """Nothing is left of the fetching."""
    assert [path for path in root.rglob('*') if '.part' in path.name or path.name == Fetch.LOCK or path.is_symlink()] == []


def test_a_set_is_fetched_once(server, tmp_path, monkeypatch):
    train, folder = no_mnist(tmp_path, monkeypatch)
    server.take(folder, *MNIST)
    said, root = [], tmp_path / 'root'
    np.testing.assert_array_equal(get('mnist', root, say=said.append).images, train.images)
    assert said == [f'task=classify/mnist: fetching {", ".join(datasets.MNIST.mirrors[0] + name for name in MNIST)} to {root}']
    assert sorted(os.listdir(root / 'MNIST' / 'raw')) == sorted([*MNIST, *(name.removesuffix('.gz') for name in MNIST)])
    assert_settled(root)
    server.files.clear()
    server.asked.clear()
    np.testing.assert_array_equal(get('mnist', root, say=pytest.fail).images, train.images)
    assert server.asked == []


def cifar10(made, monkeypatch):
    train, _ = write.cifar10(made, monkeypatch)
    monkeypatch.setattr(datasets.CIFAR10, 'tgz_md5', write.tarred(made / datasets.CIFAR10.filename, made, 'cifar-10-batches-py'))
    return train, [datasets.CIFAR10.filename]


def stl10(made, monkeypatch):
    train, _ = write.stl10(made, monkeypatch)
    monkeypatch.setattr(datasets.STL10, 'tgz_md5', write.tarred(made / datasets.STL10.filename, made, 'stl10_binary'))
    return train, [datasets.STL10.filename]


def usps(made, monkeypatch):
    train, _ = write.usps(made)
    monkeypatch.setitem(datasets.USPS.split_list, 'train', ['http://nowhere.invalid/usps.bz2', 'usps.bz2', write.md5(made / 'usps.bz2')])
    return train, ['usps.bz2']


def svhn(made, monkeypatch):
    return write.svhn(made, monkeypatch)['train'], ['train_32x32.mat']


def emnist(made, monkeypatch):
    train, _ = write.emnist(made)
    write.packed(made / 'EMNIST' / 'raw')
    (made / 'EMNIST' / 'raw').rename(made / 'EMNIST' / 'gzip')
    monkeypatch.setattr(datasets.EMNIST, 'md5', write.zipped(made / 'gzip.zip', made / 'EMNIST'))
    return train, ['gzip.zip']


def qmnist(made, monkeypatch):
    train, _ = write.qmnist(made)
    folder = made / 'QMNIST' / 'raw'
    for file in list(folder.glob('*-int')):
        file.rename(file.with_name(f'{file.name}ubyte'))  # so that `packed` takes it
    write.packed(folder)
    names = ['qmnist-train-images-idx3-ubyte.gz', 'qmnist-train-labels-idx2-int.gz']
    (folder / 'qmnist-train-labels-idx2-intubyte.gz').rename(folder / names[1])
    for name in names:
        shutil.move(folder / name, made / name)
    base = 'https://nowhere.invalid/'
    monkeypatch.setitem(datasets.QMNIST.resources, 'train', [(base + name, write.md5(made / name)) for name in names])
    return train, names


def places365(made, monkeypatch):
    written, _ = write.places365(made, monkeypatch)
    kit, images = 'filelist_places365-standard.tar', 'train_256_places365standard.tar'
    (made / 'data_256_standard').rename(made / 'data_256')  # as it lies in the archive
    kit_md5 = write.tarred(made / kit, made, 'categories_places365.txt', 'places365_train_standard.txt', 'places365_val.txt', mode='w')
    monkeypatch.setitem(datasets.Places365._DEVKIT_META, 'standard', (kit, kit_md5))
    monkeypatch.setitem(datasets.Places365._IMAGES_META, ('train-standard', True), (images, write.tarred(made / images, made, 'data_256', mode='w')))
    return [label for _, label in written], [kit, images]


def tiny_imagenet(made, monkeypatch):
    write.tiny_imagenet(made / 'base')
    monkeypatch.setattr(TinyImageNet, 'md5', write.zipped(made / 'tiny-imagenet-200.zip', made / 'base'))
    return [0] * 4 + [1] * 4 + [2] * 4, ['tiny-imagenet-200.zip']


MAKERS = [cifar10, stl10, usps, svhn, emnist, qmnist, places365, tiny_imagenet]


@pytest.mark.parametrize('make', MAKERS)
def test_every_kind_of_archive(make, server, tmp_path, monkeypatch):
    """Without a network: one line, and nothing there. Interrupted half-way: nothing there. Cut short by the server: one line. Then fetched, and whole."""
    made, root = tmp_path / 'made', tmp_path / 'root'
    expected, archives = make(made, monkeypatch)
    name = make.__name__
    bodies = {archive: (made / archive).read_bytes() for archive in archives}
    with pytest.raises(FileNotFoundError) as caught:
        get(name, root)
    text = str(caught.value)
    assert text.startswith(f'task=classify/{name}: ') and '\n' not in text and 'cannot be fetched from http' in text and 'Name or service not known' in text
    assert f'put {", ".join(archives)} into {root}' in text
    server.files, server.cut = dict(bodies), {archives[-1]: len(bodies[archives[-1]]) // 2}
    server.then = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        get(name, root)
    server.then = None  # the connection ends as if that were all
    with pytest.raises(FileNotFoundError, match=rf'^task=classify/{name}: .* cannot be fetched from .*corrupted'):
        get(name, root)
    assert [path.name for path in root.iterdir()] == [f'.{name}.part']
    server.cut.clear()
    source = get(name, root)
    if isinstance(expected, list):
        assert source.labels.tolist() == expected
    else:
        np.testing.assert_array_equal(source.images, expected.images)
        assert source.labels.tolist() == expected.labels.tolist()
    assert_settled(root)
    asked = len(server.asked)
    assert get(name, root, say=pytest.fail).labels.tolist() == source.labels.tolist()
    assert len(server.asked) == asked


@pytest.mark.parametrize('make', MAKERS)
def test_archives_put_there_by_hand_are_unpacked_without_a_network(make, server, tmp_path, monkeypatch):
    made, root = tmp_path / 'made', tmp_path / 'root'
    _, archives = make(made, monkeypatch)
    name = make.__name__
    with pytest.raises(FileNotFoundError) as caught:
        get(name, root, download=False)
    assert 'download=true fetches http' in str(caught.value) and not root.exists()
    folder = str(caught.value).rpartition(' into ')[2].partition(' by hand')[0]
    os.makedirs(folder)
    for archive in archives:
        shutil.copy(made / archive, folder)
    assert len(get(name, root, download=False)) > 9 or name == 'places365'
    assert server.asked == []
    assert_settled(root)
    assert all(write.md5(os.path.join(folder, archive)) == write.md5(made / archive) for archive in archives)


def test_a_truncated_archive_by_hand_is_told_of_and_not_touched(server, tmp_path, monkeypatch):
    made, root = tmp_path / 'made', tmp_path / 'root'
    train, (archive,) = cifar10(made, monkeypatch)
    body = (made / archive).read_bytes()
    write.put(root / archive, body[:999])
    with pytest.raises(FileNotFoundError, match=rf'\({archive} there: not what was published, its MD5 sum differs\) and cannot be fetched'):
        get('cifar10', root)
    server.files[archive] = body
    np.testing.assert_array_equal(get('cifar10', root).images, train.images)
    assert (root / archive).read_bytes() == body[:999]


@pytest.mark.parametrize('at', ['unpack', 'settle'])
def test_a_run_killed_while_it_unpacks_leaves_nothing_that_looks_like_data(at, server, tmp_path, monkeypatch):
    """torchvision takes an unpacked MNIST file that is there for a whole one."""
    train, folder = no_mnist(tmp_path, monkeypatch)
    server.take(folder, *MNIST)
    root, settle = tmp_path / 'root', Fetch.settle

    def killed(part, root):
        file = part / 'MNIST' / 'raw' / 'train-images-idx3-ubyte'
        if at == 'unpack':
            file.write_bytes(file.read_bytes()[:100])
        else:  # after the first of its moves
            (root / 'MNIST' / 'raw').mkdir(parents=True)
            file.rename(root / 'MNIST' / 'raw' / file.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(Fetch, 'settle', killed)
    with pytest.raises(KeyboardInterrupt):
        get('mnist', root)
    monkeypatch.setattr(Fetch, 'settle', settle)
    server.asked.clear()
    np.testing.assert_array_equal(get('mnist', root).images, train.images)
    assert server.asked == []  # the archives are whole and not fetched again
    assert_settled(root)


def test_what_is_there_is_not_replaced(server, tmp_path, monkeypatch):
    """One file is gone: it alone comes back."""
    train, folder = no_mnist(tmp_path, monkeypatch)
    server.take(folder, *MNIST)
    root = tmp_path / 'root'
    write.mnist(root)
    other = write.part(77, 10, 10, 1, 28, 28)
    raw = root / 'MNIST' / 'raw'
    (raw / 't10k-images-idx3-ubyte').write_bytes(write.idx(other.images[:, 0]))
    (raw / 'train-images-idx3-ubyte').unlink()
    np.testing.assert_array_equal(get('mnist', root).images, train.images)
    np.testing.assert_array_equal(get('mnist', root, train=False).images, other.images)


def test_two_runs_do_not_fetch_at_the_same_time(server, tmp_path):
    part, said, sources = tmp_path / '.mnist.part', [], []
    part.mkdir()
    waiting = threading.Event()

    def say(line):
        said.append(line)
        waiting.set()

    with open(part / Fetch.LOCK, 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: sources.append(get('mnist', tmp_path, say=say)))
        thread.start()
        assert waiting.wait(20)
        train, _ = write.mnist(tmp_path)  # the other run is done
    thread.join(20)
    np.testing.assert_array_equal(sources[0].images, train.images)
    assert said == ['task=classify/mnist: waiting for another run that is fetching it'] and server.asked == []


def test_a_place_that_cannot_be_written_to_is_one_line(server, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=r'^task=classify/mnist: .* cannot be fetched from .* \((FileExists|NotADirectory)Error'):
        get('mnist', tmp_path / 'file' / 'root')


def test_celeba_comes_from_google_drive(server, tmp_path, monkeypatch):
    made, root = tmp_path / 'made', tmp_path / 'root'
    write.celeba(made, monkeypatch)
    monkeypatch.setitem(sys.modules, 'gdown', None)
    with pytest.raises(FileNotFoundError, match=r"^task=classify/celeba: .*https://drive.google.com/uc\?id=.*\(RuntimeError.*'gdown' is required"):
        get('celeba', root)
    shutil.move(made / 'celeba' / 'img_align_celeba', made / 'base' / 'img_align_celeba')
    zipped = write.zipped(made / 'celeba' / 'img_align_celeba.zip', made / 'base')
    listed = [(drive, zipped if file.endswith('zip') else md5, file) for drive, md5, file in datasets.CelebA.file_list]
    monkeypatch.setattr(datasets.CelebA, 'file_list', listed)

    def download(drive, folder, filename, md5):
        os.makedirs(folder, exist_ok=True)
        shutil.copy(made / 'celeba' / filename, folder)

    monkeypatch.setattr(import_torchvision('datasets.celeba'), 'download_file_from_google_drive', download)
    assert len(get('celeba', root)) == 3
    assert_settled(root)


def test_imagenet_is_unpacked_from_its_archives(server, tmp_path, monkeypatch):
    """The development kit's table of classes, an archive of archives, and images that a list of numbers sorts into classes."""
    from scipy.io import savemat
    module, wnids = import_torchvision('datasets.imagenet'), ['n01440764', 'n03126707']
    made, root = tmp_path / 'made', tmp_path / 'root'
    kit = made / 'ILSVRC2012_devkit_t12' / 'data'
    kit.mkdir(parents=True)
    rows = [(2, wnids[0], 'tench, Tinca tinca', 'a fish', 0), (1, wnids[1], 'crane', 'a machine', 0), (3, 'n00000001', 'thing', 'all', 2)]
    fields = ['ILSVRC2012_ID', 'WNID', 'words', 'gloss', 'num_children']
    savemat(kit / 'meta.mat', {'synsets': np.array(rows, [(field, object) for field in fields])})
    (kit / 'ILSVRC2012_validation_ground_truth.txt').write_text('1\n2\n2\n')
    for wnid in wnids:
        write.picture(made / wnid / f'{wnid}_1.JPEG', write.smooth(len(wnid), 40, 40))
        with tarfile.open(made / f'{wnid}.tar', 'w') as tar:
            tar.add(made / wnid / f'{wnid}_1.JPEG', f'{wnid}_1.JPEG')
    val = [f'ILSVRC2012_val_{at:08}.JPEG' for at in (1, 2, 3)]
    for at, file in enumerate(val):
        write.picture(made / file, write.smooth(80 + at, 40, 40), quality=98)
    names = {'devkit': 'ILSVRC2012_devkit_t12.tar.gz', 'train': 'ILSVRC2012_img_train.tar', 'val': 'ILSVRC2012_img_val.tar'}
    root.mkdir()
    for key, mode, members in (('devkit', 'w:gz', ['ILSVRC2012_devkit_t12']), ('train', 'w', [f'{wnid}.tar' for wnid in wnids]), ('val', 'w', val)):
        monkeypatch.setitem(module.ARCHIVE_META, key, (names[key], write.tarred(root / names[key], made, *members, mode=mode)))
    settle = Fetch.settle
    monkeypatch.setattr(Fetch, 'settle', lambda part, root: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        get('imagenet', root)
    assert not (root / 'train').exists()
    monkeypatch.setattr(Fetch, 'settle', settle)
    train, test = get('imagenet', root), get('imagenet', root, train=False)
    assert train.classes == test.classes == ['n01440764 tench', 'n03126707 crane']
    assert train.labels.tolist() == [0, 1] and sorted(path.name for path in (root / 'train').rglob('*.tar')) == []
    assert test.labels.tolist() == [0, 0, 1]
    order = [1, 2, 0]  # of the second class in the table is the first image
    for image, at in zip(test.images, order, strict=True):
        assert np.abs(image.astype(int) - write.smooth(80 + at, 40, 40)).max() <= 6
    assert server.asked == [] and sorted(path.name for path in root.iterdir()) == sorted([*names.values(), 'meta.bin', 'train', 'val'])
    (root / names['val']).write_bytes(b'short')
    shutil.rmtree(root / 'val')
    with pytest.raises(FileNotFoundError, match=r'^task=classify/imagenet: val not in .*(corrupted|ILSVRC2012_img_val.tar)'):
        get('imagenet', root, train=False)
    assert (root / names['val']).read_bytes() == b'short'
