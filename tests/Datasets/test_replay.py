"""The replay against a brute-force reference that keeps whole episodes as python lists, and what a run relies on: resume, readers, refusals."""
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from Datasets import Storage as storage_module
from Datasets.Replay import EmptyReplay, Extra, Replay
from Datasets.Specs import ActionSpec, ObsSpec

GAMMA = 0.9
SHAPES = [((1, 2, 4), torch.uint8), ((3, 2, 2), torch.uint8), ((1, 3, 3), torch.uint8), ((3,), torch.float32), ((4,), torch.float32)]
UID = {'uid': Extra(dtype=torch.int64)}


class World:
    """Random episodes in N lanes, written to a replay and remembered as plain lists. They end terminated or truncated, with a final observation or
    without (a lost life, ProcGen)."""
    def __init__(self, obs_spec, action_spec, num_envs, seed, length=8.0):
        self.obs_spec, self.action_spec, self.num_envs, self.length = obs_spec, action_spec, num_envs, length
        self.rng, self.uid = np.random.default_rng(seed), 0
        self.episodes = [[] for _ in range(num_envs)]  # of each lane: {obs, action, reward, end, final}
        self.rows = [[] for _ in range(num_envs)]  # closed rows of each lane: uid, or None for a final observation
        self.where = {}  # uid -> lane, episode, step

    def frame(self):
        if self.obs_spec.dtype == torch.uint8:
            return self.rng.integers(1, 256, self.obs_spec.shape, dtype=np.uint8)
        return self.rng.standard_normal(self.obs_spec.shape).astype(np.float32)

    def open(self, lane, obs):
        self.episodes[lane].append({'obs': [obs], 'action': [], 'reward': [], 'uid': [], 'end': None, 'final': False})

    def begin(self, replay):
        obs = np.stack([self.frame() for _ in range(self.num_envs)])
        for lane in range(self.num_envs):
            self.open(lane, obs[lane])
        replay.begin(obs)

    def step(self, replay, **extras):
        n = self.num_envs
        if self.action_spec.discrete:
            action = self.rng.integers(0, self.action_spec.num_actions, (n, *self.action_spec.shape))
        else:
            action = self.rng.uniform(-1, 1, (n, *self.action_spec.shape)).astype(np.float32)
        reward = (3 * self.rng.standard_normal(n)).astype(np.float32)
        ends = self.rng.random(n) < 1 / self.length
        terminated, final = ends & (self.rng.random(n) < 0.5), self.rng.random(n) < 0.6
        obs, lanes, finals = [], [], []
        uids = np.arange(self.uid, self.uid + n)
        self.uid += n
        for lane in range(n):
            episode = self.episodes[lane][-1]
            self.where[int(uids[lane])] = lane, len(self.episodes[lane]) - 1, len(episode['action'])
            for name, value in (('action', action), ('reward', reward), ('uid', uids)):
                episode[name].append(value[lane])
            self.rows[lane].append(int(uids[lane]))
            if ends[lane]:
                episode['end'], episode['final'] = 'terminated' if terminated[lane] else 'truncated', bool(final[lane])
                if final[lane]:
                    episode['obs'].append(self.frame())
                    lanes.append(lane)
                    finals.append(episode['obs'][-1])
                    self.rows[lane].append(None)
                self.open(lane, self.frame())
            else:
                episode['obs'].append(self.frame())
            obs.append(self.episodes[lane][-1]['obs'][-1])
        truncated = ends & ~terminated
        if 'uid' in replay.extras:
            extras['uid'] = uids
        finals = np.stack(finals) if finals else None
        replay.add(action, reward, terminated, truncated, np.stack(obs), ends, np.array(lanes, np.int64), finals, **extras)

    def drawable(self, capacity_per_lane):
        return [uid for rows in self.rows for uid in rows[-capacity_per_lane:] if uid is not None]

    def stack(self, frames):
        spec = self.obs_spec
        frames = list(frames[-spec.frame_stack:])
        first = np.zeros_like(frames[0]) if spec.stack_pad == 'zeros' else frames[0]
        return np.concatenate([first] * (spec.frame_stack - len(frames)) + frames, 0)

    def expected(self, uid, nstep, horizon, clip):
        lane, number, t = self.where[uid]
        episode = self.episodes[lane][number]
        rewards = [min(max(r, -clip), clip) if clip is not None else r for r in episode['reward']]
        steps = min(nstep, len(rewards) - t)
        ended = episode['end'] is not None and t + steps == len(rewards)
        alive = not ended or (episode['end'] == 'truncated' and episode['final'])
        frames = list(episode['obs'])
        if len(frames) == len(rewards):  # ended without a final observation: the next episode's first follows
            frames.append(self.episodes[lane][number + 1]['obs'][0])
        length = min(horizon, len(rewards) - t)
        real = [t + k < len(episode['obs']) and k <= length for k in range(horizon + 1)]
        return SimpleNamespace(
            obs=self.stack(frames[:t + 1]), next_obs=self.stack(frames[:t + steps + 1]), action=episode['action'][t],
            reward=sum(GAMMA ** k * float(rewards[t + k]) for k in range(steps)), discount=GAMMA ** steps if alive else 0,
            mask=[float(k < length) for k in range(horizon)], obs_mask=[float(each) for each in real],
            stacks=[self.stack(frames[:t + k + 1]) if real[k] else None for k in range(horizon + 1)],
            actions=[episode['action'][t + k] if k < length else np.zeros_like(episode['action'][t]) for k in range(horizon)],
            rewards=[rewards[t + k] if k < length else 0 for k in range(horizon)])

    def check(self, batch, nstep, horizon=0, clip=None):
        want = [self.expected(uid, nstep, horizon, clip) for uid in batch.extras['uid'].tolist()]

        def equal(got, name, tolerance=0.0):
            values = np.stack([getattr(each, name) for each in want])
            assert got.shape == values.shape and (np.abs(got.numpy() - values) <= tolerance * np.maximum(np.abs(values), 1)).all(), name

        equal(batch.obs, 'obs')
        equal(batch.next_obs, 'next_obs')
        equal(batch.action, 'action')
        equal(batch.reward, 'reward', 1e-6)
        equal(batch.discount, 'discount', 1e-6)
        if horizon:
            equal(batch.sequence.mask, 'mask')
            equal(batch.sequence.obs_mask, 'obs_mask')
            equal(batch.sequence.action, 'actions')
            equal(batch.sequence.reward, 'rewards', 1e-6)
            frame = self.obs_spec.shape[0]
            there = batch.sequence.obs_mask.bool().numpy()
            stacks = batch.sequence.obs.numpy()
            assert (stacks[there] == np.stack([stack for each in want for stack in each.stacks if stack is not None])).all()
            assert not stacks[~there][:, -frame:].any()


