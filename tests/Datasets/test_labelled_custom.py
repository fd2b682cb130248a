"""Data set classes of the user's own."""
import multiprocessing
import pickle
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from Datasets.Labelled import load
from Datasets.Labelled.Custom import as_label, as_sample

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (6, 3, 5, 7), np.uint8)
IMAGES[:, 0, 0, :2] = 0, 255
LABELS = [2, 0, 1, 1, 0, 2]


class Listed(torch.utils.data.Dataset):
    """Gives what it was told to, in `pairs`."""
    pairs: list = []

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


class Split(Listed):
    """Knows its part; the test part has no sample of class 2."""

    def __init__(self, root, train, scale=1):
        self.root, self.train, self.scale = root, train, scale
        kept = [at for at in range(6) if train or LABELS[at] < 2]
        self.pairs = [(IMAGES[at].transpose(1, 2, 0) // scale, LABELS[at]) for at in kept]


class Named(Split):
    classes = ('red', 'green', 'blue', 'none')


class Word(Listed):
    """Is told its part by a word."""
    tests = ('test',)

    def __init__(self, split):
        if split not in ('train', *self.tests):
            raise ValueError(f'unknown split {split}')
        self.pairs = [(IMAGES[at], LABELS[at]) for at in range(6 if split == 'train' else 3)]


class Validated(Word):
    tests = ('val',)


class NoLength:
    def __getitem__(self, index):
        return IMAGES[0], 0


class Broken(Listed):
    def __init__(self):
        raise RuntimeError('no such\nfile')


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield IMAGES[0], 0


def get(cls, root, train=True, name='mine', **options):
    recipe = {'_target_': f'{__name__}.{cls.__name__}'} | options.pop('arguments', {})
    return load(name, train=train, root=root, dataset=recipe, **{'say': lambda line: None} | options)


def of(monkeypatch, pairs, root, **options):
    monkeypatch.setattr(Listed, 'pairs', pairs)
    return get(Listed, root, **options)


def test_parts_and_classes(tmp_path):
    train, test = get(Split, tmp_path), get(Split, tmp_path, train=False)
    assert train.name == 'mine' and train.shape == (3, 5, 7) and train.classes == test.classes == ['0', '1', '2']
    np.testing.assert_array_equal(train.images, IMAGES)
    assert train.labels.tolist() == LABELS and train.labels.dtype == np.int64 and train.images.dtype == np.uint8
    assert test.labels.tolist() == [0, 1, 1, 0]
    np.testing.assert_array_equal(test.images, IMAGES[[1, 2, 3, 4]])


def test_names_of_classes_and_arguments(tmp_path):
    source = get(Named, tmp_path, arguments={'scale': 3})
    assert source.classes == ['red', 'green', 'blue', 'none']
    np.testing.assert_array_equal(source.images, IMAGES // 3)


@pytest.mark.parametrize('cls', [Word, Validated])
def test_a_class_that_is_told_its_part_by_a_word(cls, tmp_path):
    assert len(get(cls, tmp_path)) == 6
    test = get(cls, tmp_path, train=False)
    assert len(test) == 3 and test.classes == ['0', '1', '2']


def test_a_class_that_knows_no_parts_is_told_of(tmp_path, monkeypatch):
    said = []
    pairs = [(image, 0) for image in IMAGES]
    assert len(of(monkeypatch, pairs, tmp_path, train=False, say=said.append)) == 6
    assert said == [f'dataset={__name__}.Listed: takes neither train nor split; all of it is for testing']
    said.clear()
    of(monkeypatch, pairs, tmp_path, say=said.append)
    assert said == []


def test_torchvision_classes_work(tmp_path):
    recipe = {'_target_': 'torchvision.datasets.FakeData', 'size': 5, 'image_size': [3, 6, 4], 'num_classes': 4}
    source = load('fake', train=True, root=tmp_path, dataset=recipe)
    from Blocks.Vision import import_torchvision
    reference = import_torchvision('datasets').FakeData(5, [3, 6, 4], 4)
    for at in range(5):
        image, label = reference[at]
        np.testing.assert_array_equal(source.images[at], np.asarray(image).transpose(2, 0, 1))
        assert source.labels[at] == int(label)


def test_a_stream_travels_to_workers(tmp_path):
    stream, memory = get(Split, tmp_path, stream=True), get(Split, tmp_path)
    assert stream.images is None and stream.labels.tolist() == memory.labels.tolist()
    np.testing.assert_array_equal(np.stack([stream.read(index) for index in range(6)]), IMAGES)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stream)).read(4), IMAGES[4])
    with multiprocessing.get_context('fork').Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(stream.read, (5,)), IMAGES[5])


