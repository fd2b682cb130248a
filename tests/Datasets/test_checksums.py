"""Every byte of a stored replay that can be drawn is one whose change is noticed, and the file is named."""
import time
import zlib

import numpy as np
import pytest
import torch

from Datasets import Checksums as checksums_module
from Datasets.Gather import LAST
from Datasets.Replay import Extra
from tests.Datasets.world import UID, build, pair

FIXED = {**UID, 'note': Extra((2,), torch.float32, mutable=False), 'memory': Extra((3,), torch.float32, every=4, mutable=False)}
OPTIONS = {'extras': FIXED, 'capacity': 400, 'slack': 64, 'window': 3, 'stack': 3}


def lived(path, steps, parts=3, **options):
    """A replay in a folder with `parts` checkpoints, and the state of the last; `note` and `memory` are columns that only `add` writes."""
    world, replay = pair(0, path=path, **{**OPTIONS, **options})
    rng = np.random.default_rng(1)
    for _ in range(parts):
        for _ in range(steps // parts):
            world.step(replay, note=rng.random((2, 2), np.float32), memory=rng.random((2, 3), np.float32))
        state = replay.state_dict()
    return world, replay, state


def flip(file, at, by=1):
    with open(file, 'r+b') as handle:
        handle.seek(at)
        byte = handle.read(1)[0]
        handle.seek(at)
        handle.write(bytes([byte ^ by]))


def again(world, path, **options):
    options = {key: value for key, value in {**OPTIONS, **options}.items() if key != 'stack'}
    return build(world.obs_spec, world.action_spec, path=path, **options)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(checksums_module, 'PAUSE', 0)


@pytest.mark.parametrize('steps', [30, 900])
@pytest.mark.parametrize('store', ['map', 'ram'])
def test_a_flipped_bit_anywhere_in_what_can_be_drawn_names_its_file(store, steps, tmp_path):
    """Rows of the whole ring, first and last ones, frames behind the oldest stack, both copies of a row that lies twice."""
    world, replay, state = lived(tmp_path, steps, store=store)
    ring, cursor, rng = replay.ring, replay.cursor.copy(), np.random.default_rng(0)
    at = ring.positions(np.array(0), np.arange(max(0, int(cursor[0]) - ring.rows), int(cursor[0])))
    unrolls = replay.time[at[(replay.meta[at] & LAST) == 0]] // 4
    replay.close()
    resumed = again(world, tmp_path, store=store)  # the flips below are all that is wrong with the folder
    resumed.load_state_dict(state)
    resumed.close()
    assert len(again(world, tmp_path, store=store, mode='read')) > 20
    cases = []
    for name, size in (('obs', 8), ('action', 8), ('reward', 4), ('meta', 4), ('note', 8), ('time', 8)):
        for lane in (0, 1):
            oldest = max(int(cursor[lane]) - ring.rows - (ring.pad if name == 'obs' else 0), 0)
            rows = [oldest, int(cursor[lane]) - 1, *rng.integers(oldest, cursor[lane], 6)] + [int(cursor[lane])] * (name == 'obs')
            for row in rows:
                at = ring.positions(np.array([lane]), np.array([row]))
                cases.append((name, int(at[0]) * size + int(rng.integers(size))))
                twins = ring.twins(at)
                if twins is not None and name in ('obs', 'reward', 'meta') and row < cursor[lane]:
                    cases.append((name, int(twins[0][0]) * size + int(rng.integers(size))))
    cases += [('memory', int(unroll) % state['layout']['columns']['memory']['rows'] * 12 + 5) for unroll in (unrolls.min(), unrolls.max())]
    assert steps < 100 or any(case[0] == 'obs' and case[1] >= 8 * ring.length for case in cases), 'a second copy was among them'
    for name, at in cases:
        flip(tmp_path / f'{name}.bin', at)
        with pytest.raises(ValueError, match=rf'{name}\.bin is corrupt: rows \d+ to \d+ of lane [01]'):
            reader = again(world, tmp_path, store=store, mode='read', verify=False)
            reader.verify(state)
        with pytest.raises(ValueError, match=rf'{name}\.bin is corrupt'):
            again(world, tmp_path, store=store, mode='read')
        flip(tmp_path / f'{name}.bin', at)
    again(world, tmp_path, store=store).load_state_dict(state)


@pytest.mark.parametrize('steps', [100, 437, 900])
def test_without_slack_every_row_is_looked_after_too(steps, tmp_path):
    """A run without checkpoints sums once, when it ends: a block of which the first rows are gone begins behind them."""
    options = {'capacity': 3000, 'slack': 0, 'window': 1}
    world, replay = pair(steps * 4, path=tmp_path, store='map', length=1e9, **options)
    replay.sync()
    assert replay.checksums.parts['obs'].block >= 5
    oldest = np.maximum(replay.cursor - replay.ring.rows, 0)
    replay.close()
    for lane in (0, 1):
        for row in (*range(int(oldest[lane]), int(oldest[lane]) + 12), int(replay.cursor[lane]) - 1):
            at = int(replay.ring.positions(np.array(lane), np.array(row))) * 8
            flip(tmp_path / 'obs.bin', at)
            with pytest.raises(ValueError, match=rf'obs\.bin is corrupt: rows .* of lane {lane}'):
                build(world.obs_spec, world.action_spec, path=tmp_path, mode='read', **options)
            flip(tmp_path / 'obs.bin', at)
    build(world.obs_spec, world.action_spec, path=tmp_path, mode='read', **options)


def test_a_resumed_replay_refuses_what_is_corrupt_and_writes_nothing(tmp_path):
    world, replay, state = lived(tmp_path, 60, store='map')
    replay.close()
    flip(tmp_path / 'obs.bin', int(replay.ring.positions(np.array(1), np.array(20))) * 8)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r'obs\.bin is corrupt: rows .* of lane 1 .*move .* away and go on with a replay that fills anew'):
        again(world, tmp_path, store='map', verify=False).load_state_dict(state)
    with pytest.raises(ValueError, match=r'obs\.bin is corrupt'):
        again(world, tmp_path, store='map')
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}


