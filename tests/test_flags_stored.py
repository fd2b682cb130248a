"""What every flag about saving, loading and stored replays does, on runs of a second and less."""
import itertools
import math
import os
import signal
import time

import numpy as np
import pytest
import torch
import yaml

import Checkpoint
import Session as session_module
from Datasets.Replay import Replay
from Run import train
from tests import runs as processes
from tests.conftest import equal, lines, timeless


def transitions(replay):
    """Every stored transition of every lane in time order, as tuples of bytes and numbers."""
    lanes = []
    for lane in range(replay.num_envs):
        rows = np.arange(max(replay.cursor[lane] - replay.ring.rows, 0), replay.cursor[lane])
        at = replay.ring.positions(np.array(lane), rows)
        batch = replay.gather(at[(replay.meta[at] & 2) == 0])
        lanes.append([(obs.numpy().tobytes(), action.numpy().tobytes(), reward.item(), discount.item(), next_obs.numpy().tobytes() if discount else b'')
                      for obs, action, reward, discount, next_obs in zip(batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs)])
    return lanes


def stored(session, path, num_envs):
    return transitions(Replay(session.environment.obs_spec, session.environment.action_spec, num_envs=num_envs, capacity=1, seed=0, path=path, mode='read'))


# --- saving and loading

@pytest.mark.parametrize('options, steps', [
    (('save_per_steps=20',), [0, 20, 40, 60, 60]), (('save_per_steps=0',), [0, 60]), (('save_per_steps=25', 'num_envs=16'), [0, 32, 64, 64]),
    (('save=false',), [])])
def test_save_per_steps(graft, monkeypatch, options, steps):
    saved, save = [], Checkpoint.save
    monkeypatch.setattr(Checkpoint, 'save', lambda folder, state: saved.append(state['step']) or save(folder, state))
    left = graft.run(*options)
    assert saved == steps and (left.path / Checkpoint.NEWEST).exists() == bool(steps)


def test_train_steps_is_the_total_of_a_resumed_run(graft):
    """Continued after its end, a run whose replay was kept is the run that was begun with more steps."""
    options = ('num_envs=2', 'learn_per_steps=2', 'replay.save=true')
    whole = graft.run('train_steps=100', 'experiment=Whole', *options)
    graft.run(*options)
    said = graft.main(*lines('train_steps=100', 'load=true', *options))
    assert said.code == 0 and 'not written again' not in said.out  # step 60 is not evaluated twice
    left = graft.left()
    equal(left.weights(), whole.weights())
    assert left.updates() == 40 and left.steps('eval') == [0, 20, 40, 60, 80, 100]
    assert timeless(left.rows('train')) == timeless(whole.rows('train'))
    ended = left.steps('eval').index(60)  # evaluated as the end it was: after the last update, not before
    assert [row for at, row in enumerate(timeless(left.rows('eval'))) if at != ended] == [
        row for at, row in enumerate(timeless(whole.rows('eval'))) if at != ended]


def test_more_steps_after_the_end_learn_as_many_steps_do(graft):
    """The updates of learn_steps_after that the first end brought come on top; they are not taken from those of the new steps."""
    graft.run('learn_steps_after=5', 'replay.save=true')
    left = graft.run('learn_steps_after=5', 'replay.save=true', 'train_steps=100', 'load=true')
    assert left.updates() == 10 + 5 + 10 + 5
    assert {row['step']: int(row['update']) for row in left.rows('train')}['80'] == 19  # the 20th comes with the next step


def test_a_replay_that_was_to_be_kept_is_kept(graft):
    """Also where the run goes on without the flag."""
    left = graft.run('replay.save=true')
    graft.run('train_steps=80', 'load=true')
    assert (left.path / 'replay' / 'obs.bin').exists()
    graft.run('train_steps=100', 'load=true', 'lr=1e-3')
    assert (left.path / 'replay' / 'obs.bin').exists()
    kept = yaml.safe_load((left.path / 'config.yaml').read_text())
    assert kept['lr'] == 1e-3 and kept['train_steps'] == 100 and not kept['load'], 'the config is that of the last start'


@pytest.mark.parametrize('before, now, updates', [(4, 2, 10 + 20), (2, 4, 20 + 10), (4, 0, 10), (0, 4, 0 + 10)])
def test_another_ratio_of_updates_counts_from_where_it_is_given(graft, before, now, updates):
    """40 steps with the one, 40 more with the other; what the first steps were is not made up for."""
    graft.run(f'learn_per_steps={before}', 'replay.save=true')
    left = graft.run(f'learn_per_steps={now}', 'replay.save=true', 'train_steps=100', 'load=true')
    assert left.updates() == updates


