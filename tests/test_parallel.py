"""Several processes of one run: together they compute what one does, whoever is killed, and however many go on."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

import Checkpoint
import Parallel
from Benchmarking.Recorder import TIME_COLUMNS
from tests import ranks
from tests.runs import ROOT, folder, rows, same, values

TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node')
ENV = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


@pytest.fixture(scope='module')
def told(tmp_path_factory):
    file = tmp_path_factory.mktemp('ranks') / 'told.json'
    done = subprocess.run([*TORCHRUN, '2', '-m', 'tests.ranks', str(file)], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=600)
    assert file.exists(), done.stdout + done.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize('name', ranks.NAMES)
def test_two_processes(name, told):
    assert not told[name], told[name]


# --- whole runs

LINE = ('num_envs=4', 'batch_size=16', 'hidden_dim=16', 'seed_steps=40', 'explore_steps=40', 'learn_per_steps=4', 'train_steps=400', 'log_per_steps=40',
        'evaluate_episodes=2', 'evaluate_per_steps=200', 'save_per_steps=80', 'replay.save=true', 'threads=1', 'env_threads=1', 'logger.progress=false',
        'logger.tensorboard=false', 'plotting.plot=false')
RND = ('Agent=RND', 'seed_steps=0', 'learn_per_steps=80', 'agent.rollout_steps=20', 'explore.rnd.warmup_steps=50')


def command(root, processes, *overrides):
    given = {line.partition('=')[0] for line in overrides}
    line = [one for one in LINE if one.partition('=')[0] not in given]
    start = [*TORCHRUN, str(processes)] if processes > 1 else [sys.executable]
    return [*start, 'Run.py', f'root={root}', 'task=gym/CartPole-v1', *line, *overrides]


def run(root, processes, *overrides):
    return subprocess.run(command(root, processes, *overrides), cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300)


def complete(root, processes, *overrides):
    done = run(root, processes, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def begun(root, processes, until, *overrides):
    """A run that has got so far."""
    process = subprocess.Popen(command(root, processes, *overrides), cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 200
    while not (found := [file for file in root.rglob('train.csv') if len(file.read_text().splitlines()) > until]):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, found[0].parent


def state_of(path):
    state = Checkpoint.read(path / Checkpoint.NEWEST)
    for name in ('time', 'evaluation_time', 'marks'):
        state['logger'].pop(name)
    for process in state['processes']:
        process['replay'] = {key: process['replay'][key] for key in ('cursor', 'rng', 'order')}
    return state


def children_of(process):
    listed = subprocess.run(['pgrep', '-P', str(process.pid)], capture_output=True, text=True).stdout
    return sorted(map(int, listed.split()))


@pytest.mark.parametrize('options', [(), RND], ids=['dqn', 'rnd'])
def test_a_killed_process_ends_the_job_and_what_is_resumed_is_the_undisturbed_run(options, tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    options = (*options, 'train_steps=1600')
    complete(whole, 2, *options)
    process, path = begun(killed, 2, 4, *options)
    os.kill(children_of(process)[-1], signal.SIGKILL)
    said, start = process.communicate(timeout=120)[0], time.monotonic()
    assert process.returncode != 0 and time.monotonic() - start < 60
    assert 'another process of this run has ended' in said and 'load=true goes on from there' in said, said
    assert 'Run.py", line' not in said, 'a traceback of ours'
    assert not subprocess.run(['pgrep', '-f', f'root={killed}'], capture_output=True, text=True).stdout
    complete(killed, 2, *options, 'load=true')
    same(state_of(whole / path.relative_to(killed)), state_of(path))
    timeless = [[{key: value for key, value in row.items() if key not in TIME_COLUMNS} for row in rows(where / 'train.csv')]
                for where in (whole / path.relative_to(killed), path)]
    assert timeless[0] == timeless[1] and int(timeless[0][-1]['step']) == 1600


def test_a_signal_to_torchrun_saves_and_the_run_goes_on(tmp_path):
    process, path = begun(tmp_path, 2, 3, 'train_steps=100000', 'save_per_steps=50000')
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert 'saving and plotting' in said
    stopped = Checkpoint.read(path / Checkpoint.NEWEST)['step']
    assert 120 < stopped < 50000
    complete(tmp_path, 2, 'load=true', f'train_steps={stopped + 80}', 'save_per_steps=50000')
    assert Checkpoint.read(path / Checkpoint.NEWEST)['step'] == stopped + 80


def test_a_signal_to_one_process_ends_what_comes_after_the_last_step_in_both(tmp_path):
    process, path = begun(tmp_path, 2, 8, 'learn_steps_after=1000000', 'evaluate_per_steps=0', 'save_per_steps=400')
    time.sleep(1)
    os.kill(children_of(process)[-1], signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    state = Checkpoint.read(path / Checkpoint.NEWEST)
    assert 'mismatch' not in said and 'Traceback' not in said.split('torch/distributed')[0] and state['step'] == 400 and not state['complete'], said
    assert 0 < state['learn_calls_left'] < 1000000


def test_other_processes_and_other_lanes_at_once_are_refused(tmp_path):
    complete(tmp_path, 2, *RND)
    (path,) = (file.parent for file in tmp_path.rglob('config.yaml'))
    before = {file: file.read_bytes() for file in path.rglob('*.*') if file.is_file()}
    for lanes in (2, 8):
        done = run(tmp_path, 1, *RND, f'num_envs={lanes}', f'learn_per_steps={20 * lanes}', 'load=true', 'train_steps=800')
        assert done.returncode == 1 and f'num_envs={lanes}: the run has 4 lanes' in done.stderr and 'resume with num_envs=4' in done.stderr, done.stderr
    assert before == {file: file.read_bytes() for file in path.rglob('*.*') if file.is_file()}


def test_a_batch_that_nobody_draws_need_not_be_shared_out(tmp_path):
    complete(tmp_path, 2, *RND, 'batch_size=7')
    refused = run(tmp_path, 2, 'Agent=DQN', 'batch_size=7')
    assert refused.returncode != 0 and 'batch_size=7: expected a multiple of 2' in refused.stderr


@pytest.mark.parametrize('before, after', [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on(before, after, tmp_path):
    complete(tmp_path, before, *RND)
    (path,) = (file.parent for file in tmp_path.rglob('config.yaml'))
    first = Checkpoint.read(path / Checkpoint.NEWEST)
    replays = {1: {'replay'}, 2: {'replay-0of2', 'replay-1of2'}}
    assert {each.name for each in path.glob('replay*')} == replays[before]
    kept = torch.cat([process['agent']['lanes']['bonus.filter.filtered'] for process in first['processes']])
    told = complete(tmp_path, after, *RND, 'load=true', 'train_steps=480')
    assert 'another number of processes than before' in told.stdout
    second = Checkpoint.read(path / Checkpoint.NEWEST)
    assert second['step'] == 480 and len(second['processes']) == after
    count = 'bonus.filter.count'
    assert second['agent']['weights'][count] == pytest.approx(first['agent']['weights'][count].item() + 80)
    filtered = torch.cat([process['agent']['lanes']['bonus.filter.filtered'] for process in second['processes']])
    assert (filtered > 0).all() and len(filtered) == 4 and not torch.equal(filtered, kept)
    assert {each.name for each in path.glob('replay*')} == replays[after], 'those of other processes are gone'
    streams = [process['agent']['bonus']['keeps'].tolist() for process in second['processes']]
    assert len({tuple(stream) for stream in streams}) == after, 'each its own'
    lanes = [process['environment']['lanes'] for process in second['processes']]
    assert lanes == ([[0, 1], [2, 3]] if after == 2 else [[0, 1, 2, 3]])
    episodes = sum((process['environment']['episode'].tolist() for process in second['processes']), [])
    before_them = sum((process['environment']['episode'].tolist() for process in first['processes']), [])
    assert all(late >= early for early, late in zip(before_them, episodes)) and episodes != [0] * 4
    assert [int(row['step']) for row in rows(path / 'train.csv')] == list(range(40, 481, 40))


def torchrun_commands():
    """README's, as arguments of torchrun."""
    found = re.findall(r'^\|.*`torchrun (--[^`…]*)` \|$', (ROOT / 'README.md').read_text(), re.MULTILINE)
    return [line.split() for line in found]