def specs(shape=0, stack=1, pad='zeros', discrete=True):
    shape, dtype = SHAPES[shape]
    return ObsSpec(shape, dtype, frame_stack=stack, stack_pad=pad), ActionSpec(num_actions=5) if discrete else ActionSpec((2,))


def build(obs_spec, action_spec, **options):
    options = {'num_envs': 2, 'capacity': 60, 'seed': 0, 'store': 'ram', 'extras': UID, 'discount': GAMMA, **options}
    return Replay(obs_spec, action_spec, **options)


def pair(steps=30, *, stack=2, lanes=2, length=8.0, seed=0, discrete=True, shape=0, pad='zeros', **options):
    """A world and a replay that lived through it."""
    world = World(*specs(shape, stack, pad, discrete), lanes, seed, length)
    replay = build(world.obs_spec, world.action_spec, num_envs=lanes, **options)
    world.begin(replay)
    for _ in range(steps):
        world.step(replay)
    return world, replay


CASES = st.fixed_dictionaries({
    'shape': st.integers(0, len(SHAPES) - 1), 'stack': st.integers(1, 4), 'pad': st.sampled_from(['zeros', 'repeat']), 'discrete': st.booleans(),
    'lanes': st.integers(1, 3), 'rows': st.integers(2, 16), 'window': st.integers(1, 6), 'slack': st.integers(0, 5), 'nstep': st.integers(1, 8),
    'horizon': st.integers(0, 7), 'clip': st.sampled_from([None, 1.0]), 'steps': st.integers(1, 60),
    'length': st.sampled_from([1.5, 4.0, 10.0, 60.0]), 'seed': st.integers(0, 2 ** 32 - 1)})


def check_case(case):
    lanes, nstep, horizon = case['lanes'], case['nstep'], case['horizon']
    world, replay = pair(case['steps'], stack=case['stack'], lanes=lanes, length=case['length'], seed=case['seed'], discrete=case['discrete'],
                         shape=case['shape'], pad=case['pad'], capacity=case['rows'] * lanes, window=case['window'], slack=case['slack'],
                         reward_clip=case['clip'])
    per_lane = max(case['rows'], case['window'])
    stored = Counter(world.drawable(per_lane))
    assert len(replay) == sum(stored.values()) <= max(per_lane * lanes, 1)
    if not stored:
        return
    seen = Counter()
    for batch in replay.epoch(7, nstep, horizon):
        world.check(batch, nstep, horizon, case['clip'])
        seen.update(batch.extras['uid'].tolist())
    assert seen == stored
    batch = replay.sample(5, nstep, horizon)
    world.check(batch, nstep, horizon, case['clip'])
    assert set(batch.extras['uid'].tolist()) <= set(stored)
    batch = replay.gather(batch.indices, 1)
    world.check(batch, 1, 0, case['clip'])
    check_latest(world, replay, min(case['window'], case['steps']), case['clip'])


