import warnings

import ale_py
import numpy as np
import pytest
import torch
from ale_py import roms

from Datasets.Suites import Atari, make
from Environment import EnvError, Environment
from tests.test_environment import same, saved


def rollout(environment, actions):
    rows = [environment.advance(action) for action in actions]
    return [np.stack([vars(row)[name] for row in rows]) for name in ('obs', 'reward', 'terminated', 'truncated', 'first')]


def random_actions(environment, steps, seed=0):
    return np.random.default_rng(seed).integers(0, environment.action_spec.num_actions, (steps, environment.num_envs))


def build(task='breakout', num_envs=2, seed=0, **options):
    environment = Environment(make('atari', task, num_envs, **options), seed=seed)
    environment.start()
    return environment


class Console:
    """An emulator of its own, driven frame by frame by the book: 4 frames an action, the maximum of the last two, luminance, area resize."""

    def __init__(self, task):
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setFloat('repeat_action_probability', 0)
        self.ale.setInt('random_seed', 0)
        self.ale.loadROM(roms.get_rom_path(task))
        self.actions = self.ale.getMinimalActionSet()

    def screen(self):
        return self.ale.getScreenGrayscale().reshape(210, 160).astype(np.float64)

    def step(self, action, skip=4):
        frames, reward = [], 0
        for _ in range(skip):
            reward += self.ale.act(self.actions[action])
            frames.append(self.screen())
        return frames, reward


def area(frame, size):
    """Resize by area: each pixel is the mean of the box that it covers."""
    def weights(source):
        edges = np.arange(size + 1) * source / size
        overlap = np.minimum(edges[1:, None], np.arange(1, source + 1)) - np.maximum(edges[:-1, None], np.arange(source))
        return overlap.clip(0) * size / source
    return weights(210) @ frame @ weights(160).T


@pytest.mark.parametrize('options', [{}, {'max_pool': False, 'screen_size': 64}, {'action_repeat': 2}])
def test_frames_are_those_of_a_plain_emulator(options):
    task = 'space_invaders'  # its shots flicker: they are drawn in every other frame
    environment, console = build(task, 1, noop_max=0, **options), Console(task)
    size = options.get('screen_size', 84)
    assert environment.obs_spec.shape == (1, size, size) and environment.action_spec.num_actions == len(console.actions) == 6
    assert environment.action_repeat == options.get('action_repeat', 4)
    assert abs(environment.frames[0, 0] - area(console.screen(), size)).max() < 1
    total = flicker = 0
    for action in random_actions(environment, 120)[:, 0]:
        rows = environment.advance(np.array([action]))
        frames, reward = console.step(action, environment.action_repeat)
        frame = np.maximum(*frames[-2:]) if options.get('max_pool', True) else frames[-1]
        assert abs(rows.obs[0, 0] - area(frame, size)).max() < 1  # rounding
        assert rows.reward[0] == reward
        total += reward
        flicker += (frames[-1] != frames[-2]).any()
    assert flicker > 20 and (total > 0 or environment.action_repeat == 2)


def test_no_op_starts_are_zero_to_noop_max_frames_by_seed():
    suite = make('atari', 'freeway', 24, noop_max=5)  # its cars move in every frame
    obs = suite.reset(np.ones(24, bool), np.arange(24))
    console, shown = Console('freeway'), []
    for _ in range(7):
        shown.append(area(console.screen(), 84))
        console.ale.act(console.actions[0])
    matches = np.array([[abs(frame[0] - one).max() < 1 for one in shown] for frame in obs])
    assert (matches.sum(1) == 1).all()
    assert set(matches.argmax(1)) == {0, 1, 2, 3, 4, 5}
    suite.close()


def test_two_runs_of_a_seed_are_equal_and_of_two_seeds_are_not():
    runs = [build('breakout', 3, seed, num_threads=threads) for seed, threads in ((1, 1), (1, 2), (2, 2))]
    actions = random_actions(runs[0], 300)
    one, two, other = (rollout(environment, actions) for environment in runs)
    assert all(np.array_equal(*pair) for pair in zip(one, two))
    assert not np.array_equal(one[0], other[0])
    assert one[4].any() and one[0].shape == (300, 3, 1, 84, 84) and one[0].dtype == np.uint8