@pytest.mark.parametrize('options, expected', [((), 5e-3), (('lr_decay_steps=100',), None)])
def test_another_learning_rate_holds_from_where_it_is_given(graft, options, expected):
    """Where a schedule moves it, the schedule goes on."""
    graft.run('lr=1e-3', 'replay.save=true', *options)
    session = graft.session('lr=5e-3', 'replay.save=true', 'train_steps=100', 'load=true', *options)
    optim = session.agent.critic.optim
    assert optim.param_groups[0]['lr'] == (expected or pytest.approx(1e-3 * (1 + math.cos(math.pi * 10 / 100)) / 2))
    assert all(state['step'] == 10 and state['exp_avg'].any() for state in optim.state.values())


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_plots_and_ends_and_the_resumed_run_is_the_whole_one(graft, monkeypatch, number):
    options = ('task=gym/Pendulum-v1', 'environment.max_steps=20', 'num_envs=2', 'learn_per_steps=2', 'lr=0.01', 'evaluate_envs=1')
    whole = graft.run('experiment=Whole', *options)
    advance = session_module.Session.advance

    def struck(self):
        advance(self)
        if self.step == 34 and not self.folder.resumed:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(session_module.Session, 'advance', struck)
    said = graft.main(*lines('plotting.plot=true', *options))
    left = graft.left(*options)
    assert said.code == 128 + number and left.state()['step'] == 34 and left.steps('eval') == [0, 20]
    assert (graft.home / 'Benchmarking/Exp/Plots/tasks.png').exists()
    graft.run('load=true', *options)
    equal(left.weights(), whole.weights())
    assert timeless(left.rows('train')) == timeless(whole.rows('train')) and timeless(left.rows('eval')) == timeless(whole.rows('eval'))


@pytest.mark.parametrize('which', ['folder', 'file'])
def test_load_path_takes_weights_and_nothing_else(graft, which):
    source = graft.run()
    path = source.path if which == 'folder' else source.path / 'checkpoint.pt'
    left = graft.run(f'load_path={path}', 'seed=2', 'train_steps=0')
    equal(left.weights(), source.weights())
    state = left.state()
    assert (state['step'], state['episodes'], left.updates()) == (0, 0, 0) and not state['agent']['optims']['critic']['state']
    assert any(not torch.equal(weight, source.weights()[name]) for name, weight in graft.run('seed=3', 'train_steps=0').weights().items())


def test_load_per_steps_takes_the_learners_newest_weights(graft):
    """As often as there are new ones; a learner that has not begun, or whose file is bad, stops nobody."""
    collector = graft.session('learn_per_steps=0', 'replay.save=true', 'load_per_steps=10', 'train_steps=1000', 'explore_steps=0')
    offline = collector.learner_path
    while collector.step < 25:
        collector.advance()
        collector.records()
    assert collector.weights_read == 0
    learner = graft.session('offline=true', 'replay.wait=0', 'save_per_steps=5')
    train(learner)
    while collector.step < 35:
        collector.advance()
        collector.records()
    equal(dict(collector.agent.state_dict()), dict(learner.agent.state_dict()))
    assert collector.agent.update_count == 0 and collector.step == 35
    (offline / 'checkpoint.pt').write_bytes(b'half')
    while collector.step < 45:
        collector.advance()
        collector.records()
    equal(dict(collector.agent.state_dict()), dict(learner.agent.state_dict()))
    assert [row.get('weights_loaded') for row in graft.left().rows('train')] == ['', '1']


# --- the replay on the disk

def test_without_replay_save_the_replay_goes(graft):
    assert not (graft.run().path / 'replay').exists()
    assert (graft.run('replay.save=true', 'seed=2').path / 'replay/layout.json').exists()


def test_what_a_run_kept_stays_when_it_is_looked_at_again(graft):
    left = graft.run('replay.save=true')
    graft.run('load=true')
    assert (left.path / 'replay/layout.json').exists()


def test_a_replay_in_memory_is_kept_without_checkpoints_too(graft):
    left = graft.run('replay.save=true', 'replay.store=ram', 'save=false')
    assert graft.run('offline=true', f'replay.path={left.path}/replay', 'seed=2').updates() == 15


