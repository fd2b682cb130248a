"""Gymnasium's environments: `task=gym/<any id with Box or Discrete spaces>`, its MuJoCo tasks included, as what they tell or as what they draw."""
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from PIL import Image

from Datasets.Specs import ActionSpec, ObsSpec
from Datasets.Suites.Names import find_gym as find_task
from Datasets.Suites.Names import gym_tasks as tasks
from Datasets.Suites.Rendering import import_without_display
from Datasets.Suites.Suite import Suite, Transition, check_at_least, given

__all__ = ['Gym', 'find_task', 'make', 'tasks']


def make(task: str, num_envs: int, **options: Any) -> 'Gym':
    """Builds a Gymnasium task.

    Args:
        task: an id in any case, with or without its version.
        num_envs: lanes.
        options: see `Gym`; None leaves one at its default.

    Raises:
        ValueError: an unknown task or option, or a space that is neither Box nor Discrete.
        ImportError: the task needs a package that is missing; the message says which.
    """
    return Gym(find_task(task), num_envs, **given(options, Gym))


class Gym(Suite):
    """N lanes of one Gymnasium task.

    Vectors become (D,) float32 (other shapes flattened, Discrete one-hot), uint8 images (C, H, W). Actions in [-1, 1] are rescaled to the Box.

    Args:
        task: the registered id.
        num_envs: lanes.
        obs: 'state', what the task tells, or 'pixels', what it draws.
        render_size, grayscale: of pixels, their height and width, and whether one channel stands for three.
        train, num_threads: for other suites; they make no difference here.
        vectorization: 'sync', lanes in turn (best for small tasks), or 'async', a process for each.
        frame_stack, stack_pad: see `ObsSpec`.
        action_repeat: simulator steps for which an action is held; their rewards add up.
        max_steps: simulator steps after which an episode is truncated, instead of the task's own limit.
        kwargs: arguments of the environment's constructor.
    """

    def __init__(self, task: str, num_envs: int, *, obs: Literal['state', 'pixels'] = 'state', render_size: int = 84, grayscale: bool = True,
                 train: bool = True, num_threads: int = 0, vectorization: str = 'sync', frame_stack: int = 1, stack_pad: str = 'zeros',
                 action_repeat: int = 1, max_steps: int | None = None, kwargs: dict[str, Any] | None = None) -> None:
        check_at_least(1, num_envs=num_envs, frame_stack=frame_stack, action_repeat=action_repeat, max_steps=1 if max_steps is None else max_steps,
                       render_size=render_size)
        if vectorization not in ('sync', 'async'):
            raise ValueError(f'environment.vectorization={vectorization!r}: expected sync or async')
        os.environ.setdefault('MUJOCO_GL', 'egl')  # read at MuJoCo's first import; needs no display
        os.environ.setdefault('SDL_VIDEODRIVER', 'dummy')  # pygame's
        drawn = (render_size, grayscale) if obs == 'pixels' else None
        self.build: Callable[..., gymnasium.Env] = partial(build, task, action_repeat, max_steps, dict(kwargs or {}), drawn)
        lanes = [partial(self.build, lane=lane) for lane in range(num_envs)]
        self.env: VectorEnv
        if vectorization == 'sync':
            self.env = SyncVectorEnv(lanes, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        else:
            self.env = AsyncVectorEnv(lanes, copy=False, autoreset_mode=AutoresetMode.DISABLED)
        try:
            shape, low, high, self.observation = observation(self.env.single_observation_space, task)
            action_spec, self.action = action(self.env.single_action_space, task)
        except ValueError:
            self.env.close()
            raise
        obs_spec = ObsSpec(shape, torch.uint8 if len(shape) == 3 else torch.float32, low, high, frame_stack, stack_pad)
        self.no_life_lost, self.closed, self.failed, self.waiting = np.zeros(num_envs, bool), False, False, False
        super().__init__(name='gym', task=task, num_envs=num_envs, obs_spec=obs_spec, action_spec=action_spec, action_repeat=action_repeat)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        seed: Any = [None] * self.num_envs
        for lane, lane_seed in zip(np.flatnonzero(mask), seeds):
            seed[lane] = int(lane_seed)
        obs, _ = self.env.reset(seed=seed, options=None if mask.all() else {'reset_mask': mask})
        return self.observation(obs)

    def send(self, actions: np.ndarray) -> None:
        self.sent, self.waiting = self.action(actions), True
        if isinstance(self.env, AsyncVectorEnv):
            self.env.step_async(self.sent)

    def recv(self) -> Transition:
        obs, reward, terminated, truncated, _ = self.env.step_wait() if isinstance(self.env, AsyncVectorEnv) else self.env.step(self.sent)
        self.waiting = False
        return Transition(self.observation(obs), reward.astype(np.float32), terminated, truncated, self.no_life_lost)

    def render_episode(self, seed: int, actions: Sequence[Any], before: Sequence[Any] = ()) -> Iterator[np.ndarray]:
        try:
            env = self.build(render_mode='rgb_array')
        except ValueError as error:
            raise RuntimeError(f'gym/{self.task} cannot be shown: {one_line(error)}') from error
        try:
            env.reset(seed=int(seed))
            yield self.render(env)
            for one in actions:
                env.step(self.action(np.asarray(one)[None])[0])
                yield self.render(env)
        finally:
            env.close()

    def render(self, env: gymnasium.Env) -> np.ndarray:
        """Raises: ImportError: a package is missing. RuntimeError: the task or the machine cannot draw."""
        try:
            frame = env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise ImportError(f'gym/{self.task} cannot be shown: {one_line(error)}') from error
        except Exception as error:  # every simulator, and every graphics driver, fails in its own way
            raise RuntimeError(f'gym/{self.task} cannot be shown: {type(error).__name__} {one_line(error)}') from error
        if not isinstance(frame, np.ndarray):
            raise RuntimeError(f'gym/{self.task} cannot be shown: it has no render_mode=rgb_array')
        return frame

    def broken_lane(self, error: BaseException) -> int | None:
        """The lane that raised (it says so itself), or whose process ended."""
        self.failed = True
        lane = getattr(error, 'lane', None)
        if lane is not None or not isinstance(self.env, AsyncVectorEnv):
            return lane
        deadline = time.monotonic() + 2  # the pipe of a process that was killed breaks a moment before the process counts as dead
        while time.monotonic() < deadline:
            for lane, (pipe, process) in enumerate(zip(self.env.parent_pipes, self.env.processes)):
                if pipe is None or not process.is_alive():
                    return lane
            if not isinstance(error, EOFError | OSError):
                break
            time.sleep(0.01)
        return None

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if isinstance(self.env, AsyncVectorEnv):
            abandoned = self.failed or self.waiting
            for process in self.env.processes if abandoned else ():
                process.kill()  # one that hangs in its simulator, or does not listen to SIGTERM
            self.env.close(terminate=abandoned)
        else:
            self.env.close()


class Lane(gymnasium.Wrapper):
    """One lane: holds actions, shows what is drawn where that is wanted, drops the infos that nobody reads, and marks what it raises with its number.

    Args:
        drawn: height and width of its pictures, and whether they are grey; None: it shows what the environment tells."""

    def __init__(self, env: gymnasium.Env, lane: int, action_repeat: int, drawn: tuple[int, bool] | None = None) -> None:
        super().__init__(env)
        self.lane, self.action_repeat, self.drawn = lane, action_repeat, drawn
        if drawn is not None:
            self.observation_space = spaces.Box(0, 255, (drawn[0], drawn[0], 1 if drawn[1] else 3), np.uint8)

    def shown(self, obs: Any) -> Any:
        """The picture in place of the observation: grey by luma (ITU-R 601), brought to size by area."""
        if self.drawn is None:
            return obs
        size, grey = self.drawn
        picture: Any = self.env.render()
        return np.asarray(Image.fromarray(picture).convert('L' if grey else 'RGB').resize((size, size), Image.Resampling.BOX)).reshape(size, size, -1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        try:
            return self.shown(self.env.reset(seed=seed)[0]), {}  # the vector env's options are its mask
        except Exception as error:
            error.lane = self.lane  # type: ignore[attr-defined]
            raise

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        try:
            obs, reward, terminated, truncated, _ = self.env.step(action)
            for _ in range(self.action_repeat - 1):
                if terminated or truncated:
                    break
                obs, more, terminated, truncated, _ = self.env.step(action)
                reward = float(reward) + float(more)
            return self.shown(obs), reward, terminated, truncated, {}  # type: ignore[return-value]
        except Exception as error:
            error.lane = self.lane  # type: ignore[attr-defined]
            raise


def build(task: str, action_repeat: int, max_steps: int | None, kwargs: dict[str, Any], drawn: tuple[int, bool] | None = None, lane: int = 0,
          render_mode: str | None = None) -> gymnasium.Env:
    """One environment. drawn: size of its pictures and whether they are grey, where those are what it shows. Raises: ValueError, ImportError: as `make`."""
    if drawn is not None:
        render_mode = 'rgb_array'
    if render_mode is not None:
        kwargs = kwargs | {'render_mode': render_mode}
    try:
        if 'mujoco' in str(gymnasium.spec(task.rpartition(':')[2]).entry_point):
            hush_mujoco()
        env = gymnasium.make(task, max_episode_steps=max_steps, disable_env_checker=True, **kwargs)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise ImportError(f'task=gym/{task}: {one_line(error)}') from error
    except (gymnasium.error.Error, TypeError) as error:
        raise ValueError(f'task=gym/{task}: {one_line(error)}') from error
    if drawn is not None and 'rgb_array' not in (env.metadata.get('render_modes') or ()):
        env.close()
        raise ValueError(f'obs=pixels: task=gym/{task} cannot be drawn: it has no render_mode=rgb_array')
    return Lane(env, lane, action_repeat, drawn)


def observation(space: spaces.Space, task: str) -> tuple[tuple[int, ...], float, float, Callable[[Any], np.ndarray]]:
    """What a space's batches become: a frame's shape, its smallest and largest value, and the function that copies a batch into that form.

    Raises:
        ValueError: neither Box nor Discrete.
    """
    if isinstance(space, spaces.Discrete):
        start, eye = int(space.start), np.eye(int(space.n), dtype=np.float32)
        return (int(space.n),), 0.0, 1.0, lambda obs: eye[np.asarray(obs) - start]
    if not isinstance(space, spaces.Box):
        raise ValueError(f'task=gym/{task}: observations are {type(space).__name__}, expected Box or Discrete; '
                         'gymnasium.wrappers.FlattenObservation makes a Box of most others')
    shape = space.shape
    if space.dtype == np.uint8 and len(shape) == 2:
        return (1, *shape), 0.0, 255.0, lambda obs: np.array(obs)[:, None]
    if space.dtype == np.uint8 and len(shape) == 3:
        if shape[0] < shape[2]:  # channels are fewer than columns and stand first
            return shape, 0.0, 255.0, lambda obs: np.array(obs)
        return (shape[2], *shape[:2]), 0.0, 255.0, lambda obs: np.array(np.moveaxis(obs, -1, 1), order='C')
    size = int(np.prod(shape))
    return (size,), float(space.low.min()), float(space.high.max()), lambda obs: np.array(obs, np.float32).reshape(len(obs), size)


def action(space: spaces.Space, task: str) -> tuple[ActionSpec, Callable[[np.ndarray], np.ndarray]]:
    """What agents choose from, and the function from their batches of actions to the space's.

    Raises:
        ValueError: neither Discrete nor a finite Box.
    """
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return ActionSpec(num_actions=int(space.n)), (lambda actions: actions + start) if start else (lambda actions: actions)
    if not isinstance(space, spaces.Box):
        raise ValueError(f'task=gym/{task}: actions are {type(space).__name__}, expected Box or Discrete')
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(f'task=gym/{task}: actions range from {space.low.min()} to {space.high.max()}, expected finite bounds; '
                         'wrap the environment in gymnasium.wrappers.RescaleAction or ClipAction')
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    whole = np.issubdtype(space.dtype, np.integer)

    def rescale(actions: np.ndarray) -> np.ndarray:
        scaled = low + (np.clip(actions, -1, 1).reshape(len(actions), *space.shape).astype(np.float64) + 1) * (high - low) / 2
        return np.clip(np.rint(scaled) if whole else scaled, low, high).astype(space.dtype)

    return ActionSpec((int(np.prod(space.shape)),)), rescale


def hush_mujoco() -> None:
    """Sends MuJoCo's warnings through Python's, not to the terminal and a MUJOCO_LOG.TXT where the user stands; those about old XML go nowhere."""
    mujoco = import_without_display('mujoco')

    def warn(message: str) -> None:
        if 'deprecated' not in message:
            warnings.warn(f'MuJoCo: {message}', RuntimeWarning, stacklevel=2)

    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(warn)


def one_line(error: BaseException) -> str:
    return ' '.join(str(error).split())
