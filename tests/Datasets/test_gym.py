import os
import time
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from Datasets.Suites import Gym, make
from Environment import EnvError, Environment, episode_seed
from tests.test_environment import same, saved


def build(task, num_envs=2, seed=0, **options):
    environment = Environment(make('gym', task, num_envs, **options), seed=seed)
    environment.start()
    return environment


def random_actions(environment, steps, seed=0):
    spec, rng, lanes = environment.action_spec, np.random.default_rng(seed), environment.num_envs
    return rng.integers(0, spec.num_actions, (steps, lanes)) if spec.discrete else rng.uniform(-1, 1, (steps, lanes, *spec.shape)).astype(np.float32)


@pytest.mark.parametrize('vectorization', ['sync', 'async'])
def test_lanes_are_those_of_plain_environments(vectorization):
    environment = build('CartPole-v1', 3, seed=6, vectorization=vectorization, max_steps=30)
    plain, number, ends = [gymnasium.make('CartPole-v1', max_episode_steps=30) for _ in range(3)], [0] * 3, set()
    for lane, env in enumerate(plain):
        assert np.array_equal(environment.frames[lane], env.reset(seed=episode_seed(6, lane, 0))[0])
    for action in random_actions(environment, 120):
        rows = environment.advance(action)
        finals = dict(zip(rows.final_lanes.tolist(), rows.final_obs))
        for lane, env in enumerate(plain):
            obs, reward, terminated, truncated, _ = env.step(action[lane])
            assert (rows.reward[lane], rows.terminated[lane], rows.truncated[lane]) == (reward, terminated, truncated)
            if terminated or truncated:
                ends.add((terminated, truncated))
                assert np.array_equal(finals[lane], obs)
                number[lane] += 1
                obs, _ = env.reset(seed=episode_seed(6, lane, number[lane]))
            assert np.array_equal(rows.obs[lane], obs)
            assert rows.first[lane] == (terminated or truncated)
    assert {(True, False), (False, True)} <= ends
    environment.close()


def picture(env, size, grey):
    """Grey by luma, brought to size by the mean over the area that a pixel covers: in float64, by hand."""
    frame = env.render().astype(np.float64)
    if grey:
        frame = np.rint(frame @ [0.299, 0.587, 0.114])[..., None]

    def areas(length):
        edges, pixels = np.arange(size + 1) * length / size, np.arange(length)
        covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return covered.clip(0) / covered.clip(0).sum(1, keepdims=True)
    return areas(frame.shape[0]) @ np.moveaxis(frame, -1, 0) @ areas(frame.shape[1]).T


@pytest.mark.parametrize('size, grey', [(84, True), (60, False)])
def test_pixels_are_what_the_task_draws(size, grey):
    """At an episode's end too: what it showed last, not what the next one begins with. Episodes do not all begin alike."""
    options = {} if grey else {'render_size': size, 'grayscale': False}
    environment = build('CartPole-v1', 2, seed=6, max_steps=25, obs='pixels', frame_stack=2, **options)
    assert environment.obs_spec.shape == (1 if grey else 3, size, size) and environment.obs_spec.dtype == torch.uint8
    plain, number, ends, began = [gymnasium.make('CartPole-v1', max_episode_steps=25, render_mode='rgb_array') for _ in range(2)], [0, 0], set(), []

    def near(shown, env):  # the simulator rounds between its passes over rows and columns, a box at a fraction of a pixel
        assert np.abs(shown - picture(env, size, grey)).mean() < 0.7
    for lane, env in enumerate(plain):
        env.reset(seed=episode_seed(6, lane, 0))
        near(environment.frames[lane], env)
    for action in random_actions(environment, 60):
        rows = environment.advance(action)
        finals = dict(zip(rows.final_lanes.tolist(), rows.final_obs))
        for lane, env in enumerate(plain):
            _, _, terminated, truncated, _ = env.step(action[lane])
            if terminated or truncated:
                ends.add((terminated, truncated))
                near(finals[lane], env)
                number[lane] += 1
                env.reset(seed=episode_seed(6, lane, number[lane]))
                began.append(rows.obs[lane].tobytes())
            near(rows.obs[lane], env)
    assert {(True, False), (False, True)} <= ends and len(set(began)) >= 3
    environment.close()


def test_a_task_that_does_not_draw_has_no_pixels():
    with pytest.raises(ValueError, match='^obs=pixels: task=gym/tests.sparse:Chain-v0 cannot be drawn: it has no render_mode=rgb_array$'):
        make('gym', 'tests.sparse:Chain-v0', 2, obs='pixels')


def test_continuous_actions_are_rescaled_to_the_box():
    environment, plain = build('Pendulum-v1', 1, seed=3), gymnasium.make('Pendulum-v1')
    assert environment.action_spec.shape == (1,) and environment.obs_spec.dtype == torch.float32
    plain.reset(seed=episode_seed(3, 0, 0))
    for action in (-1.0, -0.25, 0.0, 0.5, 1.0, 3.0):  # torque is in [-2, 2]
        obs, reward, *_ = plain.step(np.array([min(2 * action, 2)], np.float32))
        rows = environment.advance(np.array([[action]], np.float32))
        assert np.array_equal(rows.obs[0], obs) and rows.reward[0] == np.float32(reward)
    with pytest.raises(ValueError, match='finite'):
        environment.advance(np.array([[np.nan]], np.float32))


