"""Running statistics against one pass over everything, return scaling against a loop."""
import math

import numpy as np
import pytest
import torch

from Blocks.Normalisers import ObservationNormaliser, ReturnNormaliser, RunningMoments


def test_merged_batches_equal_one_pass():
    random = np.random.default_rng(0)
    data = random.normal(1e4, [1e-2, 1, 300], (1000, 3)) * [1, -1, 1]  # a large mean and a small deviation: what naive sums lose
    moments, start = RunningMoments((3,)), 0
    for size in (1, 1, 7, 300, 2, 689):
        moments.update(torch.tensor(data[start:start + size]))
        start += size
        assert np.allclose(moments.mean, data[:start].mean(0), rtol=1e-12)
        assert np.allclose(moments.var, data[:start].var(0), rtol=1e-8, atol=1e-14)
    assert moments.count == start == 1000


def test_observations_come_out_standard_and_clipped():
    torch.manual_seed(0)
    data = 5 + 3 * torch.randn(2000, 4)
    normaliser = ObservationNormaliser((4,), clip=2.0)
    assert torch.allclose(normaliser(data[:3]), data[:3].clamp(-2, 2)), 'before the first update it only clips'
    for batch in data.split(64):
        normaliser.update(batch)
    x = normaliser(data)
    exact = (data.double() - data.double().mean(0)) / data.double().std(0, unbiased=False)
    assert x.dtype == torch.float32 and torch.allclose(x.double(), exact.clamp(-2, 2), atol=1e-5)
    assert x.abs().max() == 2 and torch.equal(normaliser(data), x), 'normalising learns nothing'


def test_a_constant_observation_is_zero():
    normaliser = ObservationNormaliser((2,))
    normaliser.update(torch.full((50, 2), 7.0))
    assert torch.equal(normaliser(torch.full((3, 2), 7.0)), torch.zeros(3, 2))


def test_images_are_normalised_by_pixel():
    normaliser, data = ObservationNormaliser((1, 2, 2)), torch.randint(256, (100, 1, 2, 2), dtype=torch.uint8)
    normaliser.update(data)
    assert np.allclose(normaliser.mean, data.double().mean(0)) and normaliser(data).mean(0).abs().max() < 1e-5


@pytest.mark.parametrize('parts', [[200], [1] * 200, [1, 7, 2, 150, 40]], ids=['at once', 'step by step', 'in parts'])
@pytest.mark.parametrize('shift', [2, 1e5])
def test_rewards_are_scaled_by_the_deviation_of_each_lanes_return_so_far(parts, shift):
    random = np.random.default_rng(1)
    lanes, steps, discount = 3, 200, 0.9
    rewards, ended = random.normal(shift, 5, (lanes, steps)).astype(np.float32), random.random((lanes, steps)) < 0.1
    seen, running, expected = [], [0.0] * lanes, np.empty_like(rewards)
    for t in range(steps):
        for lane in range(lanes):
            running[lane] = running[lane] * discount + float(rewards[lane, t])
            seen.append(running[lane])
            if ended[lane, t]:
                running[lane] = 0.0
        deviation = math.sqrt(sum((g - sum(seen) / len(seen)) ** 2 for g in seen) / len(seen))
        expected[:, t] = np.clip(rewards[:, t] / math.sqrt(deviation ** 2 + 1e-8), -1, 1)
    normaliser = ReturnNormaliser(lanes, discount, clip=1.0)
    pairs = zip(torch.tensor(rewards).split(parts, 1), torch.tensor(ended).split(parts, 1), strict=True)
    out = torch.cat([normaliser(*pair) for pair in pairs], 1)
    assert math.sqrt(normaliser.var) == pytest.approx(deviation, rel=1e-9) and normaliser.count == len(seen)
    assert float(normaliser.mean) == pytest.approx(sum(seen) / len(seen), rel=1e-12)
    assert out.dtype == torch.float32 and np.allclose(out, expected, rtol=1e-5)
    assert (out.abs() < 1).any() and out.abs().max() == 1, 'scaled, never shifted'


def test_rewards_that_never_differ_stay_what_they_are():
    normaliser = ReturnNormaliser(2, 0.0)
    assert torch.equal(normaliser(torch.full((2, 3), 1e-6), torch.zeros(2, 3, dtype=torch.bool)), torch.full((2, 3), 1e-2))  # only the 1e-8 is left


def test_statistics_travel_with_the_weights():
    normaliser, twin = ReturnNormaliser(2), ReturnNormaliser(2)
    for _ in range(5):
        normaliser(torch.randn(2, 1), torch.tensor([[False], [False]]))
    twin.load_state_dict(normaliser.state_dict())
    for one in (normaliser, twin):
        one(torch.tensor([[1.0], [2.0]]), torch.tensor([[True], [False]]))
    assert all(torch.equal(a, b) for a, b in zip(normaliser.buffers(), twin.buffers())) and not list(normaliser.parameters())
