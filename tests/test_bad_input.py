"""What a user or a machine can get wrong: one clear line, nothing written, nothing lost."""
import dataclasses
import errno
import multiprocessing
import resource
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
import torch

import Checkpoint
import Session as session_module
from Datasets import Storage
from Datasets.Batch import Batch
from Run import train
from tests.conftest import ROOT, lines
from Utils import NonFinite


class Troubled(gymnasium.Env):
    """Shows random vectors; at step `at` of a lane's life something goes wrong."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,))

    def __init__(self, trouble='', at=30, continuous=False, render_mode=None):
        self.trouble, self.at, self.steps = trouble, at, 0
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,)) if continuous else gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.obs(), {}

    def obs(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def step(self, action):
        self.steps += 1
        self.time += 1
        struck = self.steps == self.at
        if struck and self.trouble == 'raise':
            raise RuntimeError('the arm fell off')
        obs, reward = self.obs(), float(self.np_random.uniform())
        if struck and self.trouble == 'obs':
            obs[1] = np.nan
        if struck and self.trouble == 'reward':
            reward = np.inf
        return obs, reward, False, self.time == 10, {}


gymnasium.register('Troubled-v0', 'tests.test_bad_input:Troubled')


@pytest.fixture
def no_env(monkeypatch):
    """Building an environment fails the test."""
    def made(*args, **options):
        raise AssertionError('an environment was built')

    monkeypatch.setattr(session_module, 'make', made)


def assert_one_line(said, *parts):
    assert said.code == 1, (said.code, said.err)
    assert said.err.count('\n') == 1 and 'Traceback' not in said.err, said.err
    assert said.err.endswith('(debug=true shows the traceback)\n')
    for part in parts:
        assert part in said.err, f'{part!r} is not in {said.err!r}'


# --- the command line

REFUSED = {
    # keys
    'train_stepss=3': ('train_stepss: no such key', 'train_steps'),
    'learn_per_step=3': ('learn_per_steps', 'Hparams/args.yaml'),
    'replay.capcity=3': ('replay.capcity', 'replay.capacity'),
    'seed_step=5': ('seed_steps',),
    'agent.depht=2': ('agent.depht', 'agent.depth', '+agent.depht='),
    'environment.life_los=true': ('environment.life_loss',),
    '+foo=1': ('foo: no such key',),
    '+replay.foo=1': ('replay.foo: no such key',),
    '+train_steps=5': ('leave the + out',),
    '~seed': ('seed was taken out',),
    'replay=5': ('replay=5', 'replay.KEY='),
    'agent=5': ('agent=5',),
    'recipes.encoder.eyes=CNN': ('recipes.encoder.eyes._target_=CNN',),
    '+recipes.encoder.eye.depth=1': ('recipes.encoder.eye.depth: no such part', 'recipes.encoder.eyes'),
    'foo': ('foo: write key=value',),
    'train_steps': ('train_steps: write key=value',),
    'a=b=c': ('cannot read the command line',),
    'seed=1,2': ('-m',),
    # names
    'task=atari/pnog': ('task=atari/pnog: no such task', 'atari/pong'),
    'task=atari/breakuot': ('atari/breakout',),
    'task=gym/CartPol-v1': ('gym/CartPole-v1',),
    'task=dmm/cheetah_run': ("no suite 'dmm'", 'atari, dmc, gym'),
    'task=dmc/cheeta_run': ('dmc/cheetah_run',),
    'task=gym/Pendulum obs=pixels': ('obs=pixels: task=gym/… has no other than obs=state',),
    'task=dmc/cheetah_run environment.obs=state': ('environment.obs=state: write obs=state',),
    'obs=images': ('obs=images: expected one of pixels, state',),
    'encoder=cnn': ('encoder=cnn: expected one of auto, pixel',),
    'task=pong': ("no suite 'pong'",),
    'task=atari': ('which one?', 'atari/'),
    'task=': ('task=',),
    'Agent=Agents.DQNN': ('Agent=Agents.DQNN: no such agent', 'Agents.DQN'),
    'Agent=Rondom': ('Agents.Random',),
    'Agent=null': ('Agent=null: expected a name',),
    'Agent=nowhere.MyAgent': ("no module 'nowhere'",),
    'aux=crul': ('aux=crul: no such aux', 'nearest: curl'),
    'aux=nowhere.MyLoss': ("no module 'nowhere'",),
    'aux=[curl,byool]': ('aux=byool: no such aux', 'byol'),
    'aux=curl aux.curl.wight=2': ('aux.curl.wight', 'aux.curl.weight'),
    'suite=foo': ('suite=foo', 'task='),
    'task_name=foo': ('task=atari/foo: no such task',),
    # types
    'save=1': ('save=1: expected true or false',),
    'offline=yes': ('offline=yes: expected true or false',),
    'seed=true': ('seed=True: expected a whole number',),
    'seed=1.5': ('seed=1.5: expected a whole number',),
    'train_steps=many': ('train_steps=many: expected a whole number',),
    'train_steps=inf': ('train_steps=inf',),
    'lr=fast': ('lr=fast: expected a number',),
    'lr=null': ('lr=None: expected a number',),
    'reward_clip=abc': ('reward_clip=abc: expected a number',),
    'threads=some': ('threads=some: expected a whole number or auto',),
    'Eyes=5': ('Eyes=5: expected the name of a part',),
    'experiment=null': ('experiment=None: expected a name',),
    # ranges and choices
    'train_steps=1e30': ('train_steps=', 'expected less than 2⁵³'),
    'train_steps=-1': ('train_steps=-1: expected 0 or more',),
    'batch_size=0': ('batch_size=0: expected 1 or more',),
    'evaluate_envs=0': ('evaluate_envs=0: expected 1 or more',),
    'discount=1.1': ('discount=1.1: expected a number from 0 to 1',),
    'lr=nan': ('lr=nan',),
    'grad_clip=-1': ('grad_clip=-1: expected a number above 0',),
    'seed=4294967296': ('seed=4294967296',),
    'precision=fp16': ('precision=fp16: expected one of fp32, bf16',),
    'replay.store=disk': ('replay.store=disk: expected one of auto, map, ram, device',),
    'device=gpu': ('device=gpu: expected auto, cpu, cuda or cuda:N',),
    'experiment=..': ('experiment=..',),
    'plotting.plot_agents="a("': ('plotting.plot_agents', 'no regular expression'),
    'plotting.reference=nowhere.csv': ('plotting.reference=nowhere.csv: no such file',),
    # combinations
    'load=true overwrite=true': ('choose one',),
    'offline=true learn_per_steps=0': ('would do nothing',),
    'offline=true replay.load=true': ('choose one',),
    'evaluate_episodes=10 evaluate_envs=3': ('evaluate_episodes=10', 'evaluate_envs=3'),
    # parts: these need torch to be told, and still no environment
    'Eyes=NatureCN': ('NatureCNN',),
    'Eyes=nowhere.MyEyes': ("Eyes=nowhere.MyEyes: no module 'nowhere'".removeprefix('Eyes='),),
    'Eyes=CNN +recipes.encoder.eyes.dephts=3': ('recipes.encoder.eyes.dephts: CNN has no such argument', 'depth'),
    'Eyes=CNN +recipes.encoder.eyes.depth=deep': ('recipes.encoder.eyes.depth=deep: expected a whole number',),
    'Optim=Addam': ('Adam',),
    'Agent=json.JSONDecoder': ('Agent=json.JSONDecoder: expected a subclass of Agents.Agent.Agent',),
    '+agent.critics=2': ('agent.critics: DQN has no such argument', 'num_critics'),
    'agent.depth=two': ('agent.depth=two: expected a whole number',),
    'agent.double=maybe': ('agent.double=maybe: expected true or false',),
    'agent.exploration=foo': ('agent.exploration=foo: expected epsilon, softmax',),
    'agent.target_tau=slow': ('agent.target_tau=slow: expected a number',),
    'agent.epsilon=liner(1.0,0.1,500)': ('agent.epsilon=liner(1.0,0.1,500): expected a number, linear(a,b,n)',),
    'agent.epsilon=linear(1.0,0.1)': ('agent.epsilon=linear(1.0,0.1)',),
    '+environment.frameskip=2': ('environment.frameskip', 'frame_skip'),
    'environment.life_loss=maybe': ('environment.life_loss=maybe: expected true or false',),
    'environment.noop_max=ten': ('environment.noop_max=ten: expected a whole number',),
    'device=cuda:7': ('device=cuda:7',),
    'load=true': ('load=true: no run in Benchmarking/Exp/DQN/atari/pong_1',),
    'load_path=nowhere': ('load_path=nowhere: no checkpoint there',),
    'replay.load=true': ('replay.load=true: no replay at Benchmarking/Exp/DQN/atari/pong_1/replay', 'python Run.py task=atari/pong replay.save=true'),
    'offline=true replay.wait=0': ('offline=true: no replay at Benchmarking/Exp/DQN/atari/pong_1/replay', 'python Run.py task=atari/pong replay.save=true'),
}


@pytest.mark.parametrize('argv', REFUSED)
def test_refused_in_one_line_before_anything_is_built_or_written(graft, no_env, argv):
    said = graft.main(*(argv.split() if '"' not in argv else [argv]))
    assert_one_line(said, *REFUSED[argv])
    assert graft.files() == []


LATER = {  # told by the part itself, once there is an environment to build it for; still before anything is written
    'Eyes=torch.nn.Identity': ('recipes.encoder.eyes=Identity: a part must tell its output_shape',),
    'agent.depth=-1': ('agent.depth=-1: expected 0 or more',),
    'hidden_dim=1e14': ('Agents.DQN does not fit into memory',),
    'task=gym/Pendulum-v1 agent.dueling=true': ('agent.dueling=True: expected false where actions are continuous',),
    'task=atari/pong +recipes.encoder.eyes.width_=1': ('recipes.encoder.eyes.width_: NatureCNN has no such argument', 'width'),
    'Scheduler=StepLR': ('recipes.encoder.scheduler.step_size',),
    'task=atari/pong environment.preset=foo': ('environment.preset', 'classic or v5'),
    'task=atari/pong environment.sticky_actions=2': ('environment.sticky_actions=2',),
    'task=atari/pong Eyes=CNN +recipes.encoder.eyes.stride=40': ('too small',),
    'task=gym/CartPole Eyes=NatureCNN': ('NatureCNN sees images',),
    'task=gym/Blackjack-v1': ('task=gym/Blackjack-v1: observations are Tuple, expected Box or Discrete',),
    'task=gym/CartPole save=false replay.store=map': ('replay.store=map needs a folder',),
    'replay.store=ram train_steps=1e12 replay.capacity=1e12': ('the replay needs', 'GB', 'lower replay.capacity'),
    'replay.store=map train_steps=1e12 replay.capacity=1e12': ('the replay needs', 'GB on the disk', 'lower replay.capacity'),
}


@pytest.mark.parametrize('argv', LATER)
def test_refused_by_a_part_in_one_line_before_anything_is_written(graft, argv):
    assert_one_line(graft.main(*lines(*argv.split())), *LATER[argv])
    assert graft.files() == []


def test_a_space_that_is_neither_box_nor_discrete(graft):
    gymnasium.register('Dictionary-v0', lambda: Troubled())
    graft.monkeypatch.setattr(Troubled, 'observation_space', gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(2)))
    assert_one_line(graft.main(*lines('task=gym/Dictionary-v0')), 'task=gym/Dictionary-v0: observations are Dict, expected Box or Discrete')
    assert graft.files() == []


def test_room_is_looked_for_before_anything_is_allocated(graft, monkeypatch):
    monkeypatch.setattr(Storage, 'free_bytes', lambda where: 1000)
    monkeypatch.setattr(session_module.Replay, '__init__', lambda *args, **options: pytest.fail('a replay was allocated'))
    assert_one_line(graft.main(*lines('replay.store=map')), 'the replay needs 0.00 GB on the disk of Benchmarking/Exp/DQN/gym/CartPole-v1_1/replay')
    assert graft.files() == []


def test_debug_shows_the_traceback(graft):
    said = graft.main('train_stepss=3', 'debug=true')
    assert said.code == 1 and 'Traceback (most recent call last)' in said.err and 'train_stepss: no such key' in said.err


def test_a_defect_of_ours_is_not_dressed_up(graft, monkeypatch):
    monkeypatch.setattr(session_module, 'make', lambda *args, **options: {}['nothing'])
    said = graft.main(*lines())
    assert said.code == 1 and 'Traceback (most recent call last)' in said.err and graft.files() == []


def test_told_at_once(graft):
    """2 s on a quiet machine, where torch alone takes more than 1 (CPU time, as others may be at work). Keys are told before torch is imported."""
    def seconds(*command):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *command], cwd=graft.home, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done

    torch_alone, _ = seconds('-c', 'import torch')
    for wrong, nearest, factor in (('train_stepss=3', 'train_steps', 0.9), ('Eyes=NatureCN', 'NatureCNN', 1.8)):
        took, done = seconds(str(ROOT / 'Run.py'), wrong)
        assert done.returncode == 1 and done.stdout == '' and done.stderr.count('\n') == 1 and nearest in done.stderr
        assert took < factor * torch_alone, (took, torch_alone)
    assert graft.files() == []


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
    (lambda state: state.pop('replay'), 'its checkpoint is not one of this run'),
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


@pytest.mark.render
@pytest.mark.parametrize('backend, message', [('nonsense', 'MUJOCO_GL=nonsense: expected egl or osmesa'),
                                              ('glfw', 'MUJOCO_GL=glfw does not work here; rendering needs OpenGL')])
def test_a_renderer_that_does_not_work_is_one_line(graft, monkeypatch, backend, message):
    monkeypatch.setenv('MUJOCO_GL', backend)
    monkeypatch.delenv('DISPLAY', raising=False)
    said = graft.main(*lines('task=dmc/cheetah_run', 'Agent=Random'))
    assert_one_line(said, message)
    assert graft.files() == []


# --- the machine

def test_a_full_disk_costs_a_checkpoint_and_not_the_run(graft, monkeypatch):
    left, write = graft.left(), Checkpoint.write

    def full(path, state):
        if state['step'] in (20, 40):
            raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        write(path, state)

    monkeypatch.setattr(Checkpoint, 'write', full)
    said = graft.main(*lines('save_per_steps=20', 'train_steps=50'))
    assert said.code == 0, said.err
    for step in (20, 40):
        assert f'checkpoint of step {step} not written: [Errno 28] No space left on device' in said.out and 'the last good one is intact' in said.out
    assert left.state()['step'] == 50 and left.steps('eval') == [0, 20, 40, 50]


def test_a_full_disk_at_the_end_is_an_error_and_the_last_good_one_resumes(graft, monkeypatch):
    left, write = graft.left(), Checkpoint.write
    monkeypatch.setattr(Checkpoint, 'write', lambda path, state: write(path, state) if state['step'] < 60 else full())

    def full():
        raise OSError(errno.ENOSPC, 'No space left on device')

    assert_one_line(graft.main(*lines('save_per_steps=20')), 'No space left on device')
    assert left.state()['step'] == 40
    monkeypatch.setattr(Checkpoint, 'write', write)
    assert graft.main(*lines('save_per_steps=20', 'load=true')).code == 0
    assert left.state()['step'] == 60 and left.steps('train') == [20, 40, 60]


@pytest.mark.filterwarnings('ignore::UserWarning')  # Gymnasium's, with the traceback of its worker
@pytest.mark.parametrize('vectorization', ['sync', 'async'])
def test_a_dead_env_says_where_and_when(graft, vectorization):
    argv = lines('task=gym/Troubled-v0', '+environment.kwargs={trouble:raise}', 'num_envs=2', f'environment.vectorization={vectorization}',
                 'evaluate_per_steps=0', 'train_steps=100', 'agent.epsilon=0', 'explore_steps=0', 'Agent=DQN', 'evaluate_envs=1')
    said = graft.main(*argv)
    assert_one_line(said, 'gym/Troubled-v0 failed in', 'lane 0', 'seed ', 'last action ', 'the arm fell off')


def reproduced(left, session):
    """The loss that the dumped batch gives the dumped agent."""
    dump = Checkpoint.read(left.path / 'nonfinite.pt')
    session.agent.load_state(dump['agent'])
    session.agent.step = dump['step']
    with pytest.raises(NonFinite) as again:
        session.agent.update(Batch(**{field.name: dump['batch'][field.name] for field in dataclasses.fields(Batch) if field.name in dump['batch']}))
    return again.value.loss


@pytest.mark.parametrize('trouble, continuous', [('reward', False), ('obs', False), ('reward', True)])
def test_a_loss_that_is_not_finite_stops_the_run(graft, trouble, continuous):
    """Within one update, with the step and the loss named; agent and batch lie ready, and the last good checkpoint too."""
    options = ('task=gym/Troubled-v0', f'+environment.kwargs={{trouble:{trouble},continuous:{continuous}}}', 'train_steps=200', 'save_per_steps=10',
               'learn_per_steps=1', 'batch_size=64', 'evaluate_per_steps=0', 'evaluate_envs=1')
    left = graft.left(*options)
    graft.monkeypatch.setattr(session_module.Session, 'evaluate', lambda self: None)
    said = graft.main(*lines(*options))
    assert_one_line(said, 'critic_loss is', f'agent and batch are in {left.path / "nonfinite.pt"}', 'the last checkpoint is intact')
    dump = Checkpoint.read(left.path / 'nonfinite.pt')
    assert 30 <= dump['step'] <= 35 and f'at step {dump["step"]}, update {dump["agent"]["update_count"]}' in said.err
    assert dump['loss'] == 'critic_loss'
    good = left.state()
    assert good['step'] == 30 and all(torch.isfinite(weight).all() for weight in good['agent']['weights'].values())
    session = graft.session(*options, 'experiment=Again')
    assert reproduced(left, session) == 'critic_loss'