@pytest.mark.parametrize('task, steps, options', [
    ('CartPole-v1', 100, {}), ('Pendulum-v1', 250, {}), ('HalfCheetah-v5', 120, {}), ('CartPole-v1', 40, {'obs': 'pixels', 'frame_stack': 3})],
    ids=['CartPole', 'Pendulum', 'HalfCheetah', 'CartPole pixels'])
def test_runs_repeat_and_resume_exactly_in_the_middle_of_episodes(task, steps, options):
    one, two, resumed, other = (build(task, 3, seed, **options) for seed in (1, 1, 9, 2))
    actions = random_actions(one, steps + 60)
    for action in actions[:steps]:
        rows = one.advance(action)
        same(rows, two.advance(action))
        assert not np.array_equal(rows.obs, other.advance(action).obs)
    state = saved(one.state_dict())
    assert any(len(lane) for lane in state['actions'])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        resumed.load_state_dict(state)
    for action in actions[steps:]:
        same(one.advance(action), resumed.advance(action))
    assert [episode.score for episode in one.episodes] == [episode.score for episode in resumed.episodes]


def test_mujoco_leaves_no_file_and_no_word_about_old_xml(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    build('HalfCheetah-v5', 1).close()
    assert os.listdir() == [] and 'WARNING' not in ''.join(capfd.readouterr())


@pytest.mark.parametrize('space, shape, dtype', [
    (spaces.Box(-1, 1, (3, 2)), (6,), torch.float32),
    (spaces.Box(-1, 1, (), np.float64), (1,), torch.float32),
    (spaces.Box(0, 255, (128,), np.uint8), (128,), torch.float32),
    (spaces.Box(0, 255, (6, 5, 3), np.uint8), (3, 6, 5), torch.uint8),
    (spaces.Box(0, 255, (4, 6, 5), np.uint8), (4, 6, 5), torch.uint8),
    (spaces.Box(0, 255, (6, 5), np.uint8), (1, 6, 5), torch.uint8),
    (spaces.Discrete(4, start=3), (4,), torch.float32)])
@pytest.mark.parametrize('vectorization', ['sync', 'async'])
def test_observation_spaces(space, shape, dtype, vectorization):
    suite = make('gym', 'tests.scripted:Spaces-v0', 2, vectorization=vectorization, kwargs={'observation': space})
    assert suite.obs_spec.shape == shape and suite.obs_spec.dtype == dtype
    assert suite.obs_spec.low <= suite.obs_spec.high
    obs = suite.reset(np.ones(2, bool), np.array([5, 6]))
    space.seed(6)
    sample = space.sample()
    if isinstance(space, spaces.Discrete):
        expected = np.array([sample == 3 + i for i in range(4)], np.float32)
    else:
        expected = sample.transpose(2, 0, 1) if space.shape == (6, 5, 3) else sample.reshape(shape).astype(suite.obs_spec.numpy_dtype)
    assert np.array_equal(obs[1], expected) and obs.dtype == suite.obs_spec.numpy_dtype
    later = suite.step(np.zeros(2, np.int64)).obs
    assert np.array_equal(obs[1], expected) and not np.shares_memory(obs, later) and later.flags.c_contiguous
    suite.close()


@pytest.mark.parametrize('space, given, taken', [
    (spaces.Discrete(3, start=5), np.array([2]), 7),
    (spaces.Box(np.array([[-4.0, 0.0], [0.0, 0.0]]), np.array([[4.0, 1.0], [2.0, 10.0]]), dtype=np.float32), np.array([[0.5, -1, 0, 1]]), [[2, 0], [1, 10]]),
    (spaces.Box(0, 10, (2,), np.int64), np.array([[-0.5, 0.99]]), [2, 10])])
def test_action_spaces(space, given, taken):
    suite = make('gym', 'tests.scripted:Spaces-v0', 1, kwargs={'action': space})
    suite.reset(np.ones(1, bool), np.array([0]))
    suite.step(given)
    (action,) = suite.env.envs[0].unwrapped.taken
    assert np.array_equal(action, taken) and space.contains(action)


@pytest.mark.parametrize('name, space, told', [
    ('action', spaces.MultiDiscrete([2, 3]), 'actions are MultiDiscrete, expected Box or Discrete'),
    ('action', spaces.Box(-np.inf, 1, (2,)), 'actions range from -inf to 1.0, expected finite bounds'),
    ('observation', spaces.Dict({'a': spaces.Discrete(2)}), 'observations are Dict, expected Box or Discrete'),
    ('observation', spaces.Tuple([spaces.Discrete(2)]), 'observations are Tuple, expected Box or Discrete')])
def test_other_spaces_get_one_clear_line(name, space, told):
    with pytest.raises(ValueError) as failure:
        make('gym', 'tests.scripted:Spaces-v0', 1, kwargs={name: space})
    assert told in str(failure.value) and '\n' not in str(failure.value) and 'gym/tests.scripted:Spaces-v0' in str(failure.value)


@pytest.mark.parametrize('task, told', [('CartPoel', 'CartPole'), ('HalfCheeta-v5', 'HalfCheetah'), ('Pendulum-v77', 'Pendulum')])
def test_unknown_ids_name_the_nearest(task, told):
    with pytest.raises(ValueError, match=told):
        make('gym', task, 1)


def test_ids_in_any_spelling_and_without_a_version():
    assert Gym.find_task('CartPole') == Gym.find_task('cart_pole') == 'CartPole-v1'
    assert Gym.find_task('cartpole-v0') == 'CartPole-v0' and Gym.find_task('half_cheetah') == 'HalfCheetah-v5'


@pytest.mark.parametrize('options, told', [({'vectorisation': 'sync'}, 'vectorization'), ({'vectorization': 'threads'}, 'sync or async'),
                                           ({'action_repeat': 0}, 'action_repeat=0'), ({'kwargs': {'gravity': 1}}, 'gravity')])
def test_bad_options_are_named(options, told):
    with pytest.raises(ValueError, match=told):
        make('gym', 'CartPole', 1, **options)


def test_a_missing_package_is_told_with_what_to_install(monkeypatch):
    def missing(*_, **__):
        raise gymnasium.error.DependencyNotInstalled('Box2D is not installed,\nyou can install it by run `pip install swig`')
    monkeypatch.setattr(gymnasium, 'make', missing)
    with pytest.raises(ImportError, match=r'^task=gym/CartPole-v1: Box2D is not installed, you can install it by run `pip install swig`$'):
        make('gym', 'CartPole-v1', 1)


def test_held_actions_add_up_their_rewards_and_stop_at_the_end():
    environment = build('tests.scripted:Scripted-v0', 1, action_repeat=3)
    rows = environment.advance(np.array([2]))
    assert rows.reward[0] == 6 and rows.obs[0, 1] == 3 and environment.action_repeat == 3
    rows = environment.advance(np.array([2]))
    assert rows.reward[0] == 4 and rows.terminated[0] and rows.final_obs[0, 1] == 5  # episodes last 5


@pytest.mark.filterwarnings('ignore')  # Gymnasium tells more than one line
@pytest.mark.parametrize('vectorization, kill, told', [
    ('sync', False, 'FloatingPointError: a joint broke'), ('async', False, 'FloatingPointError: a joint broke'), ('async', True, '')])
def test_a_dead_environment_is_told_by_lane_seed_and_action_at_once(vectorization, kill, told):
    seed = episode_seed(0, 2, 1)
    environment = build('tests.scripted:Scripted-v0', 4, vectorization=vectorization, kwargs={'fails_at': 3, 'kill': kill, 'only_seed': seed})
    start = time.monotonic()
    with pytest.raises(EnvError) as failure:
        for step in range(20):
            environment.advance(np.array([0, 0, step % 3, 0]))
    assert step == 8 and time.monotonic() - start < 10
    assert str(failure.value).startswith(f'gym/tests.scripted:Scripted-v0 failed in lane 2, seed {seed}, last action 2: ') and told in str(failure.value)
    environment.close()
    assert time.monotonic() - start < 10


@pytest.mark.filterwarnings('ignore:.*Calling .close. while')
def test_a_lane_that_hangs_does_not_keep_the_run_from_ending():
    """A step that nobody waits for any more, as after Ctrl-C; the simulator listens to nothing."""
    environment = build('tests.scripted:Scripted-v0', 2, vectorization='async', kwargs={'fails_at': 1, 'hang': True, 'only_seed': episode_seed(0, 1, 0)})
    processes = environment.suite.env.processes
    environment.advance(np.zeros(2, np.int64))
    environment.send(torch.zeros(2, dtype=torch.int64))
    start = time.monotonic()
    environment.close()
    assert time.monotonic() - start < 5 and not any(process.is_alive() for process in processes)


@pytest.mark.render
def test_a_video_shows_the_episode():
    environment = build('HalfCheetah-v5', 1, max_steps=8)
    for action in random_actions(environment, 8):
        environment.advance(action)
    (episode,) = environment.pop_episodes()
    frames = list(environment.suite.render_episode(episode.seed, episode.actions))
    assert len(frames) == 9 and all(frame.shape == (480, 480, 3) and frame.dtype == np.uint8 for frame in frames)
    assert (frames[0] != frames[-1]).any() and frames[0].std() > 10


@pytest.mark.filterwarnings('ignore:.*render_mode')
def test_a_video_that_cannot_be_made_says_why():
    environment = build('tests.scripted:Scripted-v0', 1)
    with pytest.raises(RuntimeError, match='gym/tests.scripted:Scripted-v0 cannot be shown: '):
        next(environment.suite.render_episode(0, []))
