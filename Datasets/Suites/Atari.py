"""Atari 2600 on ale-py's C++ vector engine: `task=atari/<any game that ale-py ships>`.

The engine runs unstacked and with raw rewards: stacking, resets and clipping are `Environment`'s, the replay's and the agent's.
Its step with skip, maximum of two frames, luminance and resize (area) is that of the classic wrappers. The time limit is ours too: at its own the
engine stops before it has looked, and shows a mixture of old frames where learning would bootstrap.
"""
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from Datasets.Specs import ActionSpec, ObsSpec
from Datasets.Suites.Names import atari_tasks as tasks
from Datasets.Suites.Names import find_atari as find_task
from Datasets.Suites.Suite import Suite, Transition, check_at_least, given

try:
    from ale_py.vector_env import AtariVectorEnv

    from Datasets.Suites.Rooms import ROOM_BYTES, Rooms
except ImportError as error:
    raise ImportError(f'task=atari/... needs ale-py, which brings the games with it: pip install ale-py==0.12.1 ({error})') from error

__all__ = ['PRESETS', 'Atari', 'find_task', 'make', 'tasks']

SCREEN = (210, 160)  # height and width of the console's picture, for videos
NEVER = 2 ** 30  # emulator frames; beyond any episode

# The two protocols of the literature; an option given by hand wins over them
PRESETS: dict[str, dict[str, Any]] = {
    'classic': {'sticky_actions': 0.0, 'life_loss': True, 'noop_max': 30, 'max_pool': True},  # Nature DQN, Rainbow, the Atari 100k papers
    'v5': {'sticky_actions': 0.25, 'life_loss': False, 'noop_max': 0, 'max_pool': False},  # "Revisiting the ALE" (1709.06009), ALE/*-v5
}


def make(task: str, num_envs: int, *, preset: str | None = None, frame_skip: int | None = None, **options: Any) -> 'Atari':
    """Builds a game.

    Args:
        task: a game in any spelling.
        num_envs: lanes.
        preset: 'classic' (the default) or 'v5'.
        frame_skip: the field's name for `action_repeat`.
        options: see `Atari`; None leaves one to the preset.

    Raises:
        ValueError: an unknown game, preset or option, or a value out of range.
    """
    preset = preset or 'classic'
    if preset not in PRESETS:
        raise ValueError(f'environment.preset={preset!r}: expected {" or ".join(PRESETS)}')
    options = given(options, Atari)
    if frame_skip is not None and options.setdefault('action_repeat', frame_skip) != frame_skip:
        raise ValueError(f"environment.frame_skip={frame_skip} and action_repeat={options['action_repeat']} are one thing: give one of them")
    return Atari(find_task(task), num_envs, **PRESETS[preset] | options)