def check_latest(world, replay, steps, clip=None):
    rollout = replay.latest(steps)
    finals, at = {}, 0
    for lane in range(world.num_envs):
        uids = [uid for uid in world.rows[lane] if uid is not None][-steps:]
        assert rollout.extras['uid'][lane].tolist() == uids
        for t, uid in enumerate(uids):
            _, number, step = world.where[uid]
            episode, want = world.episodes[lane][number], world.expected(uid, 1, 0, clip)
            np.testing.assert_array_equal(rollout.obs[lane, t].numpy(), want.obs)
            np.testing.assert_array_equal(rollout.action[lane, t].numpy(), want.action)
            ended = episode['end'] if step == len(episode['action']) - 1 else None
            assert bool(rollout.terminated[lane, t]) == (ended == 'terminated') and bool(rollout.truncated[lane, t]) == (ended == 'truncated')
            assert bool(rollout.first[lane, t]) == (step == 0)
            assert abs(rollout.discount[lane, t] - want.discount) < 1e-6 and abs(rollout.reward[lane, t] - want.reward) < 1e-6
            if ended == 'truncated' and episode['final']:
                finals[lane * steps + t] = want.next_obs
            if t == steps - 1 and want.discount:
                np.testing.assert_array_equal(rollout.bootstrap_obs[lane].numpy(), want.next_obs)
    assert rollout.final_index.tolist() == sorted(finals)
    for at, index in enumerate(sorted(finals)):
        np.testing.assert_array_equal(rollout.final_obs[at].numpy(), finals[index])


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_arithmetic_equals_the_reference(case):
    check_case(case)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=10_000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_arithmetic_equals_the_reference_in_ten_thousand_cases(case):
    check_case(case)


def test_a_lost_life_keeps_the_stack_of_the_observation_that_follows():
    """Worked by hand: stack 3, life lost after the second step, the game goes on in the next row."""
    obs_spec, action_spec = specs(stack=3)
    replay = build(obs_spec, action_spec, num_envs=1, extras={})
    frames = [np.full((1, 1, 2, 4), value, np.uint8) for value in range(1, 7)]
    off, on, one = np.array([False]), np.array([True]), np.ones(1, np.float32)
    replay.begin(frames[0])
    for t in range(5):
        replay.add(np.array([t]), one * (t + 1), on if t == 1 else off, off, frames[t + 1], on if t == 1 else off)
    assert len(replay) == 5
    batch = next(replay.epoch(5, nstep=3))
    at = {int(action): b for b, action in enumerate(batch.action)}
    stacks = {t: batch.obs[b, :, 0, 0].tolist() for t, b in at.items()}
    assert stacks == {0: [0, 0, 1], 1: [0, 1, 2], 2: [0, 0, 3], 3: [0, 3, 4], 4: [3, 4, 5]}
    assert [round(batch.reward[at[t]].item(), 6) for t in range(5)] == [1 + 0.9 * 2, 2, 3 + 0.9 * 4 + 0.81 * 5, 4 + 0.9 * 5, 5]
    assert [round(batch.discount[at[t]].item(), 6) for t in range(5)] == [0, 0, 0.729, 0.81, 0.9]
    assert batch.next_obs[at[0], :, 0, 0].tolist() == [1, 2, 3]
    assert batch.next_obs[at[3], :, 0, 0].tolist() == [4, 5, 6]


def test_draws_are_uniform_over_stored_transitions_of_uneven_lanes():
    world, replay = pair(200, lanes=3, length=3.0, capacity=90, window=2)
    stored = world.drawable(30)
    counts, draws = Counter(), 400 * len(stored)
    while sum(counts.values()) < draws:
        counts.update(replay.gather(replay.draw(250)).extras['uid'].tolist())
    assert set(counts) == set(stored)
    expected = sum(counts.values()) / len(stored)
    chi2 = sum((counts[uid] - expected) ** 2 / expected for uid in stored)
    freedom = len(stored) - 1
    assert abs(chi2 - freedom) < 4.5 * np.sqrt(2 * freedom)


def test_another_stream_leaves_the_replays_own_untouched():
    _, replay = pair(30)
    _, other = pair(30)
    replay.draw(9, rng=np.random.default_rng(5))
    np.testing.assert_array_equal(replay.draw(9), other.draw(9))


def test_oldest_leave_first_and_capacity_is_never_exceeded():
    world = World(*specs(), 2, 3, 4.0)
    replay = build(world.obs_spec, world.action_spec, capacity=20)
    world.begin(replay)
    for _ in range(60):
        world.step(replay)
        stored = sorted(uid for batch in replay.epoch(64) for uid in batch.extras['uid'].tolist())
        assert stored == sorted(world.drawable(10)) and len(replay) == len(stored) <= 20


def test_epoch_sampler_shows_every_transition_once_and_then_anew():
    world, replay = pair(20, sampler='epoch', capacity=100)
    size = len(replay)
    first = [replay.gather(replay.draw(1)).extras['uid'].item() for _ in range(size)]
    second = replay.gather(replay.draw(size)).extras['uid'].tolist()
    assert sorted(first) == sorted(second) == sorted(world.drawable(50)) and first != second
    across = replay.gather(replay.draw(2 * size + 3)).extras['uid'].tolist()
    assert len(across) == 2 * size + 3 and sorted(across[:size]) == sorted(across[size:2 * size]) == sorted(first)
    _, again = pair(20, sampler='epoch', capacity=100)
    assert again.gather(again.draw(size)).extras['uid'].tolist() == first


