"""A task whose reward random play does not find: `task=gym/tests.sparse:Chain-v0`."""
import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH, LIMIT = 50, 100


class Chain(gymnasium.Env):
    """Fifty places in a row and a reward of 1 in the last. Which of two actions leads on differs from place to place, the other one leads back.

    A random walk of 100 steps gets there once in about 10⁶ episodes."""

    observation_space, action_space = spaces.Box(0, 1, (LENGTH,), np.float32), spaces.Discrete(2)
    onward = np.random.default_rng(0).integers(0, 2, LENGTH)

    def __init__(self, render_mode=None):
        self.place = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return self.shown(), {}

    def step(self, action):
        self.place = max(0, self.place + (1 if action == self.onward[self.place] else -1))
        arrived = self.place == LENGTH - 1
        return self.shown(), float(arrived), arrived, False, {}

    def shown(self):
        return np.eye(LENGTH, dtype=np.float32)[self.place]


gymnasium.register('Chain-v0', 'tests.sparse:Chain', max_episode_steps=LIMIT)