# --- every kind of image

chw = IMAGES[0]
hwc = chw.transpose(1, 2, 0)
three = np.arange(3, dtype=np.uint8)  # along a side that could be channels


@pytest.mark.parametrize(('value', 'expected'), [
    (Image.fromarray(np.ascontiguousarray(hwc)), chw), (hwc, chw), (chw, chw), (torch.from_numpy(chw), chw), (torch.from_numpy(hwc.copy()), chw),
    (hwc[..., 0], chw[:1]), (torch.from_numpy(chw[0]), chw[:1]), (Image.fromarray(chw[0]), chw[:1]), (torch.from_numpy(chw) / 255, chw),
    (chw.astype(np.float64) / 255, chw), ((torch.from_numpy(chw) / 255).half(), chw), (hwc[..., [0]], chw[:1]), (hwc[..., [0, 1, 2, 0]], chw[[0, 1, 2, 0]]),
    (np.tile(three, (3, 9, 1)), np.tile(three[:, None, None], (1, 3, 9))),
    (torch.from_numpy(np.tile(three[:, None, None], (1, 9, 3))), np.tile(three[:, None, None], (1, 9, 3))),
    (np.zeros((9, 5, 6), np.uint8), np.zeros((9, 5, 6), np.uint8)),
    (Image.fromarray(np.ascontiguousarray(hwc)).convert('RGBA'), chw)])
def test_images_become_channels_rows_columns(value, expected):
    sample = as_sample(value)
    assert sample.dtype == np.uint8 and sample.flags.c_contiguous
    np.testing.assert_array_equal(sample, expected)


@pytest.mark.parametrize('value', [np.array([0.5, -3, 1e6]), torch.tensor([0.5, -3, 1e6], dtype=torch.float64), np.array([0.5, -3, 1e6], np.float32)])
def test_vectors_stay_as_they_are(value):
    sample = as_sample(value)
    assert sample.dtype == np.float32
    np.testing.assert_array_equal(sample, np.array([0.5, -3, 1e6], np.float32))


def test_a_set_of_vectors(tmp_path, monkeypatch):
    values = rng.normal(size=(6, 4))
    for stream in (False, True):
        source = of(monkeypatch, list(zip(values, LABELS)), tmp_path, stream=stream)
        assert source.shape == (4,) and (source.images is None) == stream
        np.testing.assert_array_equal(np.stack([source.read(at) for at in range(6)]), values.astype(np.float32))
        assert source.read(0).dtype == np.float32


def test_images_of_any_size_with_image_size(tmp_path, monkeypatch):
    pairs = [(np.full((9 + at, 12 - at, 3), at, np.uint8), 0) for at in range(4)]
    source = of(monkeypatch, pairs, tmp_path, image_size=6)
    assert source.shape == (3, 6, 6) and [int(image.max()) for image in source.images] == [0, 1, 2, 3] == [int(image.min()) for image in source.images]


@pytest.mark.parametrize('value', [3, np.int32(3), np.uint8(3), torch.tensor(3), torch.tensor([3]), np.array(3), np.array([[3]])])
def test_labels_are_whole_numbers(value):
    assert as_label(value) == 3 and type(as_label(value)) is int


# --- what is wrong

Record = namedtuple('Record', 'image label')


