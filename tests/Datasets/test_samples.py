"""Labelled data in batches: every sample once a pass, the same with any number of workers, after a restart and from memory or files."""
import os
import signal

import numpy as np
import pytest
import torch

from Datasets.Labelled import Source
from Datasets.Samples import Samples
from Datasets.Specs import ActionSpec

N, SHAPE = 103, (3, 8, 8)
IMAGES = np.random.default_rng(0).integers(0, 256, (N, *SHAPE), np.uint8)
LABELS = np.arange(N) % 5
TRANSFORM = {'RandomHorizontalFlip': {}, 'ColorJitter': {'brightness': 0.5}}
WAYS = [('memory', 0), ('files', 0), ('files', 1), ('files', 4)]


class Files:
    """Reads samples one by one."""

    def __init__(self, corrupt=None):
        self.corrupt = corrupt

    def __call__(self, index):
        if index == self.corrupt:
            raise ValueError(f'image_{index}.png: truncated')
        return IMAGES[index].copy()


def make(way='memory', workers=0, seed=1, transform=TRANSFORM, corrupt=None):
    memory = way == 'memory'
    source = Source('mine', list('abcde'), LABELS, SHAPE, IMAGES if memory else None, None if memory else Files(corrupt))
    return Samples(source, ActionSpec((5,)), seed=seed, transform=transform, workers=workers)


def taken(samples, sizes):
    batches = [samples.sample(n) for n in sizes]
    return torch.cat([batch.obs for batch in batches]), torch.cat([batch.label for batch in batches]), torch.cat([batch.indices for batch in batches])


@pytest.mark.parametrize('way, workers', WAYS)
def test_every_sample_exactly_once_a_pass(way, workers):
    samples = make(way, workers, transform=None)
    obs, label, index = taken(samples, [16] * 13)
    for start in (0, N):
        assert sorted(index[start:start + N].tolist()) == list(range(N))
    assert index[:N].tolist() != index[N:2 * N].tolist()
    assert np.array_equal(obs.numpy(), IMAGES[index]) and np.array_equal(label.numpy(), LABELS[index]) and samples.epochs == 3
    samples.close()


@pytest.mark.parametrize('way, workers', WAYS[1:])
def test_batches_do_not_depend_on_where_samples_are_read(way, workers):
    samples, expected = make(way, workers), taken(make(), [16] * 9)
    assert all(torch.equal(one, other) for one, other in zip(taken(samples, [16] * 9), expected))
    samples.close()


@pytest.mark.parametrize('way, workers', [('memory', 0), ('files', 2)])
def test_a_restart_in_the_middle_of_a_pass_goes_on_to_the_bit(way, workers):
    samples = make(way, workers)
    taken(samples, [16] * 9)
    samples.sample(7, rng=samples.rng)
    state = samples.state_dict()
    ahead = taken(samples, [16] * 9), samples.sample(7, rng=samples.rng).obs
    samples.close()
    again = make(way, workers)
    assert again.continues(state)
    again.load_state_dict(state)
    assert all(torch.equal(one, other) for one, other in zip(taken(again, [16] * 9), ahead[0])) and torch.equal(again.sample(7, rng=again.rng).obs, ahead[1])
    again.close()


def test_a_state_of_other_data_does_not_continue():
    other = Source('mine', list('abcde'), LABELS[:50], SHAPE, IMAGES[:50], None)
    assert not make().continues(Samples(other, ActionSpec((5,)), seed=1).state_dict())


@pytest.mark.parametrize('way, workers', [('memory', 0), ('files', 2)])
def test_draws_from_another_stream_leave_the_pass_alone_and_are_not_transformed(way, workers):
    samples, plain = make(way, workers), make()
    samples.sample(16)
    drawn = samples.sample(40, rng=np.random.default_rng(5))
    assert np.array_equal(drawn.obs.numpy(), IMAGES[drawn.indices]) and np.array_equal(drawn.label.numpy(), LABELS[drawn.indices])
    assert torch.equal(samples.sample(16).obs, taken(plain, [16, 16])[0][16:])
    assert torch.equal(make().sample(40, rng=np.random.default_rng(5)).indices, drawn.indices)
    samples.close()


def test_another_seed_is_another_order():
    assert not torch.equal(make(seed=1).sample(50).indices, make(seed=2).sample(50).indices)


def test_batches_of_any_size():
    obs, _, index = taken(make(transform=None), [1, 300, 5])
    assert sorted(index[:N].tolist()) == list(range(N)) and sorted(index[N:2 * N].tolist()) == list(range(N)) and len(obs) == 306


def test_what_a_batch_holds_besides():
    batch = make().sample(6)
    assert batch.action.shape == (6, 5) and batch.next_obs is None and batch.weight is None and batch.reward.shape == batch.discount.shape == (6,)
    assert set(make_last(6)) == {'obs', 'action', 'reward', 'discount', 'indices', 'label'}


def make_last(n):
    samples = make()
    samples.sample(n)
    return samples.last_batch()


def test_sequences_are_refused():
    with pytest.raises(ValueError, match='a data set has no sequences of observations'):
        make().sample(4, horizon=2)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_corrupt_file_is_named(workers):
    samples = make('files', workers, corrupt=50)
    with pytest.raises(ValueError, match=r'^image_50.png: truncated$'):
        taken(samples, [16] * 7)
    samples.close()


def test_a_worker_that_is_killed_costs_nothing():
    samples, expected = make('files', 1), taken(make(), [16] * 9)
    first = taken(samples, [16] * 3)
    for worker in samples.ahead._workers:
        os.kill(worker.pid, signal.SIGKILL)
    rest = taken(samples, [16] * 6)
    assert all(torch.equal(torch.cat([one, two]), all_) for one, two, all_ in zip(first, rest, expected))
    samples.close()


def test_memory_holds_the_data_once():
    samples = make()
    assert samples.reader.images.data_ptr() == IMAGES.ctypes.data and samples.bytes == IMAGES.nbytes