def test_epoch_sampler_skips_what_was_written_over_and_takes_in_what_is_new():
    world, replay = pair(30, sampler='epoch', capacity=20)
    replay.draw(3)
    for _ in range(6):
        world.step(replay)
    stored = set(world.drawable(10))
    assert set(replay.gather(replay.draw(60)).extras['uid'].tolist()) == stored
    world.step(replay)


def test_epoch_yields_a_ragged_last_batch():
    _, replay = pair(20)
    sizes = [len(batch.reward) for batch in replay.epoch(7)]
    assert set(sizes[:-1]) == {7} and sizes[-1] == len(replay) % 7


def test_latest_says_when_there_is_too_little():
    _, replay = pair(3)
    with pytest.raises(EmptyReplay, match='latest'):
        replay.latest(4)
    assert replay.latest(3).obs.shape == (2, 3, 2, 2, 4)


def test_columns_that_write_changes():
    extras = {**UID, 'priority': Extra(), 'label': Extra(dtype=torch.int64), 'log_prob': {'shape': (2,), 'mutable': False}}
    world = World(*specs(), 2, 0)
    replay = build(world.obs_spec, world.action_spec, extras=extras, capacity=10)
    world.begin(replay)
    for _ in range(40):
        world.step(replay, priority=np.ones(2, np.float32), label=torch.tensor([3, 4]), log_prob=np.full((2, 2), 0.5))
    batch = replay.sample(6)
    assert set(batch.label.tolist()) <= {3, 4} and 'label' not in batch.extras
    assert batch.extras['priority'].tolist() == [1] * 6 and batch.extras['log_prob'].shape == (6, 2)
    replay.write(batch.indices, priority=batch.extras['uid'].float(), label=7)
    again = replay.gather(batch.indices)
    assert again.extras['priority'].tolist() == batch.extras['uid'].tolist() and again.label.tolist() == [7] * 6
    with pytest.raises(ValueError, match='log_prob'):
        replay.write(batch.indices, log_prob=0)
    with pytest.raises(ValueError, match='obs'):
        replay.write(batch.indices, obs=0)


