"""Folders that hold something else, checkpoints and replays that are damaged: one clear line, nothing deleted, and what is good goes on."""
import multiprocessing
import time

import pytest
import torch

import Checkpoint
import Session as session_module
from Run import train
from tests.conftest import assert_one_line, lines

# --- folders

def test_a_folder_that_holds_a_run(graft, no_env):
    left = graft.left()
    left.path.mkdir(parents=True)
    (left.path / 'config.yaml').write_text('')
    before = graft.files()
    assert_one_line(graft.main(*lines()), f'{left.path} holds a run: load=true resumes it, overwrite=true replaces it, experiment=NAME starts another')
    assert graft.files() == before


def test_overwriting_replaces_what_a_run_made_and_nothing_else(graft):
    options = ('task=atari/pong', 'train_steps=20', 'replay.save=true', 'log_video=true', 'logger.tensorboard=true')
    left = graft.run(*options)
    ours = {path for path in left.path.rglob('*') if path.is_file()}
    theirs = [left.path / name for name in ('notes.txt', 'checkpoint.best.pt', 'videos/best.mp4', 'tensorboard/notes', 'replay/notes', 'mine/train.csv')]
    for file in theirs:
        file.parent.mkdir(exist_ok=True)
        file.write_text('mine')
    graft.run(*options, 'overwrite=true', 'log_video=false', 'logger.tensorboard=false', 'replay.save=false', 'train_steps=0')
    assert all(file.read_text() == 'mine' for file in theirs)
    assert {path.name for path in ours if path.exists()} == {'.lock', 'checkpoint.pt', 'checkpoint.previous.pt', 'config.yaml', 'eval.csv'}
    assert left.steps('eval') == [0]


def test_a_refused_overwrite_leaves_the_run(graft):
    """Whatever is told late is still told before the old run makes room."""
    left = graft.run('replay.save=true')
    before = {path: path.read_bytes() for path in left.path.rglob('*') if path.is_file()}
    for wrong in ('agent.depth=-1', 'train_steps=1e14', 'Scheduler=StepLR', 'load_path=nowhere', '+environment.kwargs={sutton:3,x:1}'):
        said = graft.main(*lines('overwrite=true', 'replay.capacity=1e14', wrong))
        assert said.code == 1 and said.err.count('\n') == 1, said.err
    assert {path: path.read_bytes() for path in left.path.rglob('*') if path.is_file()} == before


def test_a_run_that_lost_its_config_is_still_a_run(graft):
    left = graft.run('replay.save=true')
    (left.path / 'config.yaml').unlink()
    before = {path: path.read_bytes() for path in left.path.rglob('*') if path.is_file()}
    assert_one_line(graft.main(*lines()), 'holds a run: load=true resumes it')
    assert {path: path.read_bytes() for path in left.path.rglob('*') if path.is_file()} == before
    said = graft.main(*lines('load=true', 'train_steps=80', 'replay.save=true'))
    assert said.code == 0 and 'config.yaml cannot be read' in said.out and left.steps('eval') == [0, 20, 40, 60, 80]


@pytest.mark.parametrize('option', [(), ('overwrite=true',)])
@pytest.mark.parametrize('name', ['checkpoint.pt', 'eval.txt', 'videos/7.mp4'])
def test_files_that_no_run_made_are_left_alone(graft, option, name):
    file = graft.left().path / name
    file.parent.mkdir(parents=True)
    file.write_text('mine')
    said = graft.main(*lines(*option))
    if name == 'checkpoint.pt':
        assert_one_line(said, 'checkpoint.pt is there, and no run made it')
    else:
        assert said.code == 0, said.err
    assert file.read_text() == 'mine'


def test_overwriting_spares_videos_of_others(graft):
    left = graft.run('train_steps=20', 'log_video=true')
    mine = left.path / 'videos' / '7.mp4'
    mine.write_text('mine')
    assert (left.path / 'videos' / '20.mp4').exists()
    graft.run('train_steps=0', 'overwrite=true')
    assert mine.read_text() == 'mine' and not (left.path / 'videos' / '20.mp4').exists()


def test_what_a_killed_start_left_is_in_nobodys_way(graft):
    """A start that was killed before its first checkpoint: the same command, or another, begins anew."""
    session = graft.session()
    session.folder.path.joinpath('config.yaml').unlink()
    session.close()
    left = graft.run('train_steps=40', 'num_envs=2')
    assert left.steps('eval') == [0, 20, 40]