def test_sticky_actions():
    never, often, again = (build('breakout', 1, noop_max=0, sticky_actions=sticky) for sticky in (0, 0.25, 0.25))
    actions = random_actions(never, 120)
    straight, stuck, repeated = (rollout(environment, actions)[0] for environment in (never, often, again))
    assert np.array_equal(stuck, repeated)
    assert not np.array_equal(straight, stuck)


@pytest.mark.parametrize('train', [True, False])
def test_a_lost_life_never_restarts_the_game(train):
    environment = build('breakout', 1, train=train)
    suite, lives, losses, score = environment.suite, [5], [], 0.0
    for steps, action in enumerate(random_actions(environment, 2000, seed=1), 1):  # noqa: B007 how many it took
        rows = environment.advance(action)
        score += float(rows.reward[0])
        if len(rows.final_lanes):
            break
        if suite.lives[0] < lives[-1] and train:
            losses.append(rows)
            lives.append(int(suite.lives[0]))
        else:
            assert not rows.first[0] and not rows.terminated[0]
    (episode,) = environment.pop_episodes()
    assert episode.length == steps and episode.score == score > 0
    assert rows.terminated[0] and rows.first[0] and not rows.truncated[0]
    if train:
        assert lives == [5, 4, 3, 2, 1]
        assert all(row.terminated[0] and row.first[0] and not row.truncated[0] for row in losses)
        wall = losses[-1].obs[0, 0, 25:40]
        assert (wall != build('breakout', 1).frames[0, 0, 25:40]).any()  # bricks that were hit stay away


def test_the_time_limit_truncates_and_shows_the_true_last_frame():
    limited, endless = build('pong', 1, max_frames=202), build('pong', 1)
    assert limited.suite.reset(np.ones(1, bool), np.array([0])).shape == (1, 1, 84, 84)
    limited.start()
    for step, action in enumerate(random_actions(limited, 51), 1):
        rows, others = limited.advance(action), endless.advance(action)
        assert rows.truncated[0] == (step == 51)  # 202 frames are 51 agent steps of 4
        assert not rows.terminated[0] and not others.truncated[0]
    assert np.array_equal(rows.final_obs, others.obs)
    assert rows.first[0] and limited.pop_episodes()[0].length == 51
    assert not np.array_equal(rows.obs, others.obs)
    assert limited.advance(action).truncated[0] == np.False_


def test_resets_leave_other_lanes_untouched():
    suite = make('atari', 'pong', 3, noop_max=0, max_frames=240)
    everyone, alone = np.ones(3, bool), np.array([False, True, False])
    suite.reset(everyone, np.arange(3))
    first = suite.reset(everyone, np.arange(3)).copy()
    action = np.zeros(3, np.int64)
    for _ in range(40):
        before = suite.step(action).obs
    assert not np.array_equal(before, first)
    after = suite.reset(alone, np.array([7]))
    assert np.array_equal(after[[0, 2]], before[[0, 2]]) and np.array_equal(after[1], first[1])
    step = suite.step(action)
    assert np.array_equal(step.obs[0], step.obs[2]) and not np.array_equal(step.obs[0], step.obs[1])
    for _ in range(19):
        assert not step.truncated.any()
        step = suite.step(action)
    assert step.truncated.tolist() == [True, False, True]  # each lane has a time limit of its own
    suite.close()


def test_the_engine_hands_over_new_memory_with_each_step():
    environment = build('breakout', 2, life_loss=True)
    kept = []
    for action in random_actions(environment, 60):
        transition = environment.suite.step(action)
        kept.append(([*transition, environment.suite.lives], [part.copy() for part in [*transition, environment.suite.lives]]))
    assert all(np.array_equal(*pair) for parts, copies in kept for pair in zip(parts, copies))


@pytest.mark.parametrize('reseed', [150, 10_000])
def test_resume_is_exact_in_the_middle_of_episodes(reseed):
    def fresh():
        environment = Environment(make('atari', 'breakout', 3, sticky_actions=0.25, max_frames=1200), seed=4)
        environment.suite.reseed_steps = reseed
        return environment
    environment, resumed = fresh(), fresh()
    environment.start()
    actions = random_actions(environment, 480)
    rollout(environment, actions[:420])
    state = saved(environment.state_dict())
    assert len({len(lane) for lane in state['actions']}) > 1  # lanes stand at different places
    assert all(bool(lane) == (reseed == 10_000) for lane in state['before']) or reseed == 150
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        resumed.load_state_dict(state)
    for action in actions[420:]:
        assert torch.equal(environment.observe().obs, resumed.observe().obs)
        same(environment.advance(action), resumed.advance(action))
    assert [vars(e)['score'] for e in environment.pop_episodes()] == [e.score for e in resumed.pop_episodes()]


