"""A user's own bonuses: what they may return, and what they are told when they return something else."""
import math

import numpy as np
import pytest
import torch

from Blocks.Exploration import Bonus
from tests.Agents.small import DISCRETE, VECTOR, filled_replay, make_dqn, observations
from tests.Agents.test_ppo import make as make_ppo
from tests.Agents.test_ppo import rolled


class Counts(Bonus):
    """A user's own: 1 / √n of where the transition leads, rounded."""

    def __init__(self, grid=1.0, **settings):
        super().__init__(**settings)
        self.grid, self.counts = grid, {}

    def bonus(self, seen):
        told = []
        for place in (seen.next / self.grid).round().int().tolist():
            self.counts[tuple(place)] = self.counts.get(tuple(place), 0) + 1
            told.append(self.counts[tuple(place)] ** -0.5)
        return torch.tensor(told)


def test_a_users_own_that_learns_nothing():
    mine = {'_target_': 'tests.Blocks.test_own_bonus.Counts', 'grid': 2.0}
    for agent in (make_dqn(), make_ppo(intrinsic=True)):
        agent.reward_exploration({'Counts': mine}, VECTOR, DISCRETE, 3, lr=1e-2, batch_size=16)
        replay = filled_replay(VECTOR, DISCRETE) if not agent.rollout_steps else rolled(agent, VECTOR, DISCRETE)
        assert not any(name.endswith('_loss') and name.startswith('Counts') for name in agent.improve(replay))
    assert sum(agent.bonus.counts.values()) == 30


class Answers(Bonus):
    """A user's bonus that returns what it is asked to."""

    answer = learned = staticmethod(lambda seen: None)

    def bonus(self, seen):
        return type(self).answer(seen)

    def loss(self, seen):
        return type(self).learned(seen)


ONES = {'ones': lambda seen: torch.ones(len(seen.next)), 'integers': lambda seen: torch.ones(len(seen.next), dtype=torch.int64)}
WRONG = {'two columns': (lambda seen: torch.ones(len(seen.next), 2), r'a tensor torch.float32 \(\d+, 2\)'),
         'a column': (lambda seen: torch.ones(len(seen.next), 1), r'a tensor torch.float32 \(\d+, 1\)'),
         'a scalar': (lambda seen: torch.tensor(1.0), r'a tensor torch.float32 \(\)'), 'a number': (lambda seen: 1.0, 'float'),
         'numpy': (lambda seen: np.ones(len(seen.next)), 'ndarray'), 'negative': (lambda seen: -torch.ones(len(seen.next)), '-1'),
         'nan': (lambda seen: torch.full((len(seen.next),), math.nan), 'nan'), 'infinite': (lambda seen: torch.full((len(seen.next),), math.inf), 'inf')}


def answering(monkeypatch, agent, answer, learned=lambda seen: None):
    monkeypatch.setattr(Answers, 'answer', staticmethod(answer))
    monkeypatch.setattr(Answers, 'learned', staticmethod(learned))
    agent.reward_exploration({'mine': {'_target_': 'tests.Blocks.test_own_bonus.Answers'}}, VECTOR, DISCRETE, 3, lr=1e-2, batch_size=16)
    return agent


@pytest.mark.parametrize('case', [*ONES, *WRONG])
def test_a_bonus_that_is_none_is_told_by_name(case, monkeypatch):
    for agent, ask in ((make_dqn(), lambda agent: agent.bonuses(observations(3), torch.zeros(3, dtype=torch.int64), observations(3, seed=1))),
                       (make_ppo(intrinsic=True), lambda agent: agent.learn(rolled(agent, VECTOR, DISCRETE)))):
        agent = answering(monkeypatch, agent, ONES.get(case) or WRONG[case][0])
        count = agent.bonus.filter.count.clone()
        if case in ONES:
            ask(agent)
            assert agent.bonus.filter.count > count
            continue
        with pytest.raises(ValueError, match=rf'^explore\.mine: Answers\.bonus returned {WRONG[case][1]}; expected a tensor \(\d+,\), a finite number'):
            ask(agent)
        assert agent.bonus.filter.count == count, 'the statistics have not taken it in'


@pytest.mark.parametrize('learned, message', [
    (lambda seen: seen.next.mean(), r'a tensor \(\) without gradient'), (lambda seen: seen.next.mean(1).requires_grad_(), r'a tensor \(\d+,\)'),
    (lambda seen: 0.5, 'float')], ids=['constant', 'vector', 'number'])
def test_a_loss_of_a_bonus_that_is_none_is_told_by_name(learned, message, monkeypatch):
    agent = answering(monkeypatch, make_ppo(intrinsic=True), ONES['ones'], learned)
    with pytest.raises(ValueError, match=rf'^explore\.mine: Answers\.loss returned {message}; expected a scalar tensor with a gradient, or None'):
        agent.learn(rolled(agent, VECTOR, DISCRETE))
