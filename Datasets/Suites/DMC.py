"""DeepMind Control: `task=dmc/<domain>_<task>`, every task of dm_control.suite, from state or pixels.

State tasks step together in this process; pixel tasks in processes of their own, since a software renderer takes longer than the simulation.
An episode follows from its seed alone, and a lane's state is saved exactly: MuJoCo's integration state, the task's random stream, the step counter,
and the episode's seed, since tasks draw parts of the model (target sizes, terrain) when an episode begins.
"""
from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from Datasets.Specs import ActionSpec, ObsSpec
from Datasets.Suites.Names import dmc_pairs, find_dmc
from Datasets.Suites.Names import dmc_tasks as tasks
from Datasets.Suites.Names import find_dmc as find_task
from Datasets.Suites.Rendering import QUALITIES, Renderer, import_without_display
from Datasets.Suites.Suite import Suite, Transition, check_at_least, given
from Datasets.Suites.Workers import Workers
from Utils import free_cores

__all__ = ['DMC', 'find_task', 'make', 'tasks']

VIDEO = 240  # height and width of a video's frames
UNBOUNDED = 1e9  # LQR's actuators have no limits (dm_control writes ±1e10): actions of ±1 are taken as they are


def import_suite() -> Any:
    """dm_control.suite, without its renderers."""
    logging.getLogger('absl').setLevel(logging.ERROR)  # about the XML of its own models
    try:
        return import_without_display('dm_control.suite')
    except ImportError as error:
        raise ImportError(f'task=dmc/... needs dm_control: pip install dm_control==1.0.50 "mujoco<4" ({error})') from error


def import_mujoco() -> Any:
    return import_without_display('mujoco')


def make(task: str, num_envs: int, **options: Any) -> DMC:
    """Builds a task.

    Args:
        task: in any spelling; `cup_catch` is `ball_in_cup_catch`.
        num_envs: lanes.
        options: see `DMC`; None leaves one at its default.

    Raises:
        ValueError: an unknown task or option, or a value out of range.
        ImportError: dm_control is not installed, or obs=pixels on a machine without OpenGL.
    """
    return DMC(find_dmc(task), num_envs, **given(options, DMC))


