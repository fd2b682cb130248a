"""The suite on a small stand-in for gym-super-mario-bros, and on the package itself where it is installed."""
import importlib.util
import sys
import types
import warnings

import numpy as np
import pytest

from Datasets.Suites import Mario, make
from Environment import EnvError, Environment
from tests.conftest import assert_one_line
from tests.test_environment import same, saved

INSTALLED = importlib.util.find_spec('gym_super_mario_bros') is not None
RIGHT, NOTHING, RUN_RIGHT = 1, 0, 3
NOISE = np.random.default_rng(0).integers(0, 256, (11, 240, 256, 4), np.uint8)


class SuperMarioBrosEnv:
    """As the package's: an old Gym, one memory for all screens, bytes of RAM in the info, no step beyond the end. Mario walks into a hole."""

    def __init__(self, rom_mode='vanilla', lost_levels=False, target=None):
        self.made_with, self.target, self.done, self.bytes = (rom_mode, lost_levels, target), target, True, []
        self.memory = np.zeros((240, 256, 4), np.uint8)
        self.screen = self.memory[:, :, ::-1][:, :, 1:]

    def draw(self):
        self.memory[:] = NOISE[self.frames % len(NOISE)]
        self.memory[self.x % 240] = 255

    def reset(self, seed=None, options=None, return_info=None):
        self.done, self.x, self.life, self.frames = False, 0, 2, 0
        self.draw()
        return self.screen

    def step(self, byte):
        if self.done:
            raise ValueError('cannot step in a done environment! call `reset`')
        if byte == 32 and self.x > 40:
            raise FloatingPointError('a pipe broke')
        self.bytes.append(byte)
        speed = (1 if byte & 128 else -1 if byte & 64 else 0) * (2 if byte & 2 else 1)
        self.x, self.frames, fell = self.x + speed, self.frames + 1, self.x > 90
        if fell:
            self.x, self.life = 0, self.life - 1
        self.done = self.life < 0 or bool(self.target and fell)
        self.draw()
        return self.screen, float(-15 if fell else speed), self.done, {'life': np.uint8(self.life % 256), 'x_pos': self.x}

    def close(self):
        if self.done is None:
            raise ValueError('env has already been closed.')
        self.done = None


class SuperMarioBrosRandomStagesEnv:
    """Its screen is that of the stage that a seed has chosen."""

    def __init__(self, rom_mode='vanilla', stages=None):
        self.made_with, self.envs = (rom_mode,), [SuperMarioBrosEnv(rom_mode, target=(world, 1)) for world in range(1, 9)]
        self.close = lambda: [env.close() for env in self.envs]

    screen = property(lambda self: self.env.screen)

    def reset(self, seed=None, options=None, return_info=None):
        self.env = self.envs[np.random.RandomState(seed).randint(8)]
        return self.env.reset(seed)

    def step(self, byte):
        return self.env.step(byte)


def standing_in(monkeypatch):
    module = types.ModuleType('gym_super_mario_bros')
    vars(module).update(SuperMarioBrosEnv=SuperMarioBrosEnv, SuperMarioBrosRandomStagesEnv=SuperMarioBrosRandomStagesEnv)
    monkeypatch.setitem(sys.modules, 'gym_super_mario_bros', module)


@pytest.fixture
def fake(monkeypatch):
    standing_in(monkeypatch)


@pytest.fixture(params=['fake', pytest.param('real', marks=pytest.mark.skipif(not INSTALLED, reason='gym-super-mario-bros is not installed'))])
def package(request, monkeypatch):
    """The stand-in, or the package itself."""
    if request.param == 'fake':
        standing_in(monkeypatch)
    return Mario.import_package()


def build(num_envs=1, task='SuperMarioBros-v0', seed=0, **options):
    environment = Environment(make('mario', task, num_envs, **{'vectorization': 'sync', 'num_threads': 2} | options), seed=seed)
    environment.start()
    return environment


