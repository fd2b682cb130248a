"""Means and deviations against numpy in float64; what is cached, and when it is not believed."""
import importlib
import json
import os

import numpy as np
import pytest

from Datasets.Labelled import Source, Statistics, load, statistics
from tests.Datasets.labelled_files import picture, smooth

module = importlib.import_module('Datasets.Labelled.Statistics')  # the package's `statistics` is its function


def images(seed=0, count=300, shape=(3, 9, 11), name='set', low=0, high=256):
    rng = np.random.default_rng(seed)
    return Source(name, ['a', 'b'], rng.integers(0, 2, count), shape, rng.integers(low, high, (count, *shape), np.uint8))


def vectors(seed=0, count=1000, size=5, offset=0.0):
    rng = np.random.default_rng(seed)
    return Source('vectors', ['a'], np.zeros(count, np.int64), (size,), (offset + rng.normal(size=(count, size)) * [1, 5, 0.1, 30, 2]).astype(np.float32))


@pytest.fixture
def passes(monkeypatch):
    """How often a set was gone through."""
    counted, reckon = [], module.reckon
    monkeypatch.setattr(module, 'reckon', lambda source: counted.append(source) or reckon(source))
    return counted


def assert_reckoned(found, samples, axes):
    exact = samples.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(found.std, exact.std(axes), rtol=1e-9, atol=1e-12)
    assert (found.low, found.high) == (exact.min(), exact.max())
    assert all(type(value) is float for value in (*found.mean, *found.std, found.low, found.high))


@pytest.mark.parametrize('values', [1, 1000, 1 << 21])
def test_images_by_channel(values, monkeypatch):
    monkeypatch.setattr(module, 'VALUES', values)
    source = images(low=3, high=250)
    source.images[:, 1] //= 4
    assert_reckoned(statistics(source, None), source.images, (0, 2, 3))


@pytest.mark.parametrize('values', [1, 700, 1 << 21])
@pytest.mark.parametrize('offset', [0, 1e4])
def test_vectors_by_entry(values, offset, monkeypatch):
    monkeypatch.setattr(module, 'VALUES', values)
    source = vectors(offset=offset)
    assert_reckoned(statistics(source, None), source.images, 0)


def test_a_constant_channel_has_no_deviation():
    source = images()
    source.images[:, 2] = 77
    found = statistics(source, None)
    assert (found.mean[2], found.std[2]) == (77, 0)


def test_by_hand():
    source = Source('hand', ['a'], np.zeros(2, np.int64), (1, 1, 2), np.array([[[[0, 255]]], [[[255, 10]]]], np.uint8))
    found = statistics(source, None)
    assert found == Statistics((130.0,), (pytest.approx(np.sqrt((130 ** 2 + 2 * 125 ** 2 + 120 ** 2) / 4)),), 0.0, 255.0)
    with pytest.raises(AttributeError):
        found.low = 1


def test_a_named_set(tmp_path):
    source = load('digits', train=True, root=tmp_path)
    assert_reckoned(statistics(source, None), source.images, (0, 2, 3))


@pytest.mark.parametrize('kind', ['file', 'folder', 'new folder'])
def test_the_second_time_costs_no_pass(kind, tmp_path, passes):
    cache = {'file': tmp_path / 'cache.json', 'folder': tmp_path, 'new folder': tmp_path / 'a' / 'b' / 'cache.json'}[kind]
    first = statistics(images(), cache)
    assert len(passes) == 1
    assert statistics(images(), cache) == first and len(passes) == 1
    assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == ['statistics.json' if kind == 'folder' else 'cache.json']
    statistics(images(), None)
    assert len(passes) == 2