def test_a_replay_that_someone_put_there_is_not_written_over(graft, no_env):
    stored = graft.left().path / 'replay'
    stored.mkdir(parents=True)
    (stored / 'layout.json').write_text('{}')
    for option in ((), ('experiment=Other', f'replay.path={stored}'), ('experiment=Other', f'replay.path={stored}', 'overwrite=true')):
        assert_one_line(graft.main(*lines(*option)), f'{stored} holds a replay: replay.load=true starts from it')
    assert (stored / 'layout.json').read_text() == '{}'


def test_two_processes_in_one_folder(graft):
    """The second is told, whether the first has written its first checkpoint or not."""
    session = graft.session()
    before = graft.files()
    with graft.monkeypatch.context() as patch:
        patch.setattr(session_module, 'make', lambda *args, **options: pytest.fail('an environment was built'))
        for option in ('load=true', 'overwrite=true'):
            assert_one_line(graft.main(*lines(option)), 'is in use by another process')
        (session.path / 'config.yaml').rename(graft.home / 'config.yaml')  # as before its first checkpoint
        assert_one_line(graft.main(*lines()), 'is in use by another process')
        (graft.home / 'config.yaml').rename(session.path / 'config.yaml')
    assert graft.files() == before
    assert train(session) is not None and graft.left().steps('eval') == [0, 20, 40, 60]


def test_a_process_that_died_holds_no_folder(graft):
    child = multiprocessing.get_context('fork').Process(target=lambda: (graft.session().close, None)[1])  # leaves without closing
    child.start()
    child.join()
    assert graft.run('overwrite=true').steps('eval') == [0, 20, 40, 60]


# --- what is stored

def test_nothing_to_load_says_where_and_how(graft, no_env):
    """Also where another replay of the task lies."""
    stored = graft.home / 'Benchmarking/Other/DQN/gym/CartPole-v1_7/replay'
    stored.mkdir(parents=True)
    (stored / 'layout.json').write_text('{}')
    said = graft.main(*lines('offline=true', 'replay.wait=0'))
    assert_one_line(said, 'no replay at Benchmarking/Exp/DQN/gym/CartPole-v1_1/replay; there is replay.path=Benchmarking/Other/DQN/gym/CartPole-v1_7/replay')
    said = graft.main(*lines('replay.load=true', 'replay.path=nowhere'))
    assert_one_line(said, 'no replay at nowhere; there is replay.path=Benchmarking/Other')


def test_waiting_for_a_replay_ends(graft, no_env):
    start = time.perf_counter()
    said = graft.main(*lines('offline=true', 'replay.wait=0.3'))
    assert_one_line(said, 'no replay at')
    assert 0.3 <= time.perf_counter() - start < 5 and 'waiting replay.wait=0.3 s' in said.out


def test_an_offline_run_beside_an_empty_replay_says_so(graft):
    graft.session('replay.save=true')
    said = graft.main(*lines('offline=true', 'replay.wait=0.1'))
    assert_one_line(said, 'the replay at Benchmarking/Exp/DQN/gym/CartPole-v1_1/replay holds no transitions')
    assert not (graft.left().path / 'offline').exists()


def stop_at(session, step):
    """Steps a session as far as `step` and closes it, as if killed there."""
    while session.step < step:
        session.advance()
        session.records()
    session.close()


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(graft):
    whole = graft.run('save_per_steps=20', 'experiment=Whole', 'evaluate_per_steps=0', 'replay.save=true')
    stop_at(graft.session('save_per_steps=20', 'evaluate_per_steps=0', 'replay.save=true'), 45)
    left = graft.left()
    newest = left.path / Checkpoint.NEWEST
    newest.write_bytes(newest.read_bytes()[:-1000])
    said = graft.main(*lines('load=true', 'save_per_steps=20', 'evaluate_per_steps=0', 'replay.save=true'))
    assert said.code == 0, said.err
    assert f'{newest}: truncated or corrupt' in said.out and 'going on from the one before, step 20' in said.out
    assert all(torch.equal(left.weights()[name], weight) for name, weight in whole.weights().items())
    assert [(row['step'], row['critic_loss']) for row in left.rows('train')] == [(row['step'], row['critic_loss']) for row in whole.rows('train')]


class Bomb:
    def __reduce__(self):
        return open, ('boom', 'w')


def test_all_checkpoints_damaged_ends_and_deletes_nothing(graft):
    stop_at(graft.session('save_per_steps=20'), 45)
    path = graft.left().path
    (path / Checkpoint.NEWEST).write_bytes(b'')
    torch.save({'graft': 1, 'step': Bomb()}, path / Checkpoint.PREVIOUS)
    before = {file: file.read_bytes() for file in path.rglob('*') if file.is_file()}
    said = graft.main(*lines('load=true'))
    assert_one_line(said, f'{path / Checkpoint.NEWEST}: ', f'{path / Checkpoint.PREVIOUS}: refused')
    assert {file: file.read_bytes() for file in path.rglob('*') if file.is_file()} == before
    assert not (graft.home / 'boom').exists()