def test_one_stored_value_per_unroll():
    world = World(*specs(), 3, 1, 3.0)
    replay = build(world.obs_spec, world.action_spec, num_envs=3, capacity=45, window=5, extras={**UID, 'core': Extra((2,), every=5)})
    world.begin(replay)
    for step in range(83):
        core = {'core': step * 10 + np.arange(6).reshape(3, 2)} if step % 5 == 0 else {}
        world.step(replay, **core)
        if step % 5 == 4:
            rollout = replay.latest(5)
            np.testing.assert_array_equal(rollout.extras['core'].numpy(), ((step - 4) * 10 + np.arange(6).reshape(3, 2))[:, None])
    batch = replay.sample(50)
    for uid, core in zip(batch.extras['uid'].tolist(), batch.extras['core'].tolist()):
        step, lane = divmod(uid, 3)
        assert core == [step // 5 * 50 + 2 * lane, step // 5 * 50 + 2 * lane + 1]
    with pytest.raises(ValueError, match='core'):
        for _ in range(5):
            world.step(replay)


@pytest.mark.parametrize('change, message', [
    ({'reward': np.zeros(3, np.float32)}, r'reward: shape \(3,\), expected \(2,\)'),
    ({'obs': np.zeros((2, 1, 2, 4), np.float32)}, 'obs: dtype float32'),
    ({'action': np.zeros((2, 1), np.int64)}, r'action: shape \(2, 1\)'), ({'uid': np.zeros(3)}, 'uid: shape'), ({'other': np.zeros(2)}, 'other'),
    ({'first': np.array([True, False])}, 'lane 0: first=True'), ({'final_lanes': [1], 'final_obs': np.zeros((1, 1, 2, 4), np.uint8)}, 'final_lanes')])
def test_rows_that_do_not_fit_are_refused_by_name(change, message):
    _, replay = pair(2)
    off = np.zeros(2, bool)
    rows = {'action': np.zeros(2, np.int64), 'reward': np.zeros(2, np.float32), 'terminated': off, 'truncated': off,
            'obs': np.zeros((2, 1, 2, 4), np.uint8), 'first': off, 'uid': np.zeros(2, np.int64)}
    before = len(replay)
    with pytest.raises(ValueError, match=message):
        replay.add(**{**rows, **change})
    assert len(replay) == before
    replay.add(**rows)


def test_a_batch_stays_valid_for_the_next_gather():
    world, replay = pair(30)
    batch = replay.sample(8)
    replay.sample(8)
    world.check(batch, 1)


def test_only_rows_of_this_many_bytes_are_allocated():
    spec, action = ObsSpec((1, 84, 84), frame_stack=4), ActionSpec(num_actions=6)
    assert 7.0e9 < Replay.bytes_needed(spec, action, num_envs=16, capacity=1_000_000, slack=2000) < 7.5e9
    replay = Replay(spec, action, num_envs=2, capacity=100, seed=0, store='ram')
    assert replay.bytes == Replay.bytes_needed(spec, action, num_envs=2, capacity=100)


# Keeping

def stores(store, path):
    """'map', 'ram' beside a folder, 'ram' without one, a torch device."""
    return {'map': {'store': 'map', 'path': path}, 'ram': {'store': 'ram', 'path': path}, 'alone': {'store': 'ram'},
            'device': {'store': torch.device('cpu'), 'path': path}}[store]


@pytest.mark.parametrize('sampler', ['uniform', 'epoch'])
@pytest.mark.parametrize('store', ['map', 'ram', 'alone', 'device'])
@pytest.mark.parametrize('steps', [0, 7, 150])
def test_resume_is_exact_although_rows_were_written_after_the_checkpoint(store, sampler, steps, tmp_path):
    extras = {**UID, 'priority': Extra()}
    options = {'num_envs': 2, 'capacity': 40, 'slack': 14, 'window': 3, 'seed': 5, 'extras': extras, 'sampler': sampler, 'discount': GAMMA}

    def live(replay, world, steps):
        seen = []
        for step in range(steps):
            world.step(replay, priority=np.full(2, step, np.float32))
            batch = replay.sample(6, 3, 4)
            replay.write(batch.indices, priority=batch.reward)
            seen.append((batch.indices.tolist(), batch.reward.tolist(), batch.obs.clone(), batch.next_obs.clone(),
                         batch.extras['priority'].tolist()))
        return seen

    world = World(*specs(stack=3), 2, 9, 5.0)
    replay = Replay(world.obs_spec, world.action_spec, **options, **stores(store, tmp_path / 'replay'))
    world.begin(replay)
    live(replay, world, steps)
    replay.sync()
    file = tmp_path / 'state.pt'
    torch.save({'replay': replay.state_dict()}, file)
    rng, uid = world.rng.bit_generator.state, world.uid
    uninterrupted = live(replay, world, 7)  # up to 14 rows a lane
    if store == 'map':
        assert replay.slack_left >= 0

    replay.close()
    resumed = Replay(world.obs_spec, world.action_spec, **options, **stores(store, tmp_path / 'replay'))
    assert resumed.resumable
    resumed.load_state_dict(torch.load(file, weights_only=True)['replay'])
    world.rng.bit_generator.state, world.uid = rng, uid
    for episodes, rows in zip(world.episodes, world.rows):  # the world forgets what it lived through since
        del rows[next((i for i, row in enumerate(rows) if row is not None and row >= uid), len(rows)):]
        while len(episodes) > 1 and episodes[-2]['uid'][-1] >= uid:  # ended since
            episodes.pop()
        kept = sum(row < uid for row in episodes[-1]['uid'])
        for name in ('action', 'reward', 'uid'):
            del episodes[-1][name][kept:]
        del episodes[-1]['obs'][kept + 1:]
        episodes[-1].update(end=None, final=False)
    if steps and sampler == 'uniform':
        world.check(resumed.gather(resumed.draw(60, rng=np.random.default_rng(0)), 3, 4), 3, 4)
    for want, got in zip(uninterrupted, live(resumed, world, 7)):
        assert want[:2] == got[:2] and want[4] == got[4] and torch.equal(want[2], got[2]) and torch.equal(want[3], got[3])
    for batch in resumed.epoch(16, 3, 4):
        world.check(batch, 3, 4)


def test_more_rows_than_the_slack_are_refused_at_resume(tmp_path):
    world, replay = pair(60, capacity=20, slack=4, store='map', path=tmp_path, length=1e9)
    state = replay.state_dict()
    assert replay.slack_left == 4 and not replay.slack_used_up
    for _ in range(3):
        world.step(replay)
    assert replay.slack_left == 1 and replay.slack_used_up
    world.step(replay)
    build(world.obs_spec, world.action_spec, capacity=20, slack=4, store='map', path=tmp_path).load_state_dict(state)
    replay = build(world.obs_spec, world.action_spec, capacity=20, slack=4, store='map', path=tmp_path)
    for _ in range(5):
        world.step(replay)
    with pytest.raises(ValueError, match='slack'):
        build(world.obs_spec, world.action_spec, capacity=20, slack=4, store='map', path=tmp_path).load_state_dict(state)


def test_a_ragged_map_is_noticed(tmp_path):
    world, replay = pair(30, store='map', path=tmp_path)
    state, position = replay.state_dict(), int(replay.draw(1)[0])
    replay.close()
    with open(tmp_path / 'reward.bin', 'r+b') as file:
        file.seek(4 * position)
        file.write(b'\xff' * 4)
    with pytest.raises(ValueError, match='not those of the checkpoint'):
        build(world.obs_spec, world.action_spec, store='map', path=tmp_path).load_state_dict(state)


@pytest.mark.parametrize('first, then', [('map', 'ram'), ('ram', 'map')])
def test_a_folder_is_continued_by_another_kind_of_store_and_run(first, then, tmp_path):
    world, replay = pair(40, store=first, path=tmp_path, capacity=50, length=4.0)
    replay.sync()
    replay.close()
    replay = build(world.obs_spec, world.action_spec, store=then, path=tmp_path, capacity=50)
    assert sorted(uid for batch in replay.epoch(9) for uid in batch.extras['uid'].tolist()) == sorted(world.drawable(25))
    for lane, episodes in enumerate(world.episodes):  # episodes in the middle are cut off: truncated, their open observation is the final one
        if episodes[-1]['uid']:
            episodes[-1].update(end='truncated', final=True)
        else:
            episodes.pop()
        world.rows[lane].append(None)
    world.begin(replay)
    for _ in range(8):
        world.step(replay)
    for batch in replay.epoch(9, 3, 2):
        world.check(batch, 3, 2)


def test_a_first_row_that_was_left_open_is_nobodys_final_observation(tmp_path):
    """An episode truncated without a final observation, then a new run before the next one's first step."""
    world, replay = pair(3, lanes=1, store='map', path=tmp_path, length=1e9)
    on, off = np.array([True]), np.array([False])
    frame = np.ones((1, 1, 2, 4), np.uint8)
    replay.add(np.array([0]), np.ones(1, np.float32), off, on, frame, on, uid=np.array([3]))
    replay.close()
    replay = build(world.obs_spec, world.action_spec, num_envs=1, store='map', path=tmp_path)
    replay.begin(frame)
    assert len(replay) == 4
    for nstep, discounts in ((1, {0: 0.9, 1: 0.9, 2: 0.9, 3: 0}), (2, {0: 0.81, 1: 0.81, 2: 0, 3: 0})):
        batch = next(replay.epoch(9, nstep))
        assert {int(uid): round(float(value), 6) for uid, value in zip(batch.extras['uid'], batch.discount)} == discounts
    assert replay.latest(1).discount.item() == 0


@pytest.mark.parametrize('store', ['map', 'ram'])
def test_a_reader_never_looks_past_what_was_published(store, tmp_path):
    world, writer = pair(1, store='ram', path=tmp_path, capacity=20, window=4, length=1e9)
    for _ in range(40):  # the ring goes round, and its map is brought up to date now and then
        for _ in range(7):
            world.step(writer)
        writer.sync()
        reader = build(world.obs_spec, world.action_spec, store=store, path=tmp_path, mode='read')
        for batch in reader.epoch(5, 4, 3):
            world.check(batch, 4, 3)


READER = '''
import sys, time
sys.path.insert(0, {root!r})
import torch
from Datasets.Replay import EmptyReplay, Replay
from Datasets.Specs import ActionSpec, ObsSpec
while True:
    try:
        replay = Replay(ObsSpec((1, 2, 4), frame_stack=2), ActionSpec(num_actions=5), num_envs=1, capacity=1, seed=0,
                        path={path!r}, mode='read', store={store!r})
        break
    except EmptyReplay:
        print('waiting', flush=True)
        time.sleep(0.05)
for line in sys.stdin:
    try:
        batch = replay.sample(64)
        print(len(replay), int(batch.extras['uid'].max()), int(batch.obs.max()), flush=True)
    except EmptyReplay:
        print('empty', flush=True)
'''


@pytest.mark.parametrize('store', ['map', 'ram'])
def test_a_reader_in_another_process_sees_new_rows(store, tmp_path):
    path, root = tmp_path / 'replay', str(Path(__file__).parents[2])
    code = READER.format(root=root, path=str(path), store=store)
    with subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        def ask():
            reader.stdin.write('\n')
            reader.stdin.flush()
            return reader.stdout.readline().split()
        assert reader.stdout.readline().strip() == 'waiting'  # started before its writer
        world = World(*specs(stack=2), 2, 0)
        replay = build(world.obs_spec, world.action_spec, store='map', path=path, capacity=400)
        reader.stdin.write('\n')
        reader.stdin.flush()
        line = reader.stdout.readline().strip()
        while line == 'waiting':
            line = reader.stdout.readline().strip()
        assert line == 'empty'
        world.begin(replay)
        world.step(replay)
        assert ask()[:2] == ['2', '1']
        for _ in range(500):
            world.step(replay)
        seen = ask()
        assert 250 < int(seen[0]) <= 400 and int(seen[1]) > 800 and int(seen[2]) > 0
        reader.stdin.close()
        reader.wait(10)


@pytest.mark.parametrize('store', ['map', 'ram'])
def test_a_reader_reads_what_the_reference_says_and_writes_nothing(store, tmp_path):
    world = World(*specs(stack=3), 2, 0, 5.0)
    writer = build(world.obs_spec, world.action_spec, store='map', path=tmp_path, capacity=60, window=3)
    world.begin(writer)
    reader = build(world.obs_spec, world.action_spec, store=store, path=tmp_path, mode='read')
    with pytest.raises(EmptyReplay, match='no transitions'):
        reader.draw(1)
    for _ in range(120):
        world.step(writer)
        batch = reader.sample(4, 3, 2)
        world.check(batch, 3, 2)
        assert set(batch.extras['uid'].tolist()) <= set(world.drawable(30))
    for call in (lambda: reader.begin(None), lambda: reader.write([0], uid=1), lambda: world.step(reader)):
        with pytest.raises(ValueError, match='mode=read'):
            call()
    assert len(reader) > 30
    state = reader.state_dict()
    want = reader.draw(5)
    again = build(world.obs_spec, world.action_spec, store=store, path=tmp_path, mode='read')
    again.load_state_dict(state)
    np.testing.assert_array_equal(again.draw(5), want)


def test_a_row_that_is_written_over_while_it_is_read_is_drawn_again(tmp_path):
    world, writer = pair(100, lanes=1, store='map', path=tmp_path, capacity=20, length=1e9)
    reader = build(world.obs_spec, world.action_spec, path=tmp_path, mode='read', store='map')
    draw, calls = reader.draw, []

    def slow_draw(n):
        indices = draw(n)
        if not calls:  # the writer laps the reader between draw and gather
            for _ in range(30):
                world.step(writer)
        calls.append(indices)
        return indices
    reader.draw = slow_draw
    world.check(reader.sample(8), 1)
    assert len(calls) == 2


CHILD = '''
import sys
sys.path[:0] = [{root!r}, {root!r} + '/tests/Datasets']
from test_replay import World, build, specs
world = World(*specs(stack=2), 2, 0)
replay = build(world.obs_spec, world.action_spec, store='map', path={path!r}, capacity=100, slack=1000)
world.begin(replay)
while True:
    world.step(replay)
    print(world.uid, flush=True)
'''


def test_rows_survive_a_kill_and_only_one_process_writes(tmp_path):
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen([sys.executable, '-c', CHILD.format(root=root, path=str(tmp_path))], stdout=subprocess.PIPE, text=True)
    with child:
        for line in child.stdout:
            if int(line) >= 300:
                break
        world = World(*specs(stack=2), 2, 0)
        with pytest.raises(ValueError, match='another process'):
            build(world.obs_spec, world.action_spec, store='map', path=tmp_path, capacity=100, slack=1000)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    replay = build(world.obs_spec, world.action_spec, store='map', path=tmp_path, capacity=100, slack=1000)
    reached = int(replay.storage.published[0])
    world.begin(build(world.obs_spec, world.action_spec, capacity=100))
    spare = build(world.obs_spec, world.action_spec, capacity=100)
    world = World(*specs(stack=2), 2, 0)
    world.begin(spare)
    while spare.cursor[0] < reached:
        world.step(spare)
    assert sorted(uid for batch in replay.epoch(9) for uid in batch.extras['uid'].tolist()) == sorted(world.drawable(50))
    for batch in replay.epoch(9, 2):
        world.check(batch, 2)


@pytest.mark.parametrize('break_it, message', [
    (lambda path: (path / 'layout.json').write_text('{"format": 1, "ri'), 'layout.json is corrupt'),
    (lambda path: (path / 'layout.json').write_text('[]'), 'layout.json is corrupt'),
    (lambda path: (path / 'layout.json').write_text(json.dumps({**json.loads((path / 'layout.json').read_text()), 'format': 99})), 'another version'),
    (lambda path: os.truncate(path / 'obs.bin', 100), 'obs.bin is 100 bytes'), (lambda path: (path / 'action.bin').unlink(), 'action.bin is missing'),
    (lambda path: (path / 'layout.json').unlink(), 'layout.json')])
@pytest.mark.parametrize('mode', ['write', 'read'])
def test_a_damaged_folder_is_refused_by_name_and_left_alone(break_it, message, mode, tmp_path):
    world, replay = pair(10, store='map', path=tmp_path)
    replay.close()
    break_it(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message if mode == 'write' or 'layout.json' != message else 'no replay at'):
        build(world.obs_spec, world.action_spec, store='map', path=tmp_path, mode=mode)
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}


