"""What a run relies on of a replay that lies in a folder: exact resume, readers in other processes, refusals, room."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from Datasets import Storage as storage_module
from Datasets.Replay import EmptyReplay, Extra, Replay
from Datasets.Specs import ActionSpec, ObsSpec
from tests.Datasets.world import GAMMA, UID, World, build, pair, specs


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
    assert replay.slack_left == 4 and not replay.slack_used_up(2) and replay.slack_used_up(3)
    for _ in range(3):
        world.step(replay)
    assert replay.slack_left == 1 and replay.slack_used_up()
    world.step(replay)
    build(world.obs_spec, world.action_spec, capacity=20, slack=4, store='map', path=tmp_path).load_state_dict(state)
    replay = build(world.obs_spec, world.action_spec, capacity=20, slack=4, store='map', path=tmp_path)
    for _ in range(5):
        world.step(replay)
    with pytest.raises(ValueError, match='slack'):
        build(world.obs_spec, world.action_spec, capacity=20, slack=4, store='map', path=tmp_path).load_state_dict(state)


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
sys.path.insert(0, {root!r})
from tests.Datasets.world import World, build, specs
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