class DMC(Suite):
    """N simulations of one task.

    Args:
        task: canonical name, `cheetah_run`.
        num_envs: lanes.
        train: makes no difference here.
        num_threads: cores for pixel tasks, 0 for all: a process for each, at most one a lane; cores that are left over share the drawing.
        obs: 'state': all of the task's observations as one vector, in the task's order; 'pixels': RGB.
        action_repeat: control steps for which an action is held; rewards are summed, and an end cuts it short.
        frame_stack, stack_pad: see `ObsSpec`; by default 3 frames of pixels, 1 of state, and the first frame repeated.
        render_size: height and width of a frame, pixels.
        render_quality: see `Rendering.Renderer`.
        camera: index; by default 2 for the quadruped and 0 for the rest, as in DrQ-v2; A2LS takes 0 for all.
        max_frames: time limit in control steps, instead of the task's own (1000 for all but LQR's, which has none).
        vectorization: 'async': processes, 'sync': all lanes here, which for pixels needs an OpenGL context in this process.
    """

    def __init__(self, task: str, num_envs: int, *, train: bool = True, num_threads: int = 0, obs: str = 'pixels', action_repeat: int = 2,
                 frame_stack: int | None = None, stack_pad: str = 'repeat', render_size: int = 84, render_quality: str = 'full',
                 camera: int | None = None, max_frames: int | None = None, vectorization: str | None = None) -> None:
        pixels = obs == 'pixels'
        check_at_least(1, num_envs=num_envs, action_repeat=action_repeat, render_size=render_size, **{
            name: value for name, value in (('frame_stack', frame_stack), ('max_frames', max_frames)) if value is not None})
        check_at_least(0, num_threads=num_threads)
        for name, value, known in (('obs', obs, ('state', 'pixels')), ('environment.render_quality', render_quality, QUALITIES),
                                   ('environment.vectorization', vectorization or 'sync', ('sync', 'async'))):
            if value not in known:
                raise ValueError(f'{name}={value!r}: expected {" or ".join(known)}')
        self.build_lane = partial(Lane, task, action_repeat=action_repeat, max_frames=max_frames)
        lane = self.build_lane()
        camera = (2 if task.startswith('quadruped') else 0) if camera is None else camera
        if isinstance(camera, bool) or not isinstance(camera, int) or not -1 <= camera < lane.cameras:
            raise ValueError(f'environment.camera={camera!r}: dmc/{task} has cameras 0 to {lane.cameras - 1}, and -1, the free one')
        self.camera, self.half, self.middle = camera, (lane.high - lane.low) / 2, (lane.high + lane.low) / 2
        shape = (3, render_size, render_size) if pixels else lane.shape
        limits = (0.0, 255.0) if pixels else (-np.inf, np.inf)
        obs_spec = ObsSpec(shape, torch.uint8 if pixels else torch.float32, *limits, frame_stack=frame_stack or (3 if pixels else 1), stack_pad=stack_pad)
        super().__init__(name='dmc', task=task, num_envs=num_envs, obs_spec=obs_spec, action_spec=ActionSpec(lane.low.shape), action_repeat=action_repeat)
        size = render_size if pixels else 0
        build = partial(Block, self.build_lane, size=size, camera=camera, quality=render_quality)
        cores = num_threads or free_cores()
        if (vectorization or ('async' if pixels else 'sync')) == 'async':
            processes = min(num_envs, cores)
            self.workers: Workers | None = Workers(partial(build, threads=cores // processes), num_envs, processes, shape, obs_spec.numpy_dtype)
            self.shown = self.workers.obs
        else:
            self.workers = None
            self.shown = np.zeros((num_envs, *shape), obs_spec.numpy_dtype)
            self.block = build(self.shown)
        self.no_life_lost = np.zeros(num_envs, bool)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        (self.workers or self.block).reset(mask, seeds)
        return self.shown.copy()

    def send(self, actions: np.ndarray) -> None:
        self.sent = self.scaled(actions)
        if self.workers:
            self.workers.send(self.sent)

    def scaled(self, actions: np.ndarray) -> np.ndarray:
        """From [−1, 1] to the task's units, float64."""
        return np.minimum(np.maximum(actions, np.float64(-1)), 1) * self.half + self.middle

    def recv(self) -> Transition:
        reward, terminated, truncated = self.workers.recv() if self.workers else self.block.step(self.sent)
        return Transition(self.shown.copy(), reward, terminated, truncated, self.no_life_lost)

    def get_state(self) -> list[dict[str, Any]]:
        return (self.workers or self.block).get_state()

    def set_state(self, state: Sequence[dict[str, Any]]) -> None:
        (self.workers or self.block).set_state(state)

    def render_episode(self, seed: int, actions: Sequence[Any], before: Sequence[Any] = ()) -> Iterator[np.ndarray]:
        """In a process of its own: one that renders may not fork others that do."""
        build = partial(Block, self.build_lane, size=VIDEO, camera=self.camera, quality='full')
        worker = Workers(build, 1, 1, (3, VIDEO, VIDEO))
        try:
            worker.reset(np.ones(1, bool), np.array([seed]))
            yield worker.obs[0].transpose(1, 2, 0).copy()
            for action in actions:
                worker.send(self.scaled(np.asarray(action)[None]))
                worker.recv()
                yield worker.obs[0].transpose(1, 2, 0).copy()
        finally:
            worker.close()

    def close(self) -> None:
        if self.workers:
            self.workers.close()


class Block:
    """Lanes that are simulated in one process and show themselves in `out`, (n, *frame shape).

    Args:
        size: of a frame in pixels; 0 shows the state.
        camera, quality, threads: see `Rendering.Renderer`.

    Raises:
        ValueError: a camera that the model does not have. ImportError: no OpenGL."""

    def __init__(self, build_lane: Any, out: np.ndarray, *, size: int, camera: int, quality: str, threads: int = 1) -> None:
        self.out, self.lanes = out, [build_lane() for _ in out]
        self.renderers = [Renderer(lane.model, size, size, camera, quality, threads) for lane in self.lanes] if size else []
        self.reward = np.zeros(len(out), np.float32)
        self.terminated, self.truncated = np.zeros((2, len(out)), bool)

    def reset(self, mask: np.ndarray, seeds: np.ndarray) -> None:
        for lane, seed in zip(mask.nonzero()[0].tolist(), seeds.tolist(), strict=True):
            try:
                self.lanes[lane].reset(seed)
                self.show(lane, terrain=True)
            except Exception as error:
                error.lane = lane  # type: ignore[attr-defined]
                raise

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward, terminated, truncated = np.empty_like(self.reward), np.empty_like(self.terminated), np.empty_like(self.truncated)
        for lane, action in enumerate(actions):
            try:
                reward[lane], terminated[lane], truncated[lane] = self.lanes[lane].step(action)
                self.show(lane)
            except Exception as error:
                error.lane = lane  # type: ignore[attr-defined]
                raise
        return reward, terminated, truncated

    def show(self, lane: int, terrain: bool = False) -> None:
        if not self.renderers:
            self.lanes[lane].observe(self.out[lane])
            return
        renderer = self.renderers[lane]
        if terrain:
            renderer.terrain_changed()
        self.out[lane] = renderer.frame(self.lanes[lane].data).transpose(2, 0, 1)

    def get_state(self) -> list[dict[str, Any]]:
        return [lane.get_state() for lane in self.lanes]

    def set_state(self, states: Sequence[dict[str, Any]]) -> None:
        for lane, state in enumerate(states):
            self.lanes[lane].set_state(state)
            self.show(lane, terrain=True)

    def close(self) -> None:
        self.renderers = []


class Lane:
    """One simulation of a task: dm_control's physics and task, stepped here in the order of its `Environment`, without what that does once for
    each simulated step and we need once for each action: setting the control, looking for warnings, making an observation.

    Args:
        task: canonical name.
        action_repeat: control steps of an action.
        max_frames: control steps of an episode; None for the task's own limit.

    Attributes:
        model, data: mujoco.MjModel and MjData.
        low, high: (A,) float64, what -1 and 1 mean in the task's own units.
        shape: of the state vector."""

    def __init__(self, task: str, *, action_repeat: int, max_frames: int | None = None) -> None:
        domain, name = dmc_pairs()[task]
        env = import_suite().load(domain, name, task_kwargs={'random': 0})  # the number decides what LQR's builds its model from
        self.physics, self.task, self.action_repeat = env.physics, env.task, action_repeat
        # quadruped_escape would begin to render in order to show its terrain; that is the Renderer's
        self.physics.__class__ = type('Physics', (type(self.physics),), {'contexts': None})
        self.substeps, self.limit = env._n_sub_steps, max_frames or env._step_limit
        self.model, self.data = env.physics.model.ptr, env.physics.data.ptr
        self.cameras = self.model.ncam
        spec = env.action_spec()
        low, high = (np.broadcast_to(bound, spec.shape).astype(np.float64) for bound in (spec.minimum, spec.maximum))
        unbounded = high - low >= UNBOUNDED
        self.low, self.high = np.where(unbounded, -1, low), np.where(unbounded, 1, high)
        self.seed, self.steps = 0, 0
        self.warnings = self.data.warning.number  # how often MuJoCo has complained of what, since the episode began
        self.reset(0)
        sizes = [np.size(value) for value in self.task.get_observation(self.physics).values()]
        ends = np.cumsum(sizes).tolist()
        self.shape, self.slices = (ends[-1],), [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        # as dm_control does: what depends on position and velocity is brought up to date behind a step (2006.12983, page 6)
        mujoco = import_mujoco()
        self.step1, self.step2, self.whole_step = mujoco.mj_step1, mujoco.mj_step2, mujoco.mj_step
        self.runge_kutta = self.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4

    def reset(self, seed: int) -> None:
        """Begins the episode that `seed` stands for."""
        self.seed, self.steps = seed, 0
        self.task.random.seed(seed)
        with self.physics.reset_context():
            self.task.initialize_episode(self.physics)
        self.warned = int(self.warnings.sum())

    def simulate(self) -> None:
        """One control step."""
        model, data, substeps = self.model, self.data, self.substeps
        if self.runge_kutta:
            self.whole_step(model, data, substeps)
        else:
            self.step2(model, data)
            if substeps > 1:
                self.whole_step(model, data, substeps - 1)
        self.step1(model, data)

    def step(self, action: np.ndarray) -> tuple[float, bool, bool]:
        """→ sum of rewards, terminated, truncated."""
        physics, task, total, terminated, truncated = self.physics, self.task, 0.0, False, False
        self.data.ctrl[:] = action
        for _ in range(self.action_repeat):
            self.simulate()
            total += task.get_reward(physics)
            self.steps += 1
            if self.steps >= self.limit:
                truncated = True
                break
            discount = task.get_termination(physics)
            if discount is not None:  # the task's own end: 0 where nothing is to come, else as a time limit
                terminated, truncated = discount == 0, discount != 0
                break
        if self.warnings.sum() != self.warned:
            names = import_mujoco().mjtWarning.__members__
            raise RuntimeError(f'the physics broke down ({", ".join(name for name, count in zip(names, self.warnings) if count)})')
        return total, terminated, truncated

    def observe(self, out: np.ndarray) -> None:
        """Writes the state vector. out: (D,) float32."""
        for where, value in zip(self.slices, self.task.get_observation(self.physics).values(), strict=True):
            out[where] = value if np.ndim(value) < 2 else value.ravel()

    def get_state(self) -> dict[str, Any]:
        mujoco = import_mujoco()
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        values = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, values, kind)
        _, keys, position, has_gauss, gauss = self.task.random.get_state()
        return {'seed': self.seed, 'steps': self.steps, 'physics': torch.from_numpy(values), 'random': torch.from_numpy(keys.astype(np.int64)),
                'random_at': [int(position), int(has_gauss), float(gauss)]}

    def set_state(self, state: dict[str, Any]) -> None:
        mujoco = import_mujoco()
        self.reset(state['seed'])  # the model as this episode drew it
        mujoco.mj_setState(self.model, self.data, state['physics'].numpy(), mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(self.model, self.data)
        self.task.random.set_state(('MT19937', state['random'].numpy().astype(np.uint32), *state['random_at']))
        self.steps = state['steps']
