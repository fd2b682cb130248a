"""The set that needs no download."""
import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from Datasets.Labelled import load
from Datasets.Labelled.Digits import enlarged, split

raw = load_digits()


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp('root') / 'none'
    pair = load('digits', train=True, root=root), load('Digits', train=False, root=root)
    assert not root.exists()
    return pair


def test_shapes_and_types(parts):
    for source in parts:
        assert source.shape == (1, 28, 28) and source.images.dtype == np.uint8 and source.labels.dtype == np.int64
        assert source.classes == list('0123456789') and source.images.flags.c_contiguous


def test_a_fifth_of_every_digit_is_for_testing(parts):
    for digit in range(10):
        count = int((raw.target == digit).sum())
        test = int((parts[1].labels == digit).sum())
        assert abs(test - count / 5) <= 0.5 and test + (parts[0].labels == digit).sum() == count
    assert len(parts[0]) + len(parts[1]) == 1797 and abs(len(parts[1]) / 1797 - 0.2) < 0.003


def test_no_sample_is_in_both_parts_and_none_is_lost():
    train, test = split(raw.target, True), split(raw.target, False)
    assert sorted([*train, *test]) == list(range(1797))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    assert (np.diff(test) > 1).mean() > 0.6  # drawn from everywhere, writers follow one another


def test_every_machine_has_the_same(parts):
    found = [hashlib.sha256(source.images.tobytes() + source.labels.astype('<i8').tobytes()).hexdigest()[:16] for source in parts]
    assert found == ['2c6cf09b7acf8d1c', '4b8bcd30e8857d11']


def test_pixels_are_the_bilinear_enlargement(parts):
    """Against torch's interpolation in float64; whole numbers differ by rounding only."""
    rows = split(raw.target, False)
    assert parts[1].labels.tolist() == raw.target[rows].tolist()
    exact = torch.nn.functional.interpolate(torch.from_numpy(raw.images[rows])[:, None], size=(28, 28), mode='bilinear', align_corners=False) * 255 / 16
    assert np.abs(parts[1].images - exact.numpy()).max() <= 0.5 + 1e-6


def test_black_and_white_stay():
    assert (enlarged(np.zeros((1, 8, 8), np.int64)) == 0).all() and (enlarged(np.full((1, 8, 8), 16)) == 255).all()


def test_other_sizes(parts, tmp_path):
    assert load('digits', train=False, root=tmp_path, image_size=32).shape == (1, 32, 32)
    with pytest.raises(ValueError, match='dataset.split: digits has no such option; it has none'):
        load('digits', train=True, root=tmp_path, dataset={'split': 1})


def test_a_linear_classifier_learns_them(parts):
    """Images and labels belong together: a least-squares fit of the training part reads the other one."""
    train, test = ((np.c_[source.images.reshape(len(source), -1)[:, ::3] / 255, np.ones(len(source))], source.labels) for source in parts)
    weights = np.linalg.lstsq(train[0].T @ train[0] + 10 * np.eye(train[0].shape[1]), train[0].T @ np.eye(10)[train[1]], rcond=None)[0]
    assert (np.argmax(test[0] @ weights, 1) == test[1]).mean() > 0.88
