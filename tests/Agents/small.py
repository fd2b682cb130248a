"""Small agents, batches and replays that tests of agents and auxiliary losses share."""
import math

import numpy as np
import torch

from Agents.DQN import DQN
from Datasets.Batch import Batch
from Datasets.Replay import Replay
from Datasets.Specs import ActionSpec, ObsSpec
from Environment import Step

VECTOR, IMAGE = ObsSpec((3,), torch.float32, -math.inf, math.inf), ObsSpec((1, 36, 36), frame_stack=2)  # the smallest image of NatureCNN
DISCRETE, BOX = ActionSpec(num_actions=4), ActionSpec((2,))
TINY_EYES = {'encoder': {'eyes': {'_target_': 'NatureCNN', 'width': 0.125}}}


def observations(n, spec=VECTOR, seed=0):
    random = torch.Generator().manual_seed(seed)
    if spec.is_image:
        return torch.randint(256, (n, *spec.stacked_shape), generator=random).to(torch.uint8)
    return torch.randn((n, *spec.stacked_shape), generator=random)


def look(n, spec=VECTOR, seed=0):
    return Step(observations(n, spec, seed), torch.zeros(n, dtype=torch.bool), torch.zeros(n), torch.zeros(n))


def batch(n=16, obs=VECTOR, action=DISCRETE, seed=0):
    random = torch.Generator().manual_seed(100 + seed)
    return Batch(obs=observations(n, obs, seed), next_obs=observations(n, obs, seed + 50), reward=3 * torch.randn(n, generator=random),
                 action=torch.randint(4, (n,), generator=random) if action.discrete else torch.rand((n, 2), generator=random) * 2 - 1,
                 discount=0.9 * (torch.rand(n, generator=random) > 0.2), indices=torch.arange(n), weight=torch.rand(n, generator=random) + 0.5)


def make_dqn(obs=VECTOR, action=DISCRETE, recipes=None, seed=0, **options):
    """A small DQN."""
    torch.manual_seed(seed)
    recipes = {'aug': {}, 'encoder': {}, 'critic': {}, 'actor': {}} | (TINY_EYES if obs.is_image else {}) | (recipes or {})
    return DQN(obs_spec=obs, action_spec=action, recipes=recipes, seed=seed, **{'hidden_dim': 8, 'explore_steps': 0, 'lr': 1e-2} | options)


def parameters(module):
    return [p.detach().clone() for p in module.parameters()]


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


def filled_replay(obs, action, steps=40, lanes=2, window=3):
    replay = Replay(obs, action, num_envs=lanes, capacity=200, seed=0, store='ram', discount=0.9, window=window)
    random = np.random.default_rng(0)

    def frames():
        return random.integers(0, 256, (lanes, *obs.shape), np.uint8) if obs.is_image else random.normal(size=(lanes, *obs.shape)).astype(np.float32)

    replay.begin(frames())
    for _ in range(steps):
        ended = random.random(lanes) < 0.1
        actions = random.integers(0, 4, lanes) if action.discrete else random.uniform(-1, 1, (lanes, 2)).astype(np.float32)
        replay.add(actions, random.normal(size=lanes).astype(np.float32), ended, np.zeros(lanes, bool), frames(), ended)
    return replay
