"""Ctrl-C and SIGTERM: a run saves, plots and leaves within seconds, and goes on later as if nothing had been."""
import os
import signal
import subprocess
import sys
import time

import pytest

import Checkpoint
from tests.runs import ROOT, Shot, complete, folder, left, resume, same, start, steps, values

SECONDS = 5  # CPU seconds from the signal to the end, which a busy machine does not lengthen

# where the signal falls: task, options, call, inside which function, at its which entry
PLACES = {
    'acting': ('gym/CartPole-v1', ('num_envs=4', 'plotting.plot=true'), Shot(5, 'Session.advance', 55)),
    'remembering': ('gym/Pendulum-v1', ('replay.sampler=epoch',), Shot(9, 'Replay.add', 130)),
    'learning': ('gym/CartPole-v1', (), Shot(40, 'Session.learn', 152)),
    'saving': ('gym/Pendulum-v1', ('replay.store=ram',), Shot(150, 'Checkpoint.save', 9)),
    'logging': ('gym/CartPole-v1', (), Shot(20, 'Logger.dump', 8)),
    'first evaluation': ('gym/CartPole-v1', (), Shot(60, 'Session.evaluate', 1)),
    'evaluation': ('gym/Pendulum-v1', ('num_envs=3', 'train_steps=402'), Shot(900, 'Session.evaluate', 2)),
    'last step': ('gym/CartPole-v1', (), Shot(5, 'Session.advance', 400)),
    'last evaluation': ('gym/Pendulum-v1', (), Shot(900, 'Session.evaluate', 3)),
    'learn_steps_after': ('gym/CartPole-v1', ('learn_steps_after=50',), Shot(3000, 'Session.learn', 401)),
    'end': ('gym/CartPole-v1', (), Shot(20, 'Session.finish')),
    'game': ('atari/breakout', ('train_steps=240', 'environment.sticky_actions=0.25', 'num_envs=2'), Shot(5, 'Session.advance', 70)),
    'video': ('atari/pong', ('train_steps=60', 'log_video=true'), Shot(30, 'Games.video', 1)),
}


@pytest.mark.parametrize('place', PLACES)
def test_a_signal_saves_and_the_resumed_run_equals_the_undisturbed(place, tmp_path):
    task, options, shot = PLACES[place]
    number = signal.SIGINT if len(place) % 2 else signal.SIGTERM
    whole, stopped = (values(tmp_path / name, task, 'replay.capacity=60', *options) for name in ('whole', 'stopped'))
    complete(whole)
    outcome = start(stopped, Shot(shot.call, shot.inside, shot.entry, number))
    assert outcome.code == 128 + number and 'saving and plotting' in outcome.said and 'Traceback' not in outcome.said, outcome
    assert outcome.answer < SECONDS
    if place == 'learn_steps_after':
        assert 90 < Checkpoint.load(folder(stopped))[0]['learn_calls'] < 140, 'the rest waits for the resume'
    if 'plotting.plot=true' in options:
        assert list((tmp_path / 'stopped' / 'Exp' / 'Plots').glob('*.png'))
    complete(stopped | {'load': True})
    same(left(whole), left(stopped))
    assert len(set(steps(stopped, 'train'))) == len(steps(stopped, 'train')) and len(set(steps(stopped, 'eval'))) == len(steps(stopped, 'eval'))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_at_once(number, tmp_path):
    whole, stopped = (values(tmp_path / name, 'gym/CartPole-v1', 'replay.capacity=60') for name in ('whole', 'stopped'))
    outcome = start(stopped, Shot(5, 'Session.advance', 155, number), Shot(30, 'Saving.save', 1, number))
    assert outcome.code == 128 + number and 'Traceback' not in outcome.said, outcome
    assert Checkpoint.load(folder(stopped))[0]['step'] == 140, 'nothing was saved any more'
    complete(whole)
    complete(stopped | {'load': True})
    same(left(whole), left(stopped))


def test_stopped_again_and_again(tmp_path):
    """Also where the resumed run has not taken a step yet."""
    options = ('gym/CartPole-v1', 'replay.capacity=60', 'num_envs=2', 'learn_steps_after=20')
    whole, stopped = (values(tmp_path / name, *options) for name in ('whole', 'stopped'))
    places = [(1, 'Session.evaluate', 1), (1, 'Session.evaluate', 1), (1, 'Session.advance', 1), (3, 'Session.learn', 90), (50, 'Session.evaluate', 1)]
    for call, inside, entry in places:
        assert resume(stopped, Shot(call, inside, entry, signal.SIGTERM)).code == 143
    complete(whole)
    complete(stopped | {'load': True})
    same(left(whole), left(stopped))


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes(number, tmp_path):
    """As of Ctrl-C in a terminal, or a cluster's scheduler: those of the lanes, which are nearly always at work here, must live on until the run has saved."""
    command = [sys.executable, 'Run.py', 'task=gym/HalfCheetah-v5', 'environment.vectorization=async', 'num_envs=2', f'root={tmp_path}', 'action_repeat=50',
               'train_steps=1000000', 'evaluate_episodes=1', 'log_per_steps=50', 'learn_per_steps=0', 'hidden_dim=16', 'threads=1', 'device=cpu']
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        rows = tmp_path / 'Exp' / 'DQN' / 'gym' / 'HalfCheetah-v5_1' / 'train.csv'
        deadline = time.monotonic() + 120
        while not (rows.exists() and rows.read_text().count('\n') > 1):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, number)
        begin = time.monotonic()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 128 + number and 'Traceback' not in said, said
        assert time.monotonic() - begin < 4 * SECONDS, 'wall time, on a machine that may be busy'
        assert Checkpoint.read(rows.parent / Checkpoint.NEWEST)['step'] > 0 and list((tmp_path / 'Exp' / 'Plots').glob('*.png'))
    finally:
        process.kill()
