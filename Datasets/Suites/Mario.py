"""Super Mario Bros.: `task=mario/<any id of gym-super-mario-bros>`, such as `mario/SuperMarioBros-v0` or `mario/super_mario_bros_1-1`.

The package is optional, keeps to the interface of an old Gym and emulates one frame in about a millisecond, so lanes step in processes of their own.
A game is deterministic but for the sticky actions, and RandomStages' choice of a stage: both follow from the episode's seed.
"""
from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from Datasets.Specs import ActionSpec, ObsSpec
from Datasets.Suites.Names import find_mario as find_task
from Datasets.Suites.Names import mario_tasks as tasks
from Datasets.Suites.Suite import Suite, Transition, check_at_least, given
from Datasets.Suites.Workers import Workers
from Utils import free_cores

__all__ = ['Mario', 'find_task', 'make', 'tasks']

INSTALL = 'pip install gym-super-mario-bros==7.4.0 "numpy<2"'
GAMEPAD = {'A': 1, 'B': 2, 'up': 16, 'down': 32, 'left': 64, 'right': 128}  # bits of the controller's byte
# The "complex" set of the package
ACTIONS = ('', 'right', 'right A', 'right B', 'right A B', 'A', 'left', 'left A', 'left B', 'left A B', 'down', 'up')
BYTES = [sum(GAMEPAD[button] for button in buttons.split()) for buttons in ACTIONS]
LUMINANCE = np.array([0.299, 0.587, 0.114])