@pytest.mark.parametrize('change, message', [({'num_envs': 3}, 'num_envs is 2 there'), ({'slack': 3}, 'slack'),
                                             ({'capacity': 70}, 'replay.capacity.* is 30 there, 35 here')])
def test_a_folder_of_other_sizes_is_refused(change, message, tmp_path):
    world, replay = pair(10, store='map', path=tmp_path)
    replay.close()
    with pytest.raises(ValueError, match=message):
        build(world.obs_spec, world.action_spec, store='map', path=tmp_path, **change)


@pytest.mark.parametrize('mode', ['write', 'read'])
def test_a_folder_of_another_task_is_refused(mode, tmp_path):
    _, replay = pair(10, store='map', path=tmp_path)
    replay.close()
    with pytest.raises(ValueError, match='num_actions is 5 there, 4 here'):
        build(specs(stack=2)[0], ActionSpec(num_actions=4), store='map', path=tmp_path, mode=mode)
    with pytest.raises(ValueError, match='obs.shape'):
        build(ObsSpec((3, 2, 4), frame_stack=2), ActionSpec(num_actions=5), store='map', path=tmp_path, mode=mode)


def test_an_interrupted_set_up_is_finished_by_the_next(tmp_path):
    world, replay = pair(5, store='map', path=tmp_path)
    replay.close()
    (tmp_path / 'cursors.bin').unlink()  # the last file to be made
    (tmp_path / 'action.bin').unlink()
    with pytest.raises(EmptyReplay):
        build(world.obs_spec, world.action_spec, store='map', path=tmp_path, mode='read')
    replay = build(world.obs_spec, world.action_spec, store='map', path=tmp_path)
    assert len(replay) == 0 and not replay.resumable
    world = World(*specs(stack=2), 2, 0)
    replay = build(world.obs_spec, world.action_spec, store='map', path=tmp_path / 'new')
    world.begin(replay)
    world.step(replay)
    world.check(replay.sample(3), 1)