def test_replay_path_is_where_the_replay_lies(graft):
    left = graft.run('replay.save=true', 'replay.path=elsewhere/replay')
    assert (graft.home / 'elsewhere/replay/layout.json').exists() and not (left.path / 'replay').exists()
    before = {path: path.read_bytes() for path in (graft.home / 'elsewhere').rglob('*.*')}
    assert graft.run('offline=true', 'replay.path=elsewhere/replay', 'seed=2').updates() == 15
    assert {path: path.read_bytes() for path in (graft.home / 'elsewhere').rglob('*.*')} == before


@pytest.mark.parametrize('task', ['task=gym/CartPole-v1', 'task=atari/breakout'])
@pytest.mark.parametrize('lanes', [2, 3])
def test_replay_load_begins_with_what_an_earlier_run_stored(graft, task, lanes):
    """The source stays as it is to the bit; train_steps, nstep and even num_envs may be others."""
    small = (task, 'save_per_steps=50', 'evaluate_per_steps=0')
    source = graft.run(*small, 'replay.save=true', 'num_envs=2', 'learn_per_steps=0')
    before = {path: path.read_bytes() for path in source.path.rglob('*') if path.is_file()}
    session = graft.session(*small, 'replay.load=true', 'seed=2', f'num_envs={lanes}', 'train_steps=90', 'nstep=2')
    old, new = stored(session, source.path / 'replay', 2), transitions(session.replay)
    assert len(session.replay) == 60 and session.run_replay.source == source.path / 'replay'
    if lanes == 2:
        assert new == old
    elif 'gym' in task:  # cut into three; in images a cut also shortens the stacks behind it
        assert sorted(item for lane in new for item in lane) == sorted(item for lane in old for item in lane)
    train(session)
    assert {path: path.read_bytes() for path in source.path.rglob('*') if path.is_file()} == before
    assert session.step == 90 and session.agent.update_count == 17


def test_replay_load_takes_the_newest_transitions_that_fit_of_the_newest_replay(graft):
    older = graft.run('replay.save=true', 'seed=7', 'train_steps=20')
    newer = graft.run('replay.save=true', 'seed=8')
    os.utime(older.path / 'replay/layout.json', (1, 1))
    session = graft.session('replay.load=true', 'replay.capacity=25', 'seed=2')
    assert session.run_replay.source == newer.path / 'replay'
    old, new = stored(session, newer.path / 'replay', 1)[0], transitions(session.replay)[0]
    assert 15 < len(new) < 25 and new == old[-len(new):]


def test_a_loaded_replay_has_room_for_what_was_stored_and_for_what_comes(graft):
    graft.run('replay.save=true', 'train_steps=200', 'evaluate_per_steps=0', 'learn_per_steps=0')
    session = graft.session('replay.load=true', 'train_steps=20', 'seed=2')
    assert len(session.replay) == 200
    while not session.finished:
        session.advance()
    assert len(session.replay) == 220


def test_replay_load_goes_on_in_the_runs_own_folder(graft):
    left = graft.run('replay.save=true')
    session = graft.session('replay.load=true', 'overwrite=true', 'replay.save=true', 'train_steps=70')
    assert len(session.replay) == 60 and session.step == 0
    train(session)
    assert left.steps('eval') == [0, 20, 40, 60, 70]


def test_capacity_is_never_exceeded_and_the_oldest_leave_first(graft):
    session = graft.session('replay.capacity=30', 'num_envs=2')
    assert session.replay.capacity == 30
    while session.step < 60:
        session.advance()
        assert len(session.replay) <= min(session.step, 30)
    assert session.environment.steps == 60


@pytest.mark.parametrize('sampler, column', [('epoch', 'epoch'), ('uniform', None)])
def test_offline_learns_from_what_is_stored_and_plays_only_to_evaluate(graft, monkeypatch, sampler, column):
    source = graft.run('replay.save=true', 'num_envs=2')
    before = {path: path.read_bytes() for path in source.path.rglob('*') if path.is_file()}
    send = session_module.Environment.send
    monkeypatch.setattr(session_module.Environment, 'send', lambda self, action: send(self, action) if self.num_envs == 1 else pytest.fail('it played'))
    drawn = []
    draw = Replay.draw
    monkeypatch.setattr(Replay, 'draw', lambda self, n: drawn.append(draw(self, n)) or drawn[-1])
    left = graft.run('offline=true', 'num_envs=2', 'evaluate_envs=1', 'learn_per_steps=1', 'batch_size=12', 'train_steps=10', 'evaluate_per_steps=5',
                     'log_per_steps=5', f'replay.sampler={sampler}')
    assert left.path == source.path / 'offline' and left.updates() == 10 and left.steps('eval') == [0, 5, 10]
    assert {path: path.read_bytes() for path in before} == before
    if column:  # 60 transitions in batches of 12: two passes, each of every transition once
        passes = [np.concatenate(drawn[:5]), np.concatenate(drawn[5:])]
        assert all(len(set(seen)) == 60 for seen in passes) and set(passes[0]) == set(passes[1]) and list(passes[0]) != list(passes[1])
        assert [row['epoch'] for row in left.rows('train')] == ['1', '2']