@pytest.mark.parametrize('words', torchrun_commands(), ids=' '.join)
def test_torchrun_command_of_the_readme(words, tmp_path):
    """With its flags as they stand, and a small budget; two nodes are two launchers on this machine."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    words = [word.replace('HOST:33333', f'127.0.0.1:{port}') for word in words]
    at, nodes = words.index('Run.py'), 2 if '--nnodes' in words else 1
    flags = [word for word in words[at:] if not word.startswith('num_envs=')]
    small = ['num_envs=4', 'train_steps=16', 'learn_per_steps=8', 'agent.rollout_steps=2', 'agent.minibatches=2', 'explore.rnd.warmup_steps=8', 'hidden_dim=16',
             'environment.max_frames=80', 'evaluate_per_steps=0', 'evaluate_episodes=1', 'threads=1', 'env_threads=1', f'root={tmp_path}', 'device=cpu',
             'plotting.plot=false', 'logger.progress=false', 'logger.tensorboard=false', 'log_per_steps=8']
    launchers = [subprocess.Popen([*TORCHRUN[:3], *words[:at], *flags, *small], cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                 for _ in range(nodes)]
    said = [launcher.communicate(timeout=280)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0] * nodes, said
    (path,) = (file.parent for file in tmp_path.rglob('config.yaml'))
    assert len(Checkpoint.read(path / Checkpoint.NEWEST)['processes']) == 2 * nodes


def test_readme_has_the_commands_of_several_processes():
    assert len(torchrun_commands()) == 2


@pytest.mark.parametrize('options, message', [
    (('num_envs=3',), 'num_envs=3: expected a multiple of 2, the number of processes'), (('batch_size=15',), 'batch_size=15: expected a multiple of 2'),
    (('device=cuda:1',), 'device=cuda:1: 2 processes take a GPU each'), (('learn_per_stepz=3',), 'learn_per_stepz')], ids=str)
def test_a_wrong_value_is_told_once_and_leaves_nothing(options, message, tmp_path):
    done = run(tmp_path, 2, *options)
    assert done.returncode != 0 and (done.stdout + done.stderr).count(message) == 1, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_a_run_is_told_once(tmp_path):
    complete(tmp_path, 1)
    done = run(tmp_path, 2)
    assert done.returncode != 0 and (done.stdout + done.stderr).count('holds a run') == 1
    (path,) = (file.parent for file in tmp_path.rglob('config.yaml'))
    assert Checkpoint.read(path / Checkpoint.NEWEST)['step'] == 400


def test_a_gpu_each_on_a_machine_with_several(monkeypatch):
    """parallel=true starts the same command under torchrun."""
    import Run
    started = []
    monkeypatch.setattr(os, 'execv', lambda path, line: started.append(line))
    for gpus in (0, 1, 4):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda gpus=gpus: gpus)
        Parallel.spread(['task=gym/CartPole-v1', 'parallel=true'])
    assert len(started) == 1 and started[0][-2:] == ['task=gym/CartPole-v1', 'parallel=true']
    assert '--nproc_per_node=4' in started[0] and started[0][-3].endswith('Run.py') and Run.__file__ == started[0][-3]


def test_values_are_those_of_one_process_without_torchrun(tmp_path):
    assert Parallel.world_size == 1 and list(Parallel.lanes(5)) == [0, 1, 2, 3, 4] and Parallel.share(7, 'x') == 7
    assert folder(values(tmp_path, 'gym/CartPole-v1')).name == 'CartPole-v1_1'


@pytest.mark.parametrize('options, message', [(('learn_per_stepz=3',), 'learn_per_stepz'), (('num_envs=3',), 'num_envs=3: expected a multiple of 2')], ids=str)
def test_a_process_that_is_quicker_to_find_it_leaves_the_telling_to_the_first(options, message, tmp_path):
    """The first is held up; torchrun, which ends all processes when one ends, must not end it before it has spoken."""
    late = tmp_path / 'late.py'
    late.write_text('import os, sys, time\nsys.path.insert(0, os.getcwd())\nimport Run\ntold = Run.tell\n'
                    'def tell(*args, **kwargs):\n    time.sleep(0 if int(os.environ["RANK"]) else 3)\n    told(*args, **kwargs)\n'
                    'Run.tell = tell\nRun.main()\n')
    line = [str(late) if word == 'Run.py' else word for word in command(tmp_path, 2, *options)]
    done = subprocess.run(line, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and (done.stdout + done.stderr).count(message) == 1, done.stdout + done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ['late.py']


def test_what_another_process_alone_finds_is_told_by_it(monkeypatch, capsys):
    import Run
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setattr(Run, 'GRACE', 0)
    monkeypatch.setattr(sys, 'argv', ['Run.py', 'learn_per_stepz=3'])
    with pytest.raises(SystemExit):
        Run.main()
    assert capsys.readouterr().err.count('learn_per_stepz: no such key') == 1
