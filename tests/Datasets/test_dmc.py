"""DeepMind Control: the bare simulator is what lanes are compared with; states are restored exactly; pixels are dm_control's own."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from Datasets.Replay import Replay
from Datasets.Specs import ActionSpec, ObsSpec
from Datasets.Suites import DMC, Rendering, make
from Datasets.Suites.DMC import Lane, import_suite
from Datasets.Suites.Names import dmc_pairs, dmc_tasks, find_task
from Environment import EnvError, Environment
from tests.test_environment import saved

ROOT = Path(__file__).parents[2]


def build(task='cheetah_run', num_envs=2, seed=0, **options):
    environment = Environment(make('dmc', task, num_envs, **options), seed=seed)
    environment.start()
    return environment


def actions(spec, steps, lanes, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, lanes, *spec.shape)).astype(np.float32)


# --- names

def test_every_task_of_dm_control_is_there():
    """Names are read from the source; dm_control itself says which there are."""
    assert sorted(dmc_pairs().values()) == sorted(import_suite().ALL_TASKS) and len(dmc_tasks()) >= 51


@pytest.mark.parametrize('spelling, name', [('dmc/cheetah_run', 'cheetah_run'), ('dmc/CheetahRun', 'cheetah_run'), ('dmc/cup_catch', 'ball_in_cup_catch'),
                                            ('dmc/ball_in_cup_catch', 'ball_in_cup_catch'), ('dmc/humanoid_cmu_run', 'humanoid_CMU_run'),
                                            ('dmc/lqr_2_1', 'lqr_2_1')])
def test_spellings(spelling, name):
    assert find_task(spelling) == ('dmc', name)


@pytest.mark.parametrize('name, close', [('dmc/cheeta_run', 'dmc/cheetah_run'), ('dmc/walker', 'dmc/walker_run'), ('dmc/', 'which one')])
def test_misspelt_tasks_name_the_nearest(name, close):
    with pytest.raises(ValueError, match=close):
        find_task(name)


# --- what a step is

@pytest.mark.parametrize('task', ['cheetah_run', 'cartpole_swingup', 'ball_in_cup_catch', 'finger_turn_hard', 'quadruped_run'])
def test_a_step_is_the_simulators_with_the_action_repeated(task):
    """Observations in the task's order, rewards summed, actions of ±1 at the task's bounds; the limit is a truncation."""
    suite, limit, seed = make('dmc', task, 1, obs='state', action_repeat=3, max_frames=100), 100, 12345
    domain, name = dmc_pairs()[task]
    bare = import_suite().load(domain, name, task_kwargs={'random': 0})
    bare.task.random.seed(seed)
    spec = bare.action_spec()

    def flat(observation):
        return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)

    first = suite.reset(np.ones(1, bool), np.array([seed]))
    assert np.array_equal(first[0], flat(bare.reset().observation))
    moves = actions(suite.action_spec, 34, 1)
    moves[0], moves[1] = 1, -1
    for step, move in enumerate(moves):
        total = 0.0
        for _ in range(min(3, limit - 3 * step)):
            stamp = bare.step(spec.minimum + (move[0].astype(np.float64) + 1) / 2 * (spec.maximum - spec.minimum))
            total += stamp.reward
        obs, reward, terminated, truncated, life_lost = suite.step(move)
        np.testing.assert_array_equal(obs[0], flat(stamp.observation))
        assert reward[0] == np.float32(total) and not terminated[0] and not life_lost[0] and truncated[0] == (step == 33)


def test_the_tasks_own_limit_truncates_after_a_thousand_frames_and_bootstraps():
    environment = build('cartpole_balance', 1, obs='state', action_repeat=8)
    for step, move in enumerate(actions(environment.action_spec, 125, 1)):
        rows = environment.advance(move)
        assert rows.truncated[0] == (step == 124) and not rows.terminated[0]
    (episode,) = environment.pop_episodes()
    assert episode.length == 125 and rows.final_lanes.tolist() == [0] and 0 < episode.score <= 1000


def test_a_tasks_own_end_terminates():
    """LQR ends where it has come to rest, and nothing is to come."""
    lane = Lane('lqr_2_1', action_repeat=1)
    lane.physics.data.qpos[:] = 0
    lane.physics.data.qvel[:] = 0
    lane.physics.forward()
    _, terminated, truncated = lane.step(np.zeros(1))
    assert terminated and not truncated


def test_actuators_without_limits_take_actions_as_they_are():
    lane = Lane('lqr_6_2', action_repeat=1)
    assert lane.low.tolist() == [-1, -1] and lane.high.tolist() == [1, 1]


def test_lanes_are_those_of_single_environments():
    """A lane's episodes depend on nothing but its seeds: not on how many lanes there are or where they run."""
    many = build('walker_walk', 3, obs='state', max_frames=20)
    processes = build('walker_walk', 3, obs='state', max_frames=20, vectorization='async', num_threads=2)
    alone = [Environment(make('dmc', 'walker_walk', 1, obs='state', max_frames=20), seed=0, lanes=[lane]) for lane in range(3)]
    for one in alone:
        one.start()
    for move in actions(many.action_spec, 35, 3):
        rows, others = many.advance(move), processes.advance(move)
        for name, value in rows.columns().items():
            np.testing.assert_array_equal(value, getattr(others, name), err_msg=name)
        for lane, one in enumerate(alone):
            single = one.advance(move[lane:lane + 1])
            assert np.array_equal(single.obs[0], rows.obs[lane]) and single.reward[0] == rows.reward[lane] and single.first[0] == rows.first[lane]
    processes.close()