def test_an_offline_run_saves_when_there_is_something_new(graft, monkeypatch):
    graft.run('replay.save=true')
    saved, save = [], Checkpoint.save
    monkeypatch.setattr(Checkpoint, 'save', lambda path, state: saved.append(state['agent']['update_count']) or save(path, state))
    graft.run('offline=true', 'learn_per_steps=4', 'save_per_steps=1', 'train_steps=14', 'evaluate_per_steps=0')
    assert saved == [0, 1, 2, 3, 3], 'at the start, after each update, and at the end'


def test_an_offline_run_resumes(graft):
    graft.run('replay.save=true', 'num_envs=2')
    options = ('offline=true', 'num_envs=2', 'learn_per_steps=1', 'batch_size=7', 'save_per_steps=5', 'evaluate_per_steps=0')
    whole = graft.run(*options, 'train_steps=20')
    weights, rows = whole.weights(), timeless(whole.rows('train'))
    graft.run(*options, 'train_steps=11', 'overwrite=true')
    left = graft.run(*options, 'train_steps=20', 'load=true')
    equal(left.weights(), weights)
    assert [row['epoch'] for row in rows] == ['3'] == [row['epoch'] for row in left.rows('train')[-1:]]


# --- two processes

@pytest.mark.parametrize('first', ['collector', 'learner'])
def test_collector_and_learner_in_either_order(graft, first):
    """The learner sees what the collector adds after it began, and the collector takes the weights that the learner learns."""
    endless = ('train_steps=1e7', 'replay.capacity=1e5', 'evaluate_per_steps=0', 'evaluate_episodes=1')
    values = {'collector': graft.values(*endless, 'learn_per_steps=0', 'replay.save=true', 'load_per_steps=1', 'log_per_steps=500', 'explore_steps=0'),
              'learner': graft.values(*endless, 'offline=true', 'save_per_steps=2', 'learn_per_steps=1', 'log_per_steps=1')}
    running = {}
    left, offline = graft.left(), graft.left().path / 'offline'

    def begin(name):
        run = values[name] | {'root': str(graft.home / 'Benchmarking')}
        out, report = str(graft.home / f'{name}.out'), str(graft.home / f'{name}.report')
        running[name] = processes.launcher().Process(target=processes.child, args=(run, (), (), out, report))
        running[name].start()

    def said(name):
        file = graft.home / f'{name}.out'
        return file.read_text() if file.exists() else ''

    def wait_until(condition, what):
        end = time.monotonic() + 60
        while not condition():
            assert all(process.is_alive() for process in running.values()), {name: said(name) for name in running}
            assert time.monotonic() < end, (what, {name: said(name) for name in running})
            time.sleep(0.05)

    def seen():
        return int(np.sum(Checkpoint.read(offline / 'checkpoint.pt')['processes'][0]['replay']['cursor'])) if (offline / 'checkpoint.pt').exists() else -1

    try:
        order = sorted(values, key=lambda name: name != first)
        begin(order[0])
        wait_until(lambda: (left.path / 'config.yaml').exists() or 'waiting replay.wait' in said('learner'), 'the first begins')
        begin(order[1])
        wait_until(lambda: seen() > 0, 'the learner learns')
        at_first = seen()
        wait_until(lambda: seen() > at_first + 100, 'the learner sees new data')
        wait_until(lambda: len({row.get('weights_loaded') for row in left.rows('train')} - {'', None}) > 0, 'the collector takes weights')
    finally:
        for process in running.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)
        for process in running.values():
            process.join(20)
    assert {name: process.exitcode for name, process in running.items()} == dict.fromkeys(running, 128 + signal.SIGTERM)
    assert len(left.steps('eval')) >= 1 and all(a < b for a, b in itertools.pairwise(left.steps('train')))
