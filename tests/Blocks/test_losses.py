"""Losses and targets against numbers worked out by hand."""
import pytest
import torch

from Blocks.Losses import clipped, gather_actions, next_value_discrete, td_loss, td_target


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_td_target():
    assert torch.allclose(td_target(tensor(1, -2, 3), tensor(0.9, 0, 0.729), tensor(10, 10, -10)), tensor(10, -2, -4.29))


TARGET = tensor([5, 1, 3], [0, 2, 9])[None]  # (1, B 2, A 3)
ONLINE = tensor([0, 7, 1], [4, 3, 2])[None]


def test_double_dqn_picks_online_and_evaluates_with_the_target():
    assert next_value_discrete(TARGET).tolist() == [5, 9]
    assert next_value_discrete(TARGET, ONLINE).tolist() == [1, 0]


def test_the_lowest_of_the_target_ensemble_counts_the_pick_is_by_the_mean():
    target = torch.cat([TARGET, tensor([-9, 4, 5], [1, 8, 1])[None]])  # means -2 2.5 4 and .5 5 5 (first of equals), lowest -9 1 3 and 0 2 1
    assert next_value_discrete(target).tolist() == [3, 2]
    online = torch.cat([ONLINE, tensor([9, -5, 1], [-9, 0, 6])[None]])  # means 4.5 1 1 and -2.5 1.5 4
    assert next_value_discrete(target, online).tolist() == [-9, 1]


def test_huber_by_hand():
    q, target = tensor([0.0, 1.0, 5.0, -2.0]), tensor(0.5, 1.0, 2.0, 1.0)  # errors -.5 0 3 -3
    assert td_loss(q, target).item() == pytest.approx((0.125 + 0 + 2.5 + 2.5) / 4, abs=1e-12)
    assert td_loss(q, target, huber=False).item() == pytest.approx((0.25 + 0 + 9 + 9) / 4, abs=1e-12)


def test_the_loss_sums_over_the_ensemble_and_weighs_the_batch():
    q, target, weight = tensor([0.0, 1.0, 5.0], [0.5, 3.0, 2.5]), tensor(0.5, 1.0, 2.0), tensor(1.0, 0.5, 0.1)
    assert td_loss(q, target).item() == pytest.approx((0.125 + 0 + 2.5) / 3 + (0 + 1.5 + 0.125) / 3, abs=1e-12)
    assert td_loss(q, target, True, weight).item() == pytest.approx((0.125 + 0 + 0.25) / 3 + (0 + 0.75 + 0.0125) / 3, abs=1e-12)
    assert td_loss(q, target, False, weight).item() == pytest.approx((0.25 + 0 + 0.9) / 3 + (0 + 2 + 0.025) / 3, abs=1e-12)


def test_hubers_gradient_is_the_clipped_error():
    q = tensor([0.0, 1.0, 5.0, -2.0, 1.3]).requires_grad_()
    td_loss(q, tensor(0.5, 1.0, 2.0, 1.0, 1.0)).backward()
    assert torch.allclose(q.grad[0] * 5, tensor(-0.5, 0, 1, -1, 0.3))


def test_gather_actions():
    q = torch.arange(24.0).view(2, 3, 4)
    assert gather_actions(q, torch.tensor([3, 0, 2])).tolist() == [[3, 4, 10], [15, 16, 22]]


def test_clipped():
    reward = tensor(-7, -0.5, 0, 0.25, 3)
    assert clipped(reward, 1.0).tolist() == [-1, -0.5, 0, 0.25, 1] and clipped(reward, None) is reward