def test_another_set_never_gets_it(tmp_path, passes):
    base, others = images(), [images(name='other'), images(count=299), images(1), images(), images(), images()]
    others[3].images[150, 1, 4, 5] ^= 1
    others[4].labels[7] ^= 1
    others[5].images = others[5].images.reshape(300, 3, 11, 9)
    others[5].shape = (3, 11, 9)
    statistics(base, tmp_path)
    for number, other in enumerate(others, 2):
        found = statistics(other, tmp_path)
        assert len(passes) == number
        assert_reckoned(found, other.images, (0, 2, 3))
    for other in (base, *others):  # and they live side by side
        statistics(other, tmp_path)
    assert len(passes) == 7


@pytest.mark.parametrize('body', [b'', b'{"set 300 3x9x11', b'[1, 2]', b'\xff\xfe\x00', b'null', b'{"x": 1}', b'"text"'])
def test_a_torn_or_foreign_file_is_replaced(body, tmp_path, passes):
    cache = tmp_path / 'cache.json'
    cache.write_bytes(body)
    first = statistics(images(), cache)
    assert statistics(images(), cache) == first and len(passes) == 1
    assert list(json.loads(cache.read_text())) == [key for key in json.loads(cache.read_text()) if key.startswith('set 300 3x9x11 ')]


@pytest.mark.parametrize('change', [{'mean': [1.0]}, {'std': [1.0, 2.0, float('nan')]}, {'low': None}, {'high': 'x'}, {'mean': 5},
                                    {'mean': [1, 2, 3, 4], 'std': [1, 2, 3, 4]}])
def test_an_entry_that_cannot_be_right_is_reckoned_again(change, tmp_path, passes):
    cache = tmp_path / 'cache.json'
    first = statistics(images(), cache)
    entries = json.loads(cache.read_text())
    for entry in entries.values():
        entry.update(change)
    cache.write_text(json.dumps(entries))
    assert statistics(images(), cache) == first and len(passes) == 2
    assert statistics(images(), cache) == first and len(passes) == 2


def test_a_write_that_fails_leaves_the_old_file_and_the_numbers(tmp_path, passes, monkeypatch):
    cache = tmp_path / 'cache.json'
    statistics(images(), cache)
    before = cache.read_bytes()

    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    source = images(3)
    assert_reckoned(statistics(source, cache), source.images, (0, 2, 3))
    assert cache.read_bytes() == before and list(tmp_path.iterdir()) == [cache]


def test_streams_are_gone_through_once_and_known_again(tmp_path, passes, monkeypatch):
    root, cache = tmp_path / 'root', tmp_path / 'cache.json'
    for at in range(150):
        picture(root / 'train' / 'a' / f'{at:03}.png', smooth(at, 8, 8))
    memory, stream = (load('folder', train=True, root=root, stream=stream) for stream in (False, True))
    found = statistics(stream, cache)
    assert found == statistics(memory, None)
    assert_reckoned(found, memory.images, (0, 2, 3))

    def decoded(*args):
        raise AssertionError('an image was read')

    again = load('folder', train=True, root=root, stream=True)
    with monkeypatch.context() as patched:
        patched.setattr('Datasets.Labelled.Readers.pixels', decoded)
        assert statistics(again, cache) == found
    changed = root / 'train' / 'a' / '077.png'
    picture(changed, smooth(999, 8, 8))
    os.utime(changed, ns=(1, 1))
    count = len(passes)
    other = statistics(load('folder', train=True, root=root, stream=True), cache)
    assert len(passes) == count + 1 and other != found
    resized = load('folder', train=True, root=root, stream=True, image_size=8)
    statistics(resized, cache)
    assert len(passes) == count + 2


def test_a_stream_of_an_array_is_known_by_its_content(tmp_path, passes):
    sources = [load('digits', train=train, root=tmp_path, stream=stream) for train in (True, False) for stream in (True, False)]
    found = [statistics(source, tmp_path) for source in sources]
    assert found[0] == found[1] != found[2] == found[3] and len(passes) == 4
    for source in sources:
        statistics(source, tmp_path)
    assert len(passes) == 4