def test_a_video_shows_the_episode_in_colour():
    environment = build('breakout', 1, train=False, sticky_actions=0.25, max_frames=240)
    seen = [environment.frames[0, 0]]
    for action in random_actions(environment, 180):
        rows = environment.advance(action)
        seen.append(rows.final_obs[0, 0] if len(rows.final_lanes) else rows.obs[0, 0])
        if len(rows.final_lanes):
            last, seen = seen, [rows.obs[0, 0]]
    episode = environment.pop_episodes()[-1]
    assert episode.length == 60 and len(episode.before) == 2
    frames = list(environment.suite.render_episode(episode.seed, episode.actions, episode.before))
    assert len(frames) == 61 and all(frame.shape == (210, 160, 3) and frame.dtype == np.uint8 for frame in frames)
    assert (frames[0][..., 0] != frames[0][..., 2]).any()
    luminance = np.array([area(frame @ [0.299, 0.587, 0.114], 84) for frame in frames])
    assert abs(luminance - np.array(last)).max() < 3  # the console's own grey is another rounding of the same colours
    other = list(environment.suite.render_episode(episode.seed + 1, episode.actions, episode.before))
    assert any((frame != another).any() for frame, another in zip(frames, other))


def test_colour_and_other_options():
    environment = build('pong', 2, grayscale=False, frame_stack=2, full_action_space=True, num_threads=1)
    assert environment.obs_spec.shape == (3, 84, 84) and environment.action_spec.num_actions == 18
    step = environment.observe()
    assert step.obs.shape == (2, 6, 84, 84) and not step.obs[:, :3].any()
    picture = step.obs[0, 3:].float().mean((1, 2))
    assert picture[0] > picture[2]  # Pong's court is brown
    with pytest.raises(ValueError, match='0 to 17'):
        environment.advance(np.array([0, 18]))


def test_presets_and_what_wins_over_them():
    classic, v5, mixed = (make('atari', 'pong', 1, preset=preset, **options)
                          for preset, options in ((None, {}), ('v5', {}), ('v5', {'noop_max': 7, 'life_loss': None})))
    protocol = ('repeat_action_probability', 'noop_max', 'maxpool')
    assert [classic.engine[name] for name in protocol] == [0.0, 31, True] and classic.life_loss
    assert [v5.engine[name] for name in protocol] == [0.25, 1, False] and not v5.life_loss
    assert [mixed.engine[name] for name in protocol] == [0.25, 8, False] and not mixed.life_loss
    assert classic.obs_spec.frame_stack == 4 and classic.limit == 27_000


def test_games_in_any_spelling():
    games = Atari.tasks()
    assert len(games) > 100 and {'pong', 'battle_zone', 'montezuma_revenge'} <= set(games)
    for name in ('battlezone', 'BattleZone', 'battle_zone', 'ALE/BattleZone-v5', 'BattleZoneNoFrameskip-v4'):
        assert Atari.find_task(name) == 'battle_zone'
    with pytest.raises(ValueError, match='breakout'):
        Atari.find_task('braekout')


@pytest.mark.parametrize('options, told', [
    ({'sticky_action': 0.25}, 'sticky_actions'), ({'sticky_actions': 1.5}, 'sticky_actions=1.5'), ({'preset': 'v4'}, 'classic or v5'),
    ({'frame_skip': 0}, 'action_repeat=0'), ({'frame_skip': 2, 'action_repeat': 4}, 'one thing'), ({'noop_max': -1}, 'noop_max=-1'),
    ({'max_frames': 0}, 'max_frames=0'), ({'stack_pad': 'mirror'}, 'stack_pad')])
def test_bad_options_are_named(options, told):
    with pytest.raises(ValueError, match=told):
        make('atari', 'pong', 1, **options)


def test_an_engine_that_fails_is_told_in_one_line():
    environment = build('pong', 2)
    environment.close()
    environment.close()
    environment._started = True
    with pytest.raises(EnvError, match=r'^atari/pong failed in one of: lane 0, seed \d+, last action 3; lane 1, seed \d+, last action 4: '):
        environment.advance(np.array([3, 4]))