@pytest.mark.parametrize('which', ['newest', 'before'])
def test_rows_written_after_the_checkpoint_are_no_damage(which, tmp_path):
    """The ring went on to the last row that the slack allows; the oldest row that can be drawn is still looked after."""
    world, replay = pair(700, path=tmp_path, store='map', capacity=400, slack=64, window=3, length=1e9)
    states = [replay.state_dict()]
    for steps in (30, 33):
        for _ in range(steps):
            world.step(replay)
        states.append(replay.state_dict()) if steps == 30 else None
    replay.close()
    state = states[which == 'newest']
    build(world.obs_spec, world.action_spec, path=tmp_path, store='map', capacity=400, slack=64, window=3, mode='read').verify(state)
    cursor, ring = np.array(state['cursor']), replay.ring
    oldest = ring.positions(np.arange(2), ring.needed(cursor) + ring.window)
    flip(tmp_path / 'obs.bin', int(oldest[1]) * 8 + 3)
    with pytest.raises(ValueError, match=r'obs\.bin is corrupt'):
        build(world.obs_spec, world.action_spec, path=tmp_path, store='map', capacity=400, slack=64, window=3, verify=False).load_state_dict(state)


@pytest.mark.parametrize('lane, byte, by', [(0, 0, 1), (1, 0, 64), (0, 1, 1), (1, 2, 16), (0, 5, 1), (1, 7, 128), (0, 7, 1)])
@pytest.mark.parametrize('steps', [45, 900])
def test_a_flipped_cursor_is_noticed(steps, lane, byte, by, tmp_path):
    world, replay, state = lived(tmp_path, steps, store='map')
    cursor = replay.cursor.copy()
    replay.close()
    flip(tmp_path / 'cursors.bin', 8 * lane + byte, by)
    now = np.fromfile(tmp_path / 'cursors.bin', np.int64)
    assert now[lane] != cursor[lane]
    with pytest.raises(ValueError, match=rf'cursors\.bin is corrupt: it says that lane {lane} holds rows up to {now[lane]}'):
        again(world, tmp_path, store='map', mode='read')
    if now[lane] < cursor[lane] or now[lane] > cursor[lane] + 64:  # a resumed run knows better, and needs only know that nothing is lost
        with pytest.raises(ValueError, match=r'cursors\.bin says that rows up to'):
            again(world, tmp_path, store='map', verify=False).load_state_dict(state)