def import_package() -> Any:
    """gym_super_mario_bros, without what its Gym says of itself. Raises: ImportError."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            import gym_super_mario_bros
    except ImportError as error:
        raise ImportError(f'task=mario/... needs gym-super-mario-bros: {INSTALL} ({error})') from error
    if np.lib.NumpyVersion(np.__version__) >= '2.0.0':  # it adds to bytes what does not fit into them
        raise ImportError(f'task=mario/... needs a numpy below 2, here is {np.__version__}: {INSTALL}')
    return gym_super_mario_bros


def make(task: str, num_envs: int, **options: Any) -> Mario:
    """Builds a game.

    Args:
        task: an id in any spelling; one without its version is of v0, the original pictures.
        num_envs: lanes.
        options: see `Mario`; None leaves one at its default.

    Raises:
        ValueError: an unknown task or option, or a value out of range.
        ImportError: gym-super-mario-bros is not installed, or not beside this numpy.
    """
    task, options = find_task(task), given(options, Mario)
    import_package()
    return Mario(task, num_envs, **options)


class Mario(Suite):
    """N consoles with the same game and the twelve actions of the package's "complex" set.

    A frame is made as the RND repositories do: luminance and resize (by area) first, then the maximum of the last two frames of an action.

    Args:
        task: canonical id.
        num_envs: lanes.
        train: False for evaluation, where a lost life ends nothing.
        num_threads: cores, 0 for all: a process for each, at most one a lane.
        action_repeat: frames for which an action is held; their rewards add up.
        frame_stack, stack_pad: see `ObsSpec`.
        sticky_actions: probability that the console takes its previous action again, drawn once in each agent step.
        sticky_frames: draw it in each frame instead, as the Atari suite does.
        life_loss: a lost life ends an episode for learning; a single stage is over with it anyway.
        max_frames: frames after which an episode is truncated; rounded up to agent steps.
        reward_divisor: of all rewards, and so of the score: 15, the largest reward of a frame, in the RND repositories.
        grayscale: luminance (1, H, W) instead of colour (3, H, W).
        screen_size: height and width of a frame.
        vectorization: 'async', processes, or 'sync', lanes in turn in this one.
    """

    def __init__(self, task: str, num_envs: int, *, train: bool = True, num_threads: int = 0, action_repeat: int = 4, frame_stack: int = 4,
                 stack_pad: str = 'zeros', sticky_actions: float = 0.25, sticky_frames: bool = False, life_loss: bool = False,
                 max_frames: int = 108_000, reward_divisor: float = 1, grayscale: bool = True, screen_size: int = 84,
                 vectorization: str = 'async') -> None:
        check_at_least(1, num_envs=num_envs, action_repeat=action_repeat, frame_stack=frame_stack, max_frames=max_frames, screen_size=screen_size)
        check_at_least(0, num_threads=num_threads)
        if not 0 <= sticky_actions < 1:
            raise ValueError(f'environment.sticky_actions={sticky_actions!r}: expected a probability below 1, such as 0.25')
        if not 0 < reward_divisor < float('inf'):
            raise ValueError(f'environment.reward_divisor={reward_divisor!r}: expected a number above 0, such as 15')
        if vectorization not in ('sync', 'async'):
            raise ValueError(f'environment.vectorization={vectorization!r}: expected sync or async')
        shape = (1 if grayscale else 3, screen_size, screen_size)
        self.sticky_actions = float(sticky_actions)
        super().__init__(name='mario', task=task, num_envs=num_envs, action_spec=ActionSpec(num_actions=len(ACTIONS)), action_repeat=action_repeat,
                         obs_spec=ObsSpec(shape, torch.uint8, frame_stack=frame_stack, stack_pad=stack_pad))
        self.build_lane = partial(Lane, task, action_repeat=action_repeat, sticky_actions=sticky_actions, sticky_frames=sticky_frames,
                                  steps=-(-max_frames // action_repeat), shape=shape)
        self.life_loss, self.reward_divisor, self.no_life_lost = life_loss and train, reward_divisor, np.zeros(num_envs, bool)
        build = partial(Block, self.build_lane)
        if vectorization == 'async':
            self.workers: Workers | None = Workers(build, num_envs, min(num_envs, num_threads or free_cores()), shape)
            self.shown = self.workers.obs
        else:
            self.workers, self.shown = None, np.zeros((num_envs, *shape), np.uint8)
            self.block = build(self.shown)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        (self.workers or self.block).reset(mask, seeds)
        return self.shown.copy()

    def send(self, actions: np.ndarray) -> None:
        self.sent = actions
        if self.workers:
            self.workers.send(actions)

    def recv(self) -> Transition:
        reward, terminated, truncated, life_lost = self.workers.recv() if self.workers else self.block.step(self.sent)
        return Transition(self.shown.copy(), (reward / self.reward_divisor).astype(np.float32), terminated, truncated,
                          life_lost if self.life_loss else self.no_life_lost)

    def render_episode(self, seed: int, actions: Sequence[Any], before: Sequence[Any] = ()) -> Iterator[np.ndarray]:
        lane = self.build_lane()
        try:
            lane.reset(seed)
            yield lane.env.screen.copy()
            for action in actions:
                lane.step(int(action))
                yield lane.env.screen.copy()
        finally:
            lane.close()

    def close(self) -> None:
        if self.workers:
            self.workers.close()
        else:
            self.block.close()


class Block:
    """Lanes that are emulated in one process and show themselves in `out`, (n, C, H, W) uint8."""

    def __init__(self, build_lane: Any, out: np.ndarray) -> None:
        self.out, self.lanes = out, [build_lane() for _ in out]

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> None:
        for lane, seed in zip(mask.nonzero()[0].tolist(), seeds.tolist(), strict=True):
            self.on(lane, self.lanes[lane].reset, seed)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """→ reward (n,) float32, terminated, truncated, life lost (n,) bool."""
        told = [self.on(lane, self.lanes[lane].step, action) for lane, action in enumerate(actions.tolist())]
        reward, *ends = zip(*told, strict=True)
        return np.array(reward, np.float32), *(np.array(end, bool) for end in ends)

    def on(self, lane: int, call: Any, argument: int) -> Any:
        """Has a lane do something, and shows it. What it raises carries its number."""
        try:
            told = call(argument)
            self.out[lane] = self.lanes[lane].frame
        except Exception as error:
            error.lane = lane  # type: ignore[attr-defined]
            raise
        return told

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()
        self.lanes = []


class Lane:
    """One console.

    Args:
        task: canonical id.
        action_repeat, sticky_actions, sticky_frames: see `Mario`.
        steps: agent steps of an episode at most.
        shape: (C, H, W) of a frame.

    Attributes:
        env: the package's environment: reset(seed) → screen; step(byte) → screen, reward, done, info; `screen` (240, 256, 3) uint8 is its memory.
        frame: (C, H, W) uint8, what the lane shows.
    """

    def __init__(self, task: str, *, action_repeat: int, sticky_actions: float, sticky_frames: bool, steps: int, shape: tuple[int, ...]) -> None:
        self.env = build(task)
        self.action_repeat, self.sticky_actions, self.sticky_frames, self.steps, self.shape = action_repeat, sticky_actions, sticky_frames, steps, shape

    def reset(self, seed: int) -> None:
        self.random, self.previous, self.step_count, self.lives = np.random.default_rng(seed), 0, 0, 0
        self.frame = self.picture(self.env.reset(seed=seed))

    def step(self, action: int) -> tuple[float, bool, bool, bool]:
        """→ sum of rewards, terminated, truncated, life lost."""
        total, done, before, pictures = 0.0, False, self.lives, []
        self.stick(action)
        for frame in range(self.action_repeat):
            if frame and self.sticky_frames:
                self.stick(action)
            screen, reward, done, info = self.env.step(BYTES[self.previous])
            total += reward
            if done or frame >= self.action_repeat - 2:
                pictures.append(self.picture(screen))  # now: the next frame is drawn into the same memory
            if done:
                break
        self.frame = np.max(pictures, 0)
        self.step_count += 1
        self.lives = (int(info['life']) + 1) % 256  # 255 when the last of 2, 1, 0 is lost
        return total, done, not done and self.step_count >= self.steps, not done and self.lives < before

    def stick(self, action: int) -> None:
        """Takes the action over, or goes on with the one before."""
        if self.random.random() >= self.sticky_actions:
            self.previous = action

    def picture(self, screen: np.ndarray) -> np.ndarray:
        """(240, 256, 3) uint8 → (C, H, W) uint8."""
        channels, height, width = self.shape
        seen = (screen @ LUMINANCE)[..., None] if channels == 1 else screen.astype(np.float64)
        small = area(area(seen.transpose(2, 0, 1), width).transpose(0, 2, 1), height).transpose(0, 2, 1)
        return np.rint(small).astype(np.uint8)

    def close(self) -> None:
        self.env.close()


def build(task: str) -> Any:
    """The package's environment, by its class: its own `make` puts wrappers around it that its Gym no longer takes."""
    package, (game, stage, version) = import_package(), task_parts(task)
    pictures = ('vanilla', 'downsample', 'pixel', 'rectangle')[version]
    if game == 'RandomStages':
        return package.SuperMarioBrosRandomStagesEnv(rom_mode=pictures)
    return package.SuperMarioBrosEnv(rom_mode=pictures, lost_levels=game == '2', target=stage)


def task_parts(task: str) -> tuple[str, tuple[int, int] | None, int]:
    """`SuperMarioBros-1-2-v0` → '' ('2' of the Lost Levels, 'RandomStages'), (1, 2) (None of a whole game), 0."""
    stem, _, version = task.rpartition('-v')
    name, *stage = stem.split('-')
    return name.removeprefix('SuperMarioBros'), (int(stage[0]), int(stage[1])) if stage else None, int(version)


def area(values: np.ndarray, size: int) -> np.ndarray:
    """Resizes the last dimension: each new value is the mean of the stretch that it covers, parts of old ones included."""
    length = values.shape[-1]
    sums = np.zeros((*values.shape[:-1], length + 1))
    np.cumsum(values, -1, out=sums[..., 1:])
    edges = np.arange(size + 1) * (length / size)
    whole = np.minimum(edges.astype(np.int64), length - 1)
    at_edges = sums[..., whole] + (edges - whole) * values[..., whole]
    return np.diff(at_edges) * (size / length)