class Atari(Suite):
    """N consoles with the same game.

    Args:
        task: the game's canonical name.
        num_envs: lanes.
        train: False for evaluation, where a lost life ends nothing.
        num_threads: emulator threads; 0 for as many as there are lanes and cores.
        action_repeat: emulator frames for which an action is held (frame skip).
        frame_stack, stack_pad: see `ObsSpec`.
        sticky_actions: probability that the console takes its previous action again, drawn in each emulator frame.
        life_loss: a lost life ends an episode for learning.
        noop_max: most emulator frames without action at an episode's start, drawn evenly from 0 to this.
        max_pool: pixel-wise maximum of the last two emulator frames, against flicker.
        max_frames: emulator frames, those without action at the start aside, after which an episode is truncated; rounded up to agent steps.
        full_action_space: all 18 actions instead of those that the game uses.
        fire_reset: press fire once at an episode's start in games that wait for it.
        grayscale: luminance (1, H, W) instead of colour (3, H, W).
        screen_size: height and width of a frame.
        rooms: tell the rooms that an episode visited; by default in the games of which it is known where they keep it.
    """

    reseed_steps = 10_000  # a seeded reset makes the engine load its game anew: 66 ms, as long as 270 agent steps; others take 3 ms

    def __init__(self, task: str, num_envs: int, *, train: bool = True, num_threads: int = 0, action_repeat: int = 4, frame_stack: int = 4,
                 stack_pad: str = 'zeros', sticky_actions: float = 0.0, life_loss: bool = True, noop_max: int = 30, max_pool: bool = True,
                 max_frames: int = 108_000, full_action_space: bool = False, fire_reset: bool = False, grayscale: bool = True,
                 screen_size: int = 84, rooms: bool | None = None) -> None:
        check_at_least(1, num_envs=num_envs, action_repeat=action_repeat, frame_stack=frame_stack, max_frames=max_frames, screen_size=screen_size)
        check_at_least(0, num_threads=num_threads, noop_max=noop_max)
        if not 0 <= sticky_actions < 1:
            raise ValueError(f'environment.sticky_actions={sticky_actions!r}: expected a probability below 1, such as 0.25')
        if rooms and task not in ROOM_BYTES:
            raise ValueError(f'environment.rooms=true: it is not known where atari/{task} keeps its room; it is for {", ".join(ROOM_BYTES)}')
        # What a video's emulator shares with the lanes. `noop_max + 1`: the engine draws below its bound
        self.engine: dict[str, Any] = {
            'frameskip': action_repeat, 'repeat_action_probability': float(sticky_actions), 'noop_max': noop_max + 1, 'maxpool': max_pool,
            'max_num_frames_per_episode': NEVER, 'full_action_space': full_action_space, 'use_fire_reset': fire_reset,
            'stack_num': 1, 'reward_clipping': False, 'episodic_life': False}
        obs_spec = ObsSpec((1 if grayscale else 3, screen_size, screen_size), torch.uint8, frame_stack=frame_stack, stack_pad=stack_pad)
        self.grayscale, self.life_loss = grayscale, life_loss and train
        self.rooms = Rooms(task, self.engine) if task in ROOM_BYTES and rooms is not False else None
        env: Any = AtariVectorEnv(task, num_envs, num_threads=num_threads, grayscale=grayscale, img_height=screen_size, img_width=screen_size,
                                  **self.engine)
        self.env = env
        self.sticky_actions = float(sticky_actions)
        super().__init__(name='atari', task=task, num_envs=num_envs, obs_spec=obs_spec, action_repeat=action_repeat,
                         action_spec=ActionSpec(num_actions=int(env.single_action_space.n)))
        self.lives = np.zeros(num_envs, np.int32)
        self.no = np.zeros(num_envs, bool)
        # A lane is truncated when the clock of vector steps reaches its `due`; `next_due` spares all other steps the look
        self.limit, self.clock, self.next_due, self.due = -(-max_frames // action_repeat), 0, 0, np.zeros(num_envs, np.int64)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        # The engine's own reset of a finished lane, due at its next step, is cancelled by this one
        obs, info = self.env.reset(seed=seeds, options=None if mask.all() else {'reset_mask': mask})
        self.lives = np.where(mask, info['lives'], self.lives)
        self.due[mask] = self.clock + self.limit
        self.next_due = int(self.due.min())
        return self.frames(obs)

    def send(self, actions: np.ndarray) -> None:
        self.env.send(actions)

    def recv(self) -> Transition:
        obs, reward, terminated, _, info = self.env.recv()
        truncated = life_lost = self.no
        self.clock += 1
        if self.clock >= self.next_due:
            truncated = (self.due <= self.clock) & ~terminated
        if self.life_loss:
            life_lost = (info['lives'] < self.lives) & ~terminated
            self.lives = info['lives']
        return Transition(self.frames(obs), reward.astype(np.float32), terminated, truncated, life_lost)

    def frames(self, obs: np.ndarray) -> np.ndarray:
        """(N, 1, H, W) or (N, 1, H, W, 3) → (N, C, H, W). The engine hands over new memory with each step: no copy."""
        return obs if self.grayscale else np.ascontiguousarray(np.moveaxis(obs[:, 0], -1, 1))

    def visited(self, lane: int, seed: int, actions: Sequence[Any], before: Sequence[Any] = ()) -> dict[str, set[int]]:
        return {} if self.rooms is None else {'rooms': self.rooms(lane, seed, actions, before)}

    def render_episode(self, seed: int, actions: Sequence[Any], before: Sequence[Any] = ()) -> Iterator[np.ndarray]:
        """The episode in colour and at the console's resolution, from the same seed and actions in an emulator of its own."""
        env = AtariVectorEnv(self.task, 1, num_threads=1, grayscale=False, img_height=SCREEN[0], img_width=SCREEN[1], **self.engine)
        obs, _ = env.reset(seed=np.array([seed], np.int64))
        for episode in before:
            for action in episode:
                env.step(np.array([action], np.int64))
            obs, _ = env.reset(seed=np.array([-1], np.int64))
        yield obs[0, 0]
        for action in actions:
            obs, *_ = env.step(np.array([action], np.int64))
            yield obs[0, 0]

    def close(self) -> None:
        self.env = None  # its threads end with it