@pytest.mark.parametrize(('bad', 'expected'), [
    (IMAGES[0], 'sample 3 is a ndarray, expected (image, label)'), ({'image': 1}, 'sample 3 is a dict, expected (image, label)'),
    ((IMAGES[0],), 'sample 3 is a tuple of 1, expected (image, label)'), ((IMAGES[0], 0, 0), 'sample 3 is a tuple of 3, expected (image, label)'),
    (('cat.png', 0), 'sample 3: its image is a str, expected a Pillow image, an array or a tensor'),
    ((IMAGES[0].astype(np.int64), 0), 'sample 3: its image is int64 of shape (3, 5, 7), expected uint8 or floats'),
    ((IMAGES[:2], 0), 'sample 3: its image is uint8 of shape (2, 3, 5, 7), expected uint8 or floats'),
    ((IMAGES[0, 0, 0], 0), 'sample 3: its image is uint8 of shape (7,)'), ((IMAGES[0, :, :0], 0), 'sample 3: its image is uint8 of shape (3, 0, 7)'),
    ((IMAGES[0] / 1.0, 0), 'sample 3: its image has floats from 0 to 255, expected 0 to 1, or uint8'),
    ((IMAGES[0] / 255 - 0.5, 0), 'sample 3: its image has floats from -0.5 to 0.5, expected 0 to 1'),
    ((IMAGES[0] * np.nan, 0), 'sample 3: its image has floats from nan to nan'),
    ((IMAGES[0], 1.0), 'sample 3: its label is 1.0, expected a whole number'), ((IMAGES[0], 'cat'), "sample 3: its label is 'cat', expected a whole number"),
    ((IMAGES[0], None), 'sample 3: its label is None, expected a whole number'), ((IMAGES[0], np.eye(3)), 'sample 3: its label is array([[1., 0., 0.]'),
    ((IMAGES[0], 2 ** 70), 'sample 3: its label is 1180591620717411303424, expected a whole number'),
    ((IMAGES[0], -1), 'sample 3 has label -1, expected 0 to 0'),
    ((IMAGES[0], 200_000), 'label 200000 of sample 3; expected classes numbered from 0, or an attribute'),
    ((IMAGES[0, :1], 0), 'samples differ: 0 has shape (3, 5, 7) uint8, 3 has (1, 5, 7) uint8'),
    ((IMAGES[0, :, :4], 0), '3 has (3, 4, 7) uint8; image_size=N makes images N×N'), ((np.zeros(4), 0), '3 has (4,) float32')])
@pytest.mark.parametrize('stream', [False, True])
def test_a_sample_that_is_not_what_was_expected(bad, expected, stream, tmp_path, monkeypatch):
    pairs = [Record(IMAGES[0], 0)] * 3 + [bad]
    with pytest.raises(ValueError) as caught:
        of(monkeypatch, pairs, tmp_path, stream=stream)
    text = str(caught.value)
    assert text.startswith(f'dataset={__name__}.Listed: ') and expected in text and '\n' not in text


@pytest.mark.parametrize(('cls', 'expected'), [
    (NoLength, 'NoLength has no __len__; expected a data set with a length'), (Stream, 'Stream has no __len__; expected a data set with a length'),
    (Broken, 'its constructor fails (RuntimeError: no such file)'), (Listed, 'the set is empty')])
def test_classes_that_are_no_data_sets(cls, expected, tmp_path):
    with pytest.raises(ValueError) as caught:
        get(cls, tmp_path)
    assert str(caught.value).startswith(f'dataset={__name__}.{cls.__name__}: {expected}') and '\n' not in str(caught.value)


def test_recipes_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r'^dataset.scael: Split has no such argument; nearest: scale'):
        get(Split, tmp_path, arguments={'scael': 3})
    with pytest.raises(ValueError, match=r'^dataset=nowhere.Data: no module .nowhere.'):
        load('mine', train=True, root=tmp_path, dataset={'_target_': 'nowhere.Data'})
    with pytest.raises(ValueError, match=r'samples are vectors of 3 numbers'):
        as_sample(np.zeros(3), image_size=8)
    with pytest.raises(ValueError, match=r'NaN or infinite'):
        as_sample(np.array([0.0, np.inf]))


def test_an_error_inside_a_sample_names_it(tmp_path, monkeypatch):
    def failing(self, index):
        return (IMAGES[index], 0) if index < 4 else 1 / 0

    monkeypatch.setattr(Listed, 'pairs', [0] * 6)
    monkeypatch.setattr(Listed, '__getitem__', failing)
    with pytest.raises(ValueError, match=r'sample 4 cannot be read \(ZeroDivisionError: division by zero\)'):
        get(Listed, tmp_path)