def random_actions(steps, num_envs, seed=0):
    """Mostly to the right, and never down, which breaks the stand-in."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random((steps, num_envs)) < 0.7, RUN_RIGHT, rng.integers(0, 10, (steps, num_envs)))


def weights(source, size):
    """(size, source): the share of each old pixel in the mean that is a new one."""
    edges = np.arange(size + 1) * source / size
    overlap = np.minimum(edges[1:, None], np.arange(1, source + 1)) - np.maximum(edges[:-1, None], np.arange(source))
    return overlap.clip(0) * size / source


@pytest.mark.parametrize('options', [{}, {'grayscale': False, 'screen_size': 50}, {'action_repeat': 3}, {'action_repeat': 1}])
def test_frames_are_those_of_the_package_played_by_hand(package, options):
    """Luminance, area, then the maximum of the last two frames."""
    environment, plain = build(sticky_actions=0, **options), package.SuperMarioBrosEnv()
    size, repeat = options.get('screen_size', 84), options.get('action_repeat', 4)
    assert environment.obs_spec.shape == (1 if options.get('grayscale', True) else 3, size, size) and environment.action_spec.num_actions == 12
    assert environment.obs_spec.frame_stack == 4 and environment.action_repeat == repeat

    def picture(screen):
        planes = [screen @ [0.299, 0.587, 0.114]] if options.get('grayscale', True) else np.moveaxis(screen, -1, 0)
        return np.stack([weights(240, size) @ plane @ weights(256, size).T for plane in planes])
    assert abs(environment.frames[0] - picture(plain.reset())).max() < 0.51
    moved = 0
    for action in random_actions(25, 1)[:, 0]:
        rows, shown, total = environment.advance(np.array([action])), [], 0
        for _ in range(repeat):
            buttons = [128, 64, 32, 16, 2, 1] @ np.array([word in Mario.ACTIONS[action].split() for word in ('right', 'left', 'down', 'up', 'B', 'A')])
            screen, reward, done, _ = plain.step(int(buttons))
            shown.append(picture(screen))
            total += reward
        assert abs(rows.obs[0] - np.max(shown[-2:], 0)).max() < 0.51 and rows.reward[0] == total and not done
        moved += (abs(shown[-1] - shown[0]) > 1).any()
    assert moved > 10 or repeat == 1


def test_the_twelve_actions_are_the_packages_complex_set():
    if not INSTALLED:
        pytest.skip('gym-super-mario-bros is not installed')
    from gym_super_mario_bros.actions import COMPLEX_MOVEMENT
    from nes_py.wrappers import JoypadSpace
    assert [' '.join(buttons).replace('NOOP', '') for buttons in COMPLEX_MOVEMENT] == list(Mario.ACTIONS)
    assert {name: bits for name, bits in JoypadSpace._button_map.items() if name in Mario.GAMEPAD} == Mario.GAMEPAD


def test_ids_in_any_spelling():
    assert Mario.find_task('super_mario_bros') == Mario.find_task('SuperMarioBros') == Mario.find_task('supermariobros-V0') == 'SuperMarioBros-v0'
    assert Mario.find_task('super_mario_bros_1-2') == 'SuperMarioBros-1-2-v0' and Mario.find_task('SuperMarioBros2_v1') == 'SuperMarioBros2-v1'
    assert Mario.find_task('super_mario_bros_random_stages_v3') == 'SuperMarioBrosRandomStages-v3'
    for wrong in ('luigi', 'SuperMarioBros-9-1-v0', 'SuperMarioBros2-v2'):
        with pytest.raises(ValueError, match=f'task=mario/{wrong}: no such task; nearest: mario/SuperMarioBros'):
            Mario.find_task(wrong)


def test_the_table_of_ids_is_the_packages(fake):
    if not INSTALLED:
        pytest.skip('gym-super-mario-bros is not installed')
    sys.modules.pop('gym_super_mario_bros')
    Mario.import_package()
    import gym
    assert sorted(Mario.tasks()) == sorted(name for name in gym.envs.registration.registry if name.startswith('SuperMario'))


@pytest.mark.parametrize('task, made_with', [
    ('SuperMarioBros-v0', ('vanilla', False, None)), ('SuperMarioBros-v3', ('rectangle', False, None)), ('SuperMarioBros2-v1', ('downsample', True, None)),
    ('SuperMarioBros-8-4-v2', ('pixel', False, (8, 4))), ('SuperMarioBrosRandomStages-v1', ('downsample',))])
def test_an_id_is_built_as_the_package_registers_it(fake, task, made_with):
    (lane,) = build(task=task).suite.block.lanes
    assert lane.env.made_with == made_with
    if INSTALLED:
        sys.modules.pop('gym_super_mario_bros')
        Mario.import_package()
        import gym
        spec = gym.envs.registration.registry[task]
        rom_mode, lost_levels, target = (*made_with, False, None)[:3]
        assert spec.kwargs == {'rom_mode': rom_mode} | ({'lost_levels': True} if lost_levels else {}) | ({'target': target} if target else {})
        assert spec.entry_point.endswith(type(lane.env).__name__)


def test_sticky_actions_hold_a_whole_agent_step(fake):
    environment = build(sticky_actions=0.25, max_frames=4 * 5000)
    lane = environment.suite.block.lanes[0]
    actions = np.where(np.arange(4000) % 2, 4, 5)[:, None]  # right A B, A: each differs from the one before
    for action in actions:
        environment.advance(action)
        if environment.pop_episodes():
            break
    bytes_ = np.array(lane.env.bytes[:len(lane.env.bytes) // 4 * 4]).reshape(-1, 4)
    assert (bytes_ == bytes_[:, :1]).all()
    taken = bytes_[:, 0] == np.array(Mario.BYTES)[actions[:len(bytes_), 0]]
    assert len(bytes_) > 60 and 0.5 < taken.mean() < 0.95


@pytest.mark.parametrize('per_frame', [False, True])
def test_sticky_actions_go_on_with_the_action_before_at_their_rate(fake, per_frame):
    lane = build(sticky_actions=0.25, sticky_frames=per_frame).suite.block.lanes[0]
    held, draws = [], []
    for step in range(1500):
        action = 5 if step % 2 else 0  # A, nothing: Mario does not move
        before, at = Mario.BYTES[lane.previous], len(lane.env.bytes)
        lane.step(action)
        taken = lane.env.bytes[at:]
        draws.append(taken[0] == Mario.BYTES[action])
        held.append(len(set(taken)) > 1)
        assert set(taken) <= {before, Mario.BYTES[action]}
    assert any(held) == per_frame
    # the action before is another one in 0.8 of the cases at 0.25 a step: P(held before) = 0.25 · (1 − P)
    assert np.mean(draws) == pytest.approx(0.8 if not per_frame else 0.75, abs=0.04)


def test_a_game_begins_with_no_action_to_go_on_with(fake):
    lane = build(sticky_actions=0.99).suite.block.lanes[0]
    lane.previous = RIGHT
    lane.reset(3)
    at = len(lane.env.bytes)
    lane.step(RIGHT)
    assert lane.env.bytes[at:] == [0] * 4


@pytest.mark.parametrize('train, life_loss', [(True, True), (True, False), (False, True)])
def test_lives_and_the_end_of_a_game(fake, train, life_loss):
    environment, losses, score = build(train=train, life_loss=life_loss, sticky_actions=0), 0, 0.0
    for step in range(1, 200):  # noqa: B007 how many it took
        rows = environment.advance(np.array([RIGHT]))
        score += float(rows.reward[0])
        if len(rows.final_lanes):
            break
        losses += int(rows.terminated[0])
        assert rows.terminated[0] == rows.first[0] and not rows.truncated[0]
    (episode,) = environment.pop_episodes()
    assert losses == (2 if train and life_loss else 0) and rows.terminated[0]
    # 91 frames to the right and one into the hole, three times
    assert episode.length == step == -(-3 * 92 // 4) and episode.score == score == 3 * (91 - 15)


def test_a_single_stage_ends_with_its_life(fake):
    environment = build(task='SuperMarioBros-1-1-v0', sticky_actions=0, life_loss=True, reward_divisor=15)
    ends = [environment.advance(np.array([RIGHT])).terminated[0] for _ in range(23)]
    assert ends == [False] * 22 + [True] and environment.pop_episodes()[0].score == pytest.approx((91 - 15) / 15)


def test_the_time_limit_truncates(fake):
    environment = build(max_frames=30, action_repeat=4)
    ends = [environment.advance(np.array([NOTHING])) for _ in range(16)]
    assert [bool(rows.truncated[0]) for rows in ends] == 2 * ([False] * 7 + [True]) and not any(rows.terminated[0] for rows in ends)


def test_processes_and_lanes_in_turn_are_the_same(package):
    one, two = build(3, seed=5), build(3, seed=5, vectorization='async')
    assert len(two.suite.workers.processes) == 2
    different = 0
    for action in random_actions(40, 3):
        action[:] = action[0]
        rows = one.advance(action)
        same(rows, two.advance(action))
        different += (rows.obs[0] != rows.obs[1]).any()
    assert different  # their sticky actions
    one.close(), two.close()


def test_resume_is_exact_in_the_middle_of_episodes(package):
    options = {'max_frames': 160}
    one, resumed = build(2, seed=1, **options), build(2, seed=7, **options)
    actions = random_actions(75, 2)
    for action in actions[:55]:
        one.advance(action)
    state = saved(one.state_dict())
    assert all(len(lane) for lane in state['actions'])
    with warnings.catch_warnings():
        warnings.simplefilter('error', RuntimeWarning)
        resumed.load_state_dict(state)
    for action in actions[55:]:
        same(one.advance(action), resumed.advance(action))


def test_a_seed_chooses_the_stage(fake):
    def lane_of(environment):
        return [lane.env.envs.index(lane.env.env) for lane in environment.suite.block.lanes]
    one, two, other = (build(5, 'SuperMarioBrosRandomStages-v0', seed) for seed in (1, 1, 2))
    assert lane_of(one) == lane_of(two) != lane_of(other)


def test_a_video_shows_the_episode(package):
    environment = build(max_frames=40)
    for action in random_actions(20, 1):
        environment.advance(action)
    episode = environment.pop_episodes()[-1]
    frames = list(environment.suite.render_episode(episode.seed, list(episode.actions), episode.before))
    assert len(frames) == 11 and all(frame.shape == (240, 256, 3) and frame.dtype == np.uint8 for frame in frames)
    assert (frames[0] != frames[-1]).any() and not np.shares_memory(frames[0], frames[1])


@pytest.mark.parametrize('vectorization', ['sync', 'async'])
def test_a_lane_that_fails_is_told(fake, vectorization):
    environment = build(3, sticky_actions=0, vectorization=vectorization)
    for _ in range(11):
        environment.advance(np.array([NOTHING, RIGHT, NOTHING]))
    with pytest.raises(EnvError, match=r'^mario/SuperMarioBros-v0 failed in lane 1, seed \d+, last action 10: .*a pipe broke$'):
        environment.advance(np.array([10, 10, 10]))
    environment.close(), environment.close()


@pytest.mark.parametrize('options, told', [
    ({'sticky_action': 0.25}, 'sticky_actions'), ({'sticky_actions': 1}, 'sticky_actions=1'), ({'reward_divisor': 0}, 'reward_divisor=0'),
    ({'max_frames': 0}, 'max_frames=0'), ({'vectorization': 'threads'}, 'sync or async'), ({'screen_size': 0}, 'screen_size=0')])
def test_bad_options_are_named(fake, options, told):
    with pytest.raises(ValueError, match=told):
        make('mario', 'SuperMarioBros-v0', 1, **options)


def test_without_the_package_one_line_says_how_to_get_it(graft, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gym_super_mario_bros', None)
    assert_one_line(graft.main('task=mario/super_mario_bros'), 'task=mario/... needs gym-super-mario-bros: pip install gym-super-mario-bros==7.4.0 "numpy<2"')
    assert not graft.files()
    assert 'task=mario/…' in graft.main('--help').out
    assert_one_line(graft.main('task=mario/super_mario_brothers'), 'nearest: mario/SuperMarioBros')


def test_beside_numpy_2_one_line_says_why_not(fake, monkeypatch):
    monkeypatch.setattr(np, '__version__', '2.1.0')
    with pytest.raises(ImportError, match=r'needs a numpy below 2, here is 2\.1\.0: pip install '):
        make('mario', 'SuperMarioBros-v0', 1)


def test_a_run(graft, fake):
    left = graft.run('task=mario/super_mario_bros', 'environment.vectorization=sync', 'environment.max_frames=40', 'image_size=40', 'log_video=true',
                     'environment.reward_divisor=15', '+recipes.encoder.eyes.width=0.125', 'evaluate_episodes=1')
    assert left.path.match('*/mario/SuperMarioBros-v0_1') and len(left.rows('eval')) == 4 and list((left.path / 'videos').iterdir())
    assert [float(row['episode_length']) for row in left.rows('train')] == [10] * 3