@pytest.mark.parametrize('store, disk, memory, message', [
    ('map', 1e9, 1e20, r'on the disk of .*lower replay.capacity, or set replay.store=ram$'), ('map', 1e9, 1e9, r'on the disk of .*lower replay.capacity$'),
    ('ram', 1e20, 1e9, r'in memory.*lower replay.capacity, or set replay.store=map$'), ('ram', None, 1e9, r'in memory.*lower replay.capacity$'),
    ('auto', 1e9, 1e9, r'in memory.*lower replay.capacity$')])
def test_what_cannot_fit_is_refused_before_anything_is_allocated(store, disk, memory, message, tmp_path, monkeypatch):
    """The advice names another place only where it would fit."""
    monkeypatch.setattr(storage_module, 'free_bytes', lambda where: disk if isinstance(where, Path) else memory)
    path = tmp_path / 'replay' if disk else None
    with pytest.raises(ValueError, match=message):
        Replay(ObsSpec((3, 84, 84), frame_stack=3), ActionSpec((6,)), num_envs=1, capacity=10 ** 12, seed=0, path=path, store=store)
    assert not list(tmp_path.iterdir())


def test_auto_takes_the_map_where_there_is_room(tmp_path, monkeypatch):
    assert build(*specs(), store='auto', path=tmp_path / 'a').store == 'map'
    assert build(*specs(), store='auto').store == 'ram'
    free = storage_module.free_bytes
    monkeypatch.setattr(storage_module, 'free_bytes', lambda where: 10 if isinstance(where, Path) else free(where))
    replay = build(*specs(), store='auto', path=tmp_path / 'b')
    assert replay.store == 'ram' and replay.path is None and not (tmp_path / 'b').exists()


