"""Creator: the policy over candidates."""
import math

import pytest
import torch

from Blocks.Creator import Creator

Q = torch.tensor([[[1.0, 2.0, 0.5], [0.0, -1.0, 4.0]], [[3.0, 0.0, 0.5], [0.0, -3.0, 0.0]]])  # (ensemble 2, B 2, K 3): means 2 1 .5 and 0 -2 2


def chi_square(counts, probs):
    expected = torch.as_tensor(probs, dtype=torch.float64) * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


def test_probabilities_are_softmax_of_the_ensemble_mean_over_the_temperature():
    for temperature in (1.0, 0.1, 7.0, torch.tensor(0.5)):
        weights = [[math.exp(u / float(temperature)) for u in row] for row in ((2.0, 1.0, 0.5), (0.0, -2.0, 2.0))]
        expected = torch.tensor([[w / sum(row) for w in row] for row in weights])
        assert torch.allclose(Creator(Q, temperature).probs, expected, rtol=1e-5)


def test_best_is_the_highest_mean_not_the_highest_head():
    assert Creator(Q).best.tolist() == [0, 2] and Creator(Q).best.dtype == torch.int64
    heads = torch.tensor([[[0.0, 10.0]], [[3.0, -5.0]]])  # means 1.5, 2.5
    assert Creator(heads).best.tolist() == [1] and Creator(heads.flip(0)).best.tolist() == [1]


def test_optimism_weighs_the_disagreement_of_the_ensemble():
    # the standard deviations are 1 1 0 and 0 1 2
    assert torch.allclose(Creator(Q, optimism=0.25).u, torch.tensor([[0.75 * 2 + 0.25, 0.75 + 0.25, 0.375], [0.0, -1.5 + 0.25, 1.5 + 0.5]]))
    assert torch.allclose(Creator(Q, optimism=1.0).u, torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]]))


def test_samples_follow_the_probabilities():
    n = 30_000
    policy = Creator(Q[:, :1].expand(2, n, 3), 0.7)
    sample = policy.sample(torch.Generator().manual_seed(0))
    assert sample.shape == (n,) and sample.dtype == torch.int64
    weights = [math.exp(u / 0.7) for u in (2.0, 1.0, 0.5)]
    assert chi_square(torch.bincount(sample, minlength=3), [w / sum(weights) for w in weights]) < 13.8  # 99.9 % at 2 degrees of freedom


@pytest.mark.parametrize('epsilon', [0.0, 0.2, 1.0])
def test_epsilon_greedy_explores_that_often(epsilon):
    n = 30_000
    action = Creator(Q[:, :1].expand(2, n, 3)).epsilon_greedy(epsilon, torch.Generator().manual_seed(1))
    counts = torch.bincount(action, minlength=3)
    if epsilon == 0:
        assert counts.tolist() == [n, 0, 0]
    else:
        assert chi_square(counts, [1 - epsilon + epsilon / 3, epsilon / 3, epsilon / 3]) < 13.8


def test_draws_use_the_generator_only():
    before = torch.get_rng_state()
    policy = Creator(torch.zeros(1, 50, 4))
    for draw in (policy.sample, lambda random: policy.epsilon_greedy(0.5, random)):
        assert torch.equal(draw(torch.Generator().manual_seed(2)), draw(torch.Generator().manual_seed(2)))
        assert not torch.equal(draw(torch.Generator().manual_seed(2)), draw(torch.Generator().manual_seed(3)))
    assert torch.equal(torch.get_rng_state(), before)
