import re

import ale_py
import numpy as np
import pytest
from ale_py import roms

from Datasets.Suites import make
from Environment import Environment
from Episodes import Visits
from tests.conftest import lines
from tests.Datasets.test_atari import area

MEMORY = {'montezuma_revenge': 3, 'pitfall': 1}
RUN = np.array([[3, 3, 11], [4, 4, 12]])  # to the right and to the left, with a jump now and then
# From the start of Montezuma's Revenge down to the floor, past the skull, up to the key, and with it out by a door: actions, as <action>x<agent steps>
ESCAPE = '''14x1 16x6 4x1 1x1 2x4 11x2 13x23 8x14 9x8 4x2 17x5 4x9 2x2 4x7 2x13 17x4 9x7 15x1 12x6 17x4 1x3 16x3 13x9 4x8 3x3 16x4 0x9 16x5 4x4 6x6 0x2
          12x1 6x8 14x4 4x2 16x10 2x9 15x5 3x4 6x4 17x1 7x1 16x6 2x10 12x4 10x7 6x7 16x3 11x3 10x4 8x11 0x27 1x1 7x2 1x6 13x7 5x7 2x19 9x3 16x4'''
escape = [int(action) for run in ESCAPE.split() for action, count in [run.split('x')] for _ in range(int(count))]


class Witness:
    """A plain emulator for each lane that does what the engine is told to at the same time, and looks into the memory itself."""

    def __init__(self, suite):
        self.suite, self.rooms = suite, [set() for _ in range(suite.num_envs)]
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.lanes = [ale_py.ALEInterface() for _ in range(suite.num_envs)]
        for ale in self.lanes:
            ale.setFloat('repeat_action_probability', suite.engine['repeat_action_probability'])
            ale.setInt('max_num_frames_per_episode', 0)
        self.reset, self.send, suite.reset, suite.send = suite.reset, suite.send, self.on_reset, self.on_send

    def look(self, lane):
        self.rooms[lane].add(int(self.lanes[lane].getRAM()[MEMORY[self.suite.task]]))

    def on_reset(self, mask, seeds):
        engine, info = self.suite.env, {}
        reset = engine.reset
        engine.reset = lambda **how: info.setdefault('told', reset(**how))
        obs = self.reset(mask, seeds)
        engine.reset = reset
        self.ended = [(set(rooms), ale.getRAM().tolist() if rooms else None) for rooms, ale in zip(self.rooms, self.lanes)]
        for lane, seed in zip(np.flatnonzero(mask), seeds):
            ale = self.lanes[lane]
            if seed >= 0:
                ale.setInt('random_seed', int(seed))
                ale.loadROM(str(roms.get_rom_path(self.suite.task)))
            ale.reset_game()
            for frame in range(info['told'][1]['episode_frame_number'][lane]):
                ale.act(ale_py.Action.FIRE if frame == 0 and self.suite.engine['use_fire_reset'] else ale_py.Action.NOOP)
            self.rooms[lane] = set()
            self.look(lane)
        return obs

    def on_send(self, actions):
        self.send(actions)
        for lane, action in enumerate(actions):
            ale = self.lanes[lane]
            for _ in range(self.suite.action_repeat):
                if not ale.game_over():
                    ale.act(ale.getMinimalActionSet()[action])
            self.look(lane)

    def same_picture(self, frames):
        """Whether lanes of (N, 1, 84, 84) show what these emulators do."""
        return all(abs(frame[0] - area(ale.getScreenGrayscale().reshape(210, 160).astype(float), 84)).max() < 1 for frame, ale in zip(frames, self.lanes))


def played(task, schedule, num_envs, reseed=10_000, **options):
    """Plays with a witness. → environment, episodes, what the witness saw in each, and the whole memory at their ends."""
    environment = Environment(make('atari', task, num_envs, max_pool=False, **options), seed=2)
    environment.suite.reseed_steps = reseed
    witness, episodes, truth = Witness(environment.suite), [], []
    environment.start()
    for step, action in enumerate(schedule):
        rows = environment.advance(action)
        if step % 20 == 0:
            assert witness.same_picture(rows.obs)
        for episode in environment.pop_episodes():
            episodes.append(episode)
            truth.append(witness.ended[episode.lane])
    return environment, episodes, *map(list, zip(*truth))


def memory(environment, episode):
    """Of the emulator that has just played the episode."""
    return environment.suite.rooms.consoles[episode.lane].ale.getRAM().tolist()


@pytest.mark.parametrize('options', [
    {'preset': 'v5'}, {'preset': 'classic', 'fire_reset': True}, {'preset': 'classic', 'action_repeat': 3, 'sticky_actions': 0.5}],
    ids=['v5', 'classic', 'other'])