def test_a_full_disk_is_an_error_and_not_a_dead_process(tmp_path, monkeypatch):
    world, replay = pair(3, store='map', path=tmp_path)
    monkeypatch.setattr(storage_module, 'CHECK_BYTES', 10)
    monkeypatch.setattr(storage_module, 'free_bytes', lambda where: 5)
    with pytest.raises(OSError, match='disk full'):
        world.step(replay)


def test_only_own_files_are_discarded(tmp_path):
    path = tmp_path / 'replay'
    world, replay = pair(5, store='map', path=path)
    (path / 'mine.txt').write_text('kept')
    state = replay.state_dict()
    replay.close()
    stranger = build(world.obs_spec, world.action_spec, store='map', path=path)
    stranger.discard()
    assert (path / 'obs.bin').exists() and (path / 'layout.json').exists()
    resumed = build(world.obs_spec, world.action_spec, store='map', path=path)  # the same run, in a later process
    resumed.load_state_dict(state)
    resumed.discard()
    assert [file.name for file in path.iterdir()] == ['mine.txt']
    world, replay = pair(5, store='map', path=tmp_path / 'other')
    replay.discard()
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize('options, message', [({'sampler': 'newest'}, 'replay.sampler=newest'), ({'store': 'tape'}, 'replay.store=tape'),
                                              ({'store': 'map'}, 'replay.path'), ({'capacity': 0}, 'replay.capacity=0'), ({'mode': 'read'}, 'path'),
                                              ({'extras': {'obs': Extra()}}, "extra 'obs'")])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(*specs(), **options)


def test_drawing_from_nothing_says_what_to_do():
    replay = build(*specs())
    for call in (lambda: replay.draw(1), lambda: replay.latest(1), lambda: next(replay.epoch(1))):
        with pytest.raises(EmptyReplay, match='holds no transitions'):
            call()
    with pytest.raises(ValueError, match='begin'):
        replay.add(*[None] * 6)
