"""Environments whose every frame, reward and end follows from a seed and the actions by rules one can check by hand."""
import os
import signal
import time

import gymnasium
import numpy as np
import torch

from Datasets.Specs import ActionSpec, ObsSpec
from Datasets.Suites.Suite import Suite, Transition

ENDS = ((True, False), (False, True), (True, True))  # terminated, truncated


class Game:
    """One lane. Its frame shows a number made from the seed, all actions since and the game before where that was not seeded."""

    def __init__(self, length=None):
        self.fixed_length, self.number, self.games = length, 0, 0

    def reset(self, seed):
        if seed >= 0:
            self.number, self.games, self.seed = int(seed) % 251, 0, int(seed)
        self.games += 1
        self.time = 0
        self.length = self.fixed_length or 2 + (self.seed + 3 * self.games) % 9
        self.end = ENDS[(self.seed + self.games) % 3]
        return self.frame()

    def frame(self):
        return np.array([[[self.number, self.time % 256]]], np.uint8)

    def step(self, action):
        """-> frame, reward, terminated, truncated, life lost"""
        assert self.time < self.length, 'stepped beyond the end'
        self.time += 1
        self.number = (31 * self.number + int(action) + 1) % 251
        terminated, truncated = self.end if self.time == self.length else (False, False)
        return self.frame(), self.number / 4 - 20, terminated, truncated, not terminated and not truncated and self.number % 4 == 0


class ScriptedSuite(Suite):
    """`num_envs` games of 5 actions in frames of shape (1, 1, 2)."""

    def __init__(self, num_envs, frame_stack=1, stack_pad='zeros', reseed_steps=0, lengths=None, forgetful=()):
        self.games = [Game(lengths[lane] if lengths else None) for lane in range(num_envs)]
        self.reseed_steps, self.forgetful, self.reset_log, self.fails = reseed_steps, forgetful, [], None
        self.noise = np.random.default_rng()
        super().__init__(name='scripted', task='numbers', num_envs=num_envs, action_spec=ActionSpec(num_actions=5),
                         obs_spec=ObsSpec((1, 1, 2), torch.uint8, frame_stack=frame_stack, stack_pad=stack_pad))

    def reset(self, mask, seeds):
        self.reset_log.append((mask.copy(), seeds.copy()))
        obs = np.full((self.num_envs, 1, 1, 2), 77, np.uint8)  # nobody may look at lanes outside the mask
        for lane, seed in zip(np.flatnonzero(mask), seeds):
            obs[lane] = self.games[lane].reset(seed)
        return obs

    def send(self, actions):
        self.actions = actions

    def recv(self):
        if self.fails is not None:
            error = OSError('the cable\nis loose')
            error.lane = self.fails
            raise error
        frames, *rest = zip(*(game.step(action) for game, action in zip(self.games, self.actions)))
        frames = np.stack(frames)
        for lane in self.forgetful:
            frames[lane] = self.noise.integers(256)
        return Transition(frames, np.array(rest[0], np.float32), *(np.array(flags) for flags in rest[1:]))


class StatefulSuite(ScriptedSuite):
    """Saves its games instead of having them played again."""

    def get_state(self):
        return [vars(game).copy() for game in self.games]

    def set_state(self, state):
        for game, values in zip(self.games, state):
            vars(game).update(values)


class ScriptedEnv(gymnasium.Env):
    """A Gymnasium environment that shows (its seed, the time) and ends, raises, hangs or is killed when told to."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, length=5, fails_at=-1, kill=False, hang=False, only_seed=None, observation=None, action=None, render_mode=None):
        self.length, self.fails_at, self.kill, self.hang, self.only_seed = length, fails_at, kill, hang, only_seed
        self.observation_space = observation or self.observation_space
        self.action_space = action or self.action_space

    def obs(self):
        return np.array([self.seed % 1000, self.time], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.time = seed, 0
        return self.obs(), {'ignored': object()}

    def step(self, action):
        if self.time == self.fails_at and self.only_seed in (None, self.seed):
            if self.hang:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
                time.sleep(600)
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise FloatingPointError('a joint broke')
        self.time += 1
        return self.obs(), float(action), self.time == self.length, False, {}


class SpacesEnv(gymnasium.Env):
    """Shows samples of any space and remembers the actions it got."""

    def __init__(self, observation=None, action=None, render_mode=None):
        self.observation_space = observation or gymnasium.spaces.Discrete(2)
        self.action_space = action or gymnasium.spaces.Discrete(2)
        self.taken = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.taken.append(action)
        return self.observation_space.sample(), 1.5, False, False, {}


gymnasium.register('Scripted-v0', 'tests.scripted:ScriptedEnv')
gymnasium.register('Spaces-v0', 'tests.scripted:SpacesEnv')