def test_the_checksums_themselves_are_looked_after(tmp_path):
    world, replay, state = lived(tmp_path, 60, store='map')
    replay.close()
    for damage in (lambda file: flip(file, 300), lambda file: file.write_bytes(b''), lambda file: file.write_text('1\n[]\n')):
        good = (tmp_path / 'checksums.json').read_bytes()
        damage(tmp_path / 'checksums.json')
        with pytest.raises(ValueError, match=r'checksums\.json is corrupt'):
            again(world, tmp_path, store='map', mode='read')
        (tmp_path / 'checksums.json').write_bytes(good)
    (tmp_path / 'checksums.json').write_bytes(b'')
    again(world, tmp_path, store='map', verify=False).load_state_dict(state)  # the checkpoint has its own, and mends the folder
    assert len(again(world, tmp_path, store='map', mode='read')) > 20


def test_sums_are_plain_crc32_of_the_rows(tmp_path):
    """One block, computed by hand from the file's bytes."""
    world, replay, state = lived(tmp_path, 60, store='map', capacity=3000, slack=0)
    part = replay.checksums.parts['reward']
    ring, raw = replay.ring, np.fromfile(tmp_path / 'reward.bin', np.float32)
    size = part.block
    assert size > 1 and (part.stop == replay.cursor - 1).all() and not part.start.any()
    for lane in (0, 1):
        for block in range(int(part.stop[lane]) // size):
            rows = raw[lane * ring.physical + ring.pad + size * block:][:size]
            assert part.sums[lane, block] == zlib.crc32(rows.tobytes())


def test_a_reader_is_not_misled_by_a_writer_at_work(tmp_path):
    """Small rings that go round many times while readers look; some checkpoints, and a run that goes back to one of them."""
    world, replay = pair(5, path=tmp_path, store='map', capacity=80, slack=20)
    states = []
    for turn in range(60):
        for _ in range(7):
            world.step(replay)
            build(world.obs_spec, world.action_spec, path=tmp_path, mode='read')
        if replay.slack_used_up() or turn % 5 == 0:
            states.append(replay.state_dict())
            build(world.obs_spec, world.action_spec, path=tmp_path, mode='read')
    assert len(states) > 10 and replay.cursor[0] > 5 * replay.ring.length


def test_every_row_is_summed_once(tmp_path, monkeypatch):
    """A checkpoint costs what was written since the last one, not what is stored."""
    summed, crc = [], checksums_module.Part.crc
    monkeypatch.setattr(checksums_module.Part, 'crc', lambda self, lane, first, stop, value=0:
                        summed.append(stop - first) or crc(self, lane, first, stop, value))
    world, replay = pair(2000, path=tmp_path, store='map', capacity=6000, length=1e9)
    replay.state_dict()
    whole = sum(summed)
    summed.clear()
    for _ in range(20):
        world.step(replay)
    replay.state_dict()
    columns = len(replay.checksums.parts)
    assert whole >= 2 * 1999 * columns and sum(summed) <= 2 * columns * (20 + 2)
    begun = time.perf_counter()
    replay.checksums.verify(replay.cursor, '')
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize('store', ['map', 'ram'])
def test_a_run_that_is_killed_and_resumed_again_and_again_finds_no_damage_that_is_none(store, tmp_path):
    """Each time it goes on a little less far: what an earlier life wrote over stays written over."""
    options = {'capacity': 200, 'slack': 40, 'window': 2}
    world, replay = pair(300, path=tmp_path, store=store, length=1e9, **options)
    state = replay.state_dict()
    rng, uid = world.rng.bit_generator.state, world.uid
    for steps in (38, 20, 5, 0, 12):
        for _ in range(steps):
            world.step(replay)
        if store == 'ram':  # a checkpoint that could not be written
            replay.sync()
        replay.close()
        again = build(world.obs_spec, world.action_spec, path=tmp_path, store=store, mode='read', **options)
        again.verify(state)
        replay = build(world.obs_spec, world.action_spec, path=tmp_path, store=store, **options)
        replay.load_state_dict(state)
        world.rng.bit_generator.state, world.uid = rng, uid
    flip(tmp_path / 'obs.bin', int(replay.ring.positions(np.array(1), replay.cursor[1] - 90)) * 8)
    with pytest.raises(ValueError, match=r'obs\.bin is corrupt'):
        again.verify(state)