def test_rooms_are_those_in_the_memory_of_an_emulator_that_played_along(options):
    """Pitfall changes its room at the edge of the screen; running about passes some."""
    rng = np.random.default_rng(5)
    schedule = np.where(rng.random((700, 2)) < 0.8, RUN[[0, 1], rng.integers(0, 3, (700, 2))], rng.integers(0, 18, (700, 2)))
    environment, episodes, truth, memories = played('pitfall', schedule, 2, reseed=400, max_frames=660, **options)
    assert len(episodes) >= 6 and max(map(len, truth)) >= 3 <= len({tuple(sorted(rooms)) for rooms in truth}) >= 3
    assert {len(episode.before) for episode in episodes} >= {0, 1}
    for episode, rooms, ram in zip(episodes, truth, memories):
        assert environment.visited(episode) == {'rooms': rooms} and memory(environment, episode) == ram
    # asked out of order, and by one who has seen nothing
    other = Environment(make('atari', 'pitfall', 2, max_pool=False, max_frames=660, **options), seed=9)
    assert [other.visited(episode) for episode in reversed(episodes)] == [{'rooms': rooms} for rooms in reversed(truth)]


def test_montezuma_from_its_first_room_to_the_next():
    schedule = np.stack([escape, np.random.default_rng(0).integers(0, 18, len(escape))], 1)
    environment, episodes, truth, _ = played('montezuma_revenge', schedule, 2, preset='v5', sticky_actions=0.0, max_frames=4 * len(escape))
    escaped = next(rooms for episode, rooms in zip(episodes, truth) if episode.lane == 0)
    assert len(escape) == 356 and 1 in escaped and len(escaped) == 2, 'the way out of the first room'
    assert [environment.visited(episode)['rooms'] for episode in episodes] == truth
    assert max(episode.score for episode in episodes if episode.lane == 0) >= 400  # a key and a door


def test_a_game_that_ends_by_itself():
    rng = np.random.default_rng(1)
    environment, episodes, truth, memories = played('montezuma_revenge', rng.integers(0, 18, (1500, 1)), 1, preset='v5')
    assert len(episodes) >= 2 and all(rooms == {1} for rooms in truth)
    for episode, rooms, ram in zip(episodes, truth, memories):
        assert environment.visited(episode)['rooms'] == rooms and memory(environment, episode) == ram


def test_only_games_whose_byte_is_known_and_only_where_it_is_wanted():
    assert make('atari', 'pong', 1).visited(0, 0, [0]) == {} == make('atari', 'pitfall', 1, rooms=False).visited(0, 0, [0])
    assert make('atari', 'pitfall', 1, rooms=True).visited(0, 0, [0])['rooms']
    with pytest.raises(ValueError, match=r'^environment\.rooms=true: .*atari/pong.*montezuma_revenge, pitfall$'):
        make('atari', 'pong', 1, rooms=True)


def test_counts_and_union():
    visits, other = Visits(), Visits()
    assert visits.totals() == {} == visits.add({})
    assert visits.add({'rooms': {1, 2}}) == {'rooms': 2} and visits.add({'rooms': {2, 7, 8}}) == {'rooms': 3}
    other.load_state_dict(visits.state_dict())
    assert other.add({'rooms': {1}}) == {'rooms': 1} and other.totals() == {'rooms_total': 4}


def test_rows_tell_rooms_and_all_rooms_ever(graft):
    options = ('task=atari/pitfall', 'Agent=Random', 'environment.preset=v5', 'environment.max_frames=600', 'num_envs=2', 'evaluate_episodes=2',
               'learn_per_steps=0', 'log_per_steps=200', 'save_per_steps=0', 'evaluate_per_steps=600')
    left = graft.run(*options, 'train_steps=1200')
    train, evaluated = left.rows('train'), left.rows('eval')
    assert train[0]['rooms'] == '' == train[0]['rooms_total']  # no game has ended
    totals = [float(row['rooms_total']) for row in train[1:]]
    assert totals == sorted(totals) and totals[-1] > float(train[-1]['rooms']) >= 1
    assert len(evaluated) == 3 and all(float(row['rooms_total']) >= float(row['rooms']) >= 1 for row in evaluated)
    state = left.state()['visits']
    assert len(state['train']['rooms']) == totals[-1] and len(state['eval']['rooms']) == float(evaluated[-1]['rooms_total'])
    quiet = graft.run(*options, 'environment.rooms=false', 'experiment=Quiet', 'train_steps=600')
    assert 'rooms' not in quiet.rows('train')[-1] and quiet.rows('train')[1]['reward'] == train[1]['reward']


def test_an_evaluation_alone_says_what_it_found(graft):
    """Mean, deviation and rooms of a run's weights, and whether the console repeats actions."""
    short = ('task=atari/montezuma_revenge', 'Agent=Random', 'num_envs=1', 'environment.max_frames=200', 'environment.preset=v5')
    graft.run(*short, 'train_steps=40')
    said = graft.main(*lines(*short, 'load=true', 'train_steps=0', 'evaluate_episodes=2')).out
    assert re.search(r'evaluated at step 40: reward 0, reward_std 0, episode_length 50, rooms 1, rooms_total 1, sticky_actions 0.25\n', said), said
