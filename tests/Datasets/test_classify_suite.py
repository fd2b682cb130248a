"""Data sets as a suite: what a prediction is worth, which sample a seed shows, and that evaluation sees each once."""
import math

import numpy as np
import pytest
import torch
from PIL import Image

from Datasets.Suites.Classify import Classify, make
from Environment import Environment


@pytest.fixture
def folder(tmp_path):
    """Images of 12×12 in three classes; every pixel of an image has one colour, by which it is known."""
    for split, count in (('train', 10), ('test', 7)):
        for k, name in enumerate(('ant', 'bee', 'cat')):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new('RGB', (12, 12), (80 * k + i, i, 7)).save(tmp_path / split / name / f'{i}.png')
    return str(tmp_path)


def suite(folder, **options):
    return Classify('folder', options.pop('num_envs', 2), root=folder, **options)


def test_what_it_shows_and_takes(folder):
    lanes = suite(folder)
    assert lanes.obs_spec.shape == (3, 12, 12) and lanes.obs_spec.dtype == torch.uint8 and lanes.action_spec.shape == (3,)
    pixels = np.array([[80 * k + i, i, 7] for k in range(3) for i in range(10)], float)
    assert lanes.obs_spec.mean == pytest.approx(pixels.mean(0)) and lanes.obs_spec.std[:2] == pytest.approx(pixels.std(0)[:2])
    assert lanes.obs_spec.std[2] > 0, 'a channel that never changes divides by something'
    assert suite(folder, discrete=True).action_spec.num_actions == 3 and suite(folder, image_size=6).obs_spec.shape == (3, 6, 6)


def test_a_prediction_is_worth_minus_its_cross_entropy_and_ends_the_episode(folder):
    environment = Environment(suite(folder, num_envs=4), seed=3)
    environment.start()
    for _ in range(5):
        labels = environment.frames[:, 0, 0, 0] // 80
        action = np.random.default_rng(1).uniform(-0.9, 0.9, (4, 3)).astype(np.float32)
        rows = environment.advance(action)
        logits = np.arctanh(action.astype(float))
        expected = [row[k] - math.log(np.exp(row).sum()) for row, k in zip(logits, labels)]
        assert rows.reward.tolist() == pytest.approx(expected, abs=1e-4) and rows.terminated.all() and rows.first.all() and not rows.truncated.any()
    assert len(environment.pop_episodes()) == 20


def test_a_class_is_worth_1_where_it_is_right(folder):
    environment = Environment(suite(folder, num_envs=6, discrete=True), seed=0)
    environment.start()
    labels = environment.frames[:, 0, 0, 0] // 80
    assert environment.advance(np.ones(6, np.int64)).reward.tolist() == (labels == 1).tolist()


def test_a_seed_shows_one_sample_and_seeds_show_all(folder):
    lanes = suite(folder, num_envs=200)
    seeds, every = np.arange(200), np.ones(200, bool)
    shown = lanes.reset(every, seeds)
    assert np.array_equal(suite(folder, num_envs=200).reset(every, seeds), shown)
    assert len({image.tobytes() for image in shown}) == 30
    assert len({image.tobytes() for image in suite(folder, num_envs=200, train=False).reset(every, seeds)}) == 21, 'the test set'


@pytest.mark.parametrize('options', [{}, {'stream': True, 'num_workers': 0}, {'stream': True, 'num_workers': 3}], ids=str)
def test_evaluation_sees_every_sample_once_and_in_order(folder, options):
    lanes = suite(folder, train=False, **options)
    seen = torch.cat(list(lanes.batches(size=4)))
    assert [(int(image[0, 0, 0]), int(image[1, 0, 0])) for image in seen] == [(80 * k + i, i) for k in range(3) for i in range(7)]
    logits = lanes.evaluate(lambda obs: torch.stack([obs[:, 0, 0, 0].float(), obs[:, 1, 0, 0].float(), torch.zeros(len(obs))], 1))
    assert logits[:, 0].tolist() == [80 * k + i for k in range(3) for i in range(7)]
    assert lanes.evaluate(lambda obs: torch.zeros(len(obs), 3), stopped=lambda: True) is None


@pytest.mark.parametrize('workers', [0, 2])
def test_a_corrupt_image_is_named(folder, workers):
    lanes = suite(folder, train=False, stream=True, num_workers=workers)
    file = f'{folder}/test/bee/3.png'
    with open(file, 'wb') as corrupt:
        corrupt.write(b'\x89PNG nothing')
    with pytest.raises(ValueError, match=r'bee.3\.png'):
        list(lanes.batches(size=4))


def test_an_option_it_does_not_have():
    with pytest.raises(ValueError, match='environment.streams: Classify has no such option; nearest: stream'):
        make('digits', 1, streams=True)