@pytest.mark.parametrize('damage, message', [
    (lambda state: state['agent']['weights'].popitem(), 'the saved weights do not fit'),
    (lambda state: state['processes'][0].pop('replay'), 'its checkpoint is not one of this run'),
    (lambda state: state.update(agent=None), 'its checkpoint is not one of this run')])
def test_a_foreign_checkpoint_is_an_error_and_changes_nothing(graft, damage, message):
    stop_at(graft.session('save_per_steps=20'), 45)
    path = graft.left().path
    state = Checkpoint.read(path / Checkpoint.NEWEST)
    damage(state)
    Checkpoint.write(path / Checkpoint.NEWEST, state)
    (path / Checkpoint.PREVIOUS).unlink()
    before = {file: file.read_bytes() for file in path.glob('*') if file.is_file()}
    assert_one_line(graft.main(*lines('load=true')), message)
    assert {file: file.read_bytes() for file in path.glob('*') if file.is_file()} == before


def test_load_path_takes_no_bomb(graft):
    torch.save({'graft': 1, 'agent': Bomb()}, 'bomb.pt')
    assert_one_line(graft.main(*lines('load_path=bomb.pt')), 'bomb.pt: refused, it holds more than data')
    assert graft.files() == ['bomb.pt']


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


REPLAYS = {
    'no layout': (lambda path: (path / 'layout.json').unlink(), 'no replay at'),
    'torn layout': (lambda path: (path / 'layout.json').write_text('{"ri'), 'layout.json is corrupt'),
    'truncated': (lambda path: (path / 'obs.bin').write_bytes(b'x'), 'obs.bin is 1 bytes, expected'),
    'missing': (lambda path: (path / 'reward.bin').unlink(), 'reward.bin is missing'),
    'foreign': (lambda path: edit(path / 'layout.json', '"num_actions": 2', '"num_actions": 9'), 'num_actions'),
    'a frame': (lambda path: flip(path / 'obs.bin', 16 * 20), 'obs.bin is corrupt: rows'),
    'an action': (lambda path: flip(path / 'action.bin', 8 * 20), 'action.bin is corrupt: rows'),
    'a cursor': (lambda path: flip(path / 'cursors.bin', 0, 128), 'cursors.bin is corrupt'),
    'a sum': (lambda path: flip(path / 'checksums.json', 200), 'checksums.json is corrupt'),
}


def flip(file, at, by=1):
    content = bytearray(file.read_bytes())
    content[at] ^= by
    file.write_bytes(content)


@pytest.mark.parametrize('use', ['offline=true', 'replay.load=true'])
@pytest.mark.parametrize('damage', REPLAYS)
def test_a_damaged_or_foreign_replay_is_named(graft, damage, use):
    graft.run('replay.save=true', 'save=false')
    stored = graft.left().path / 'replay'
    break_it, message = REPLAYS[damage]
    break_it(stored)
    before = {file: file.read_bytes() for file in stored.rglob('*')}
    said = graft.main(*lines(use, 'seed=2', f'replay.path={stored}', 'replay.wait=0'))
    assert_one_line(said, message, str(stored))
    assert {file: file.read_bytes() for file in stored.rglob('*')} == before
    assert not graft.left('seed=2').path.exists()


def test_a_damaged_replay_of_the_run_itself_is_named(graft):
    stop_at(graft.session('save_per_steps=20'), 45)
    (graft.left().path / 'replay/obs.bin').write_bytes(b'x')
    before = graft.files()
    assert_one_line(graft.main(*lines('load=true')), 'replay/obs.bin is 1 bytes')
    assert graft.files() == before


def test_a_flipped_bit_in_the_runs_own_replay_is_named_and_the_run_can_go_on_without_it(graft):
    stop_at(graft.session('save_per_steps=20'), 45)
    stored = graft.left().path / 'replay'
    flip(stored / 'obs.bin', 16 * 20)
    before = {file: file.read_bytes() for file in graft.left().path.rglob('*') if file.is_file()}
    assert_one_line(graft.main(*lines('load=true')), 'replay/obs.bin is corrupt: rows', f'move {stored} away')
    assert {file: file.read_bytes() for file in graft.left().path.rglob('*') if file.is_file()} == before
    stored.rename('away')
    said = graft.main(*lines('load=true'))
    assert said.code == 0 and 'it fills anew, so this is not an exact resume' in said.out and graft.left().state()['step'] == 60