# --- exact state

@pytest.mark.parametrize('task', dmc_tasks())
def test_every_task_repeats_itself_and_is_restored_exactly(task):
    """An episode follows from its seed, whatever came before; a state taken in the middle goes on to the bit in a simulator of another episode."""
    one, two = (make('dmc', task, 1, obs='state') for _ in range(2))
    here, moves = np.ones(1, bool), actions(one.action_spec, 30, 1)
    one.reset(here, np.array([7]))
    for move in moves[:5]:
        one.step(move)
    assert np.array_equal(one.reset(here, np.array([11])), two.reset(here, np.array([11])))
    for move in moves[:15]:
        np.testing.assert_array_equal(one.step(move).obs, two.step(move).obs)
    state = one.get_state()
    future = [one.step(move) for move in moves[15:]]
    two.reset(here, np.array([8]))
    two.step(moves[0])
    two.set_state(state)
    for want, move in zip(future, moves[15:], strict=True):
        for a, b in zip(want, two.step(move), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('options', [{'obs': 'state'}, {'obs': 'state', 'vectorization': 'async'},
                                     pytest.param({'obs': 'pixels', 'render_quality': 'fast', 'render_size': 20}, marks=pytest.mark.render)])
def test_an_environment_goes_on_in_a_new_one(options):
    first = build('quadruped_run', 2, max_frames=24, **options)
    moves = actions(first.action_spec, 40, 2)
    for move in moves[:17]:
        first.advance(move)
    state = saved(first.state_dict())
    second = Environment(make('dmc', 'quadruped_run', 2, max_frames=24, **options), seed=5)
    second.load_state_dict(state)
    for move in moves[17:]:
        rows, again = first.advance(move), second.advance(move)
        for name, value in rows.columns().items():
            np.testing.assert_array_equal(value, getattr(again, name), err_msg=name)
    for environment in (first, second):
        environment.close()


# --- pixels

BARE = '''
import os, sys
import numpy as np
sys.path.insert(0, {root!r})
from Datasets.Suites.DMC import dmc_pairs
from dm_control import suite
task, camera, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
domain, name = dmc_pairs()[task]
env = suite.load(domain, name, task_kwargs={{'random': 0}})
env.task.random.seed(3)
env.reset()
spec, random, frames = env.action_spec(), np.random.default_rng(0), []
frames.append(env.physics.render(84, 84, camera_id=camera))
for _ in range(6):
    move = random.uniform(-1, 1, spec.shape).astype(np.float32).astype(np.float64)
    for _ in range(2):
        env.step(spec.minimum + (move + 1) * ((spec.maximum - spec.minimum) / 2))
    frames.append(env.physics.render(84, 84, camera_id=camera))
np.save(out, np.stack(frames))
'''


def shown(task, **options):
    """(7, 84, 84, 3) of seed 3 and six random actions."""
    suite, random = make('dmc', task, 1, obs='pixels', **options), np.random.default_rng(0)
    frames = [suite.reset(np.ones(1, bool), np.array([3]))]
    for _ in range(6):
        frames.append(suite.step(random.uniform(-1, 1, (1, *suite.action_spec.shape)).astype(np.float32)).obs)
    suite.close()
    return np.concatenate(frames).transpose(0, 2, 3, 1)


@pytest.mark.render
@pytest.mark.parametrize('task, camera', [('cheetah_run', 0), ('quadruped_escape', 2), ('ball_in_cup_catch', 0), ('finger_spin', 0)])
def test_full_quality_is_dm_controls_pixels(task, camera, tmp_path):
    """`physics.render` in a process of its own: two renderers in one corrupt each other. The quadruped is seen through camera 2."""
    code = BARE.format(root=str(ROOT))
    subprocess.run([sys.executable, '-c', code, task, str(camera), str(tmp_path / 'bare.npy')], check=True, env=os.environ | {'MUJOCO_GL': 'egl'})
    bare, full = np.load(tmp_path / 'bare.npy'), shown(task)
    np.testing.assert_array_equal(full, bare)
    assert (bare[0] != bare[-1]).any() and bare.std() > 5


@pytest.mark.render
def test_qualities():
    """near: less than one pixel in five hundred differs; fast: what moves is still there."""
    full, near, fast = (shown('cheetah_run', render_quality=quality) for quality in ('full', 'near', 'fast'))
    assert 0 < (full != near).any(-1).mean() < 0.002
    assert 0.02 < (full != fast).any(-1).mean() < 0.4 and np.abs(full.astype(int) - fast).mean() < 20


@pytest.mark.render
def test_pixels_are_stacked_three_deep_and_the_first_is_repeated():
    environment = build(render_quality='fast', render_size=32, max_frames=8)
    spec = environment.obs_spec
    assert spec.stacked_shape == (9, 32, 32) and spec.stack_pad == 'repeat' and environment.suite.workers is not None
    obs = environment.observe().obs
    assert (obs[:, :3] == obs[:, 3:6]).all() and (obs[:, :3] == obs[:, 6:]).all() and obs.float().std() > 5
    before = obs
    rows = environment.advance(actions(environment.action_spec, 1, 2)[0])
    obs = environment.observe().obs
    assert (obs[:, :6] == before[:, 3:]).all() and np.array_equal(obs[:, 6:].numpy(), rows.obs)
    environment.close()


@pytest.mark.render
def test_a_video_shows_the_episode():
    environment = build('reacher_easy', 1, obs='state', max_frames=12)
    for move in actions(environment.action_spec, 6, 1):
        environment.advance(move)
    (episode,) = environment.pop_episodes()
    frames = list(environment.suite.render_episode(episode.seed, episode.actions))
    assert len(frames) == 7 and all(frame.shape == (240, 240, 3) and frame.dtype == np.uint8 for frame in frames) and (frames[0] != frames[-1]).any()


# --- trouble

@pytest.mark.render
def test_a_renderer_that_is_not_there_says_what_to_install(monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', '')
    real = Rendering.importlib.import_module

    def missing(name):
        if name.startswith('mujoco.'):
            raise ImportError(f'no library for {name}')
        return real(name)
    monkeypatch.setattr(Rendering.importlib, 'import_module', missing)
    with pytest.raises(ImportError, match=r'^rendering needs OpenGL: apt install libegl1 libgl1 .* \(egl: no library for mujoco.egl; osmesa: no library for'):
        make('dmc', 'cheetah_run', 1, obs='pixels')


@pytest.mark.render
def test_osmesa_takes_over_where_egl_fails(monkeypatch):
    real, tried = Rendering.importlib.import_module, []

    def only_one(name):
        tried.append(name)
        if name.endswith('egl'):
            raise ImportError('no EGL here')
        return real('mujoco.egl')  # stands in: this machine may have no OSMesa
    monkeypatch.setattr(Rendering.importlib, 'import_module', only_one)
    monkeypatch.setenv('MUJOCO_GL', '')
    monkeypatch.setattr(Rendering, '_context', None)
    assert Rendering.gl_context(8, 8) is not None and tried == ['mujoco.egl', 'mujoco.osmesa']
    Rendering._context.free()


class Asked(Exception):
    pass


@pytest.mark.parametrize('num_envs, num_threads, processes, each', [(1, 2, 1, 2), (2, 2, 2, 1), (2, 5, 2, 2), (3, 2, 2, 1)])
def test_cores_beyond_one_a_lane_share_the_drawing(monkeypatch, num_envs, num_threads, processes, each):
    def workers(build, lanes, count, *shape):
        raise Asked(count, build.keywords['threads'])
    monkeypatch.setattr(DMC, 'Workers', workers)
    with pytest.raises(Asked) as asked:
        make('dmc', 'cheetah_run', num_envs, obs='pixels', num_threads=num_threads)
    assert asked.value.args == (processes, each)


def test_a_worker_that_is_killed_is_told_by_lane_and_seed():
    environment = build('cheetah_run', 3, obs='state', vectorization='async', num_threads=3)
    os.kill(environment.suite.workers.processes[1].pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(EnvError, match=r'dmc/cheetah_run failed in lane 1, seed \d+, last action .*: RuntimeError: its process ended \(SIGKILL\)'):
        for move in actions(environment.action_spec, 5, 3):
            environment.advance(move)
    environment.close()
    assert time.monotonic() - start < 10 and not environment.suite.workers.processes


def test_physics_that_break_down_are_told_by_lane():
    environment = build('cheetah_run', 2, obs='state')
    environment.suite.block.lanes[1].data.qvel[:] = 1e12
    with pytest.raises(EnvError, match=r'failed in lane 1, .*: the physics broke down .*mjWARN_BADQPOS'):
        for move in actions(environment.action_spec, 5, 2):
            environment.advance(move)


def test_workers_end_with_their_parent():
    code = f'''
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from Datasets.Suites import make
suite = make('dmc', 'cheetah_run', 2, obs='state', vectorization='async', num_threads=2)
print(*(process.pid for process in suite.workers.processes), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    children = [int(pid) for pid in done.stdout.split()]
    assert len(children) == 2
    end = time.monotonic() + 5
    while any(Path(f'/proc/{pid}').exists() for pid in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f'/proc/{pid}').exists() for pid in children)


@pytest.mark.parametrize('options, message', [
    ({'obs': 'image'}, r"obs='image': expected state or pixels"), ({'render_quality': 'best'}, 'environment.render_quality'),
    ({'camera': 9}, 'environment.camera=9'), ({'render_size': 0}, 'environment.render_size'),
    ({'vectorization': 'both'}, 'environment.vectorization'), ({'max_frames': 0}, 'environment.max_frames'),
    ({'colour': True}, 'environment.colour'), ({'action_repeat': 0}, 'environment.action_repeat')])
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make('dmc', 'cheetah_run', 1, **options)


def test_a_hundred_thousand_transitions_of_pixels_take_three_gigabytes():
    """CURL's replay: each frame of 100 × 100 once, not stacks of obs and next_obs (18 GB)."""
    needed = Replay.bytes_needed(ObsSpec((3, 100, 100), frame_stack=3), ActionSpec((6,)), num_envs=1, capacity=100_000, window=4)
    assert 3.0e9 < needed < 3.1e9
