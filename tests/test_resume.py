"""A run that was killed, however often and wherever, and resumed, is the run that never was: to the bit."""
import errno
import random
import signal
from pathlib import Path

import pytest

import Checkpoint
import Run
from tests.runs import Shot, checkpoint, complete, folder, left, resume, rows, same, start, steps, values

WRAPPED = 'replay.capacity=60'  # with save_per_steps=20 the files, slack included, go round at least once
FOUR = ('num_envs=4', 'train_steps=560')  # 140 vector steps
EPOCH, RAM, EMA, DECAY, AFTER = 'replay.sampler=epoch', 'replay.store=ram', 'ema=true', 'lr_decay_steps=60', 'learn_steps_after=40'
LIVES = ('environment.sticky_actions=0.25', 'environment.fire_reset=true', 'environment.max_frames=300')  # one is lost every 25 steps or so
PIXEL_SAC = ('Agent=SAC', 'Aug=RandomCrop', '+recipes.aug.size=28', '+recipes.encoder.eyes.out_channels=4', 'replay.capacity=100')
SOFTMAX, DUELING, ENSEMBLE = 'agent.exploration=softmax', 'agent.dueling=true', 'agent.num_critics=2'

# task, options, and where the run is killed: call, inside which function, since its which entry in that process
CASES = {
    'cartpole': ('gym/CartPole-v1', (EMA, AFTER), [
        Shot(9, 'Session.learn'),  # before the first checkpoint on the way
        Shot(200, 'Checkpoint.write', 5),  # within a checkpoint
        Shot(100, 'Session.evaluate', 1),  # the one at step 200
        Shot(1500, 'Session.learn', 201)]),  # learn_steps_after
    'cartpole_4': ('gym/CartPole-v1', (*FOUR, EPOCH, RAM, SOFTMAX, DUELING, AFTER), [
        Shot(20, 'Replay.sync', 6),
        Shot(50, 'Session.finish')]),
    'pendulum': ('gym/Pendulum-v1', (EPOCH, ENSEMBLE, DECAY, 'agent.num_actions=3'), [
        Shot(4, 'Checkpoint.save', 7),  # between the renames
        Shot(10, 'Replay.add', 35),  # a row half written
        Shot(30, 'Environment._replay'),  # while it resumes
        Shot(900, 'Session.evaluate')]),
    'pendulum_4': ('gym/Pendulum-v1', (*FOUR, RAM, EMA, 'environment.max_steps=70'), [
        Shot(30, 'Replay.sync', 15),
        Shot(5, 'Replay.load_state_dict'),
        Shot(9, 'Environment.receive', 47)]),
    'cheetah_4': ('gym/HalfCheetah-v5', (*FOUR, DECAY, ENSEMBLE, 'environment.max_steps=50'), [
        Shot(25, 'Replay._open', 113)]),
    'pong_4': ('atari/pong', ('num_envs=4', 'train_steps=440', RAM, DUELING, EMA, 'environment.preset=v5'), [
        Shot(9, 'Session.advance', 71)]),
    'breakout': ('atari/breakout', ('train_steps=240', EPOCH, DUELING, ENSEMBLE, DECAY, *LIVES), [
        Shot(9, 'Session.advance', 211),
        Shot(30, 'Logger.dump', 2)]),
    'breakout_4': ('atari/breakout', ('num_envs=4', 'train_steps=440', SOFTMAX, AFTER, *LIVES), [
        Shot(9, 'Replay.add', 97),
        Shot(800, 'Session.learn', 16)]),
    'pitfall': ('atari/pitfall', ('Agent=Random', 'num_envs=2', 'train_steps=480', 'evaluate_per_steps=160', 'environment.preset=v5'), [
        Shot(40, 'Rooms.__call__', 5),  # while an episode's rooms are looked for
        Shot(9, 'Session.advance', 31)]),
    'control_state': ('dmc/cheetah_run', ('obs=state', 'Agent=AuxiSAC', 'num_envs=2', 'action_repeat=4'), [
        Shot(40, 'Auxiliary.learn', 60),
        Shot(10, 'DMC.recv', 71)]),
    'control_pixels': ('dmc/quadruped_escape', (*PIXEL_SAC, 'aux=[a2_winner,curl]', 'num_envs=2', 'train_steps=240', 'action_repeat=4'), [
        Shot(20, 'Session.advance', 63),
        Shot(5, 'Workers.recv', 9)]),
    'control_spr': ('dmc/walker_walk', ('obs=state', 'Agent=SAC', 'aux=[spr,byol,barlow_twins]', 'aux.byol.grad=project', 'pretrain_steps=80',
                                          'normalise_obs=true', 'train_steps=240'), [
        Shot(9, 'Session.learn', 131)]),
    'ppo': ('gym/Pendulum-v1', ('Agent=PPO', 'num_envs=4', 'train_steps=560', 'seed_steps=0', 'learn_per_steps=80', 'agent.rollout_steps=20',
                                'agent.minibatches=4', 'environment.max_steps=30'), [
        Shot(40, 'PPO.learn', 3),
        Shot(9, 'Session.advance', 57)]),
    'rnd': ('gym/CartPole-v1', ('Agent=RND', 'num_envs=4', 'train_steps=560', 'seed_steps=0', 'learn_per_steps=80', 'agent.rollout_steps=20', 'aux=byol',
                                'aux.byol.batch_size=32', 'explore.rnd.warmup_steps=150', 'explore.rnd.update_proportion=0.5', 'normalise_obs=false'), [
        Shot(2, 'Session.warm_up'),
        Shot(60, 'PPO.learn', 3),
        Shot(9, 'Session.advance', 57)]),
    'explored': ('gym/Pendulum-v1', ('Agent=SAC', 'num_envs=2', 'explore=rnd', 'explore.rnd.warmup_steps=0', 'train_steps=240', 'replay.capacity=60'), [
        Shot(9, 'Plugged.bonuses', 31),
        Shot(20, 'Bonus.learn_drawn', 40)]),
    'random': ('gym/Pendulum-v1', ('Agent=Random', 'num_envs=3', 'train_steps=600'), [
        Shot(3, 'Saving.save', 16)]),
}


@pytest.mark.parametrize('case', CASES)
def test_killed_and_resumed_equals_uninterrupted(case, tmp_path):
    task, options, shots = CASES[case]
    whole, killed = (values(tmp_path / name, task, WRAPPED, *options) for name in ('whole', 'killed'))
    complete(whole)
    for shot in shots:
        outcome = resume(killed, shot)
        assert outcome.code == -signal.SIGKILL, f'{shot}: {outcome}'
    complete(killed | {'load': True})
    same(left(whole), left(killed))


@pytest.mark.parametrize('store', ['map', 'ram'])
def test_killed_at_fifty_random_instants(store, tmp_path):
    """Every restart finds a complete state, whatever was under way; the run that comes of it is the undisturbed one."""
    options = ('gym/CartPole-v1', WRAPPED, 'train_steps=80', 'save_per_steps=8', 'evaluate_per_steps=50', 'evaluate_episodes=1', f'replay.store={store}')
    whole = values(tmp_path / 'whole', *options)
    calls = complete(whole, count=True).calls
    chance, kills, runs = random.Random(store), 0, 0
    while kills < 25:
        killed, runs = values(tmp_path / f'killed{runs}', *options), runs + 1
        while (outcome := resume(killed, Shot(chance.randrange(1, int(0.7 * calls))))).code:
            assert outcome.code == -signal.SIGKILL, outcome.said
            kills += 1
        same(left(whole), left(killed))
        assert not [file for file in folder(killed).rglob('*') if 'tmp' in file.name or 'writing' in file.name], 'something half written stayed'


# where the newest checkpoint cannot be read

@pytest.mark.parametrize('task, options', [
    ('gym/CartPole-v1', (EMA,)),
    ('gym/Pendulum-v1', (*FOUR, RAM, EPOCH)),
    ('gym/Scripted-v0', ('+environment.kwargs.length=1', 'save_per_steps=100')),  # each step ends a game: two rows, where slack is made for one
], ids=['map', 'ram', 'short games'])
def test_the_previous_checkpoint_serves_as_well(task, options, tmp_path):
    """The newest is lost as late as can be: at the next save, when nearly two intervals of rows lie beyond the previous one."""
    whole, hurt = (values(tmp_path / name, task, WRAPPED, *options) for name in ('whole', 'hurt'))
    complete(whole)
    entry = 3 if 'save_per_steps=100' in options else 14
    assert resume(hurt, Shot(1, 'Checkpoint.save', entry)).code == -signal.SIGKILL
    newest = folder(hurt) / Checkpoint.NEWEST
    steps = [Checkpoint.read(folder(hurt) / name)['step'] for name in (Checkpoint.PREVIOUS, Checkpoint.NEWEST)]
    newest.write_bytes(newest.read_bytes()[:-2000])
    outcome = resume(hurt, Shot(1, 'Checkpoint.save', 2))
    assert outcome.code == -signal.SIGKILL and str(newest) in outcome.said and f'step {steps[0]}' in outcome.said, outcome
    again = [Checkpoint.read(folder(hurt) / name)['step'] for name in (Checkpoint.PREVIOUS, Checkpoint.NEWEST)]
    assert again[0] == steps[0] < again[1], 'after the first save there are two good ones again'
    complete(hurt | {'load': True})
    same(left(whole), left(hurt))


def test_both_checkpoints_bad_stops_without_touching_anything(tmp_path):
    run = values(tmp_path, 'gym/CartPole-v1', 'train_steps=100', 'evaluate_per_steps=0')
    complete(run)
    for name in (Checkpoint.NEWEST, Checkpoint.PREVIOUS):
        (folder(run) / name).write_bytes(b'PK not a checkpoint')
    before = contents(folder(run))
    outcome = start(run | {'load': True})
    assert outcome.code == 1 and Checkpoint.NEWEST in outcome.said and Checkpoint.PREVIOUS in outcome.said
    assert contents(folder(run)) == before


def test_a_full_disk_stops_a_run_while_it_can_still_be_resumed(tmp_path, monkeypatch, capfd):
    """Checkpoints fail from step 120 on: the run goes on until its replay would write over what the last good one needs."""
    whole, full = (values(tmp_path / name, 'gym/CartPole-v1', WRAPPED) for name in ('whole', 'full'))
    complete(whole)
    write = Checkpoint.write

    def refuse(path, state):
        if state['step'] > 100:
            raise OSError(errno.ENOSPC, 'No space left on device', str(path))
        write(path, state)
    monkeypatch.setattr(Checkpoint, 'write', refuse)
    with pytest.raises(OSError, match='No space left'):
        Run.run(full)
    assert 'step 120 not written' in capfd.readouterr().out and 120 < steps(full, 'train')[-1] < 220
    monkeypatch.undo()
    complete(full | {'load': True})
    same(left(whole), left(full))


# a run that had come to its end

def contents(path: Path) -> dict[str, bytes]:
    """Every file, but for the lock and what says when something was."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob('*') if file.is_file()}


@pytest.mark.parametrize('keep', ['replay.save=true', 'replay.save=false'])
def test_a_finished_run_that_is_resumed_stays_as_it_is(keep, tmp_path):
    run = values(tmp_path, 'gym/CartPole-v1', 'train_steps=100', 'learn_steps_after=5', keep)
    complete(run)
    parts = () if keep == 'replay.save=true' else ('replay', 'checkpoint')
    before, weights, files = left(run, *parts), checkpoint(run)['agent'], sorted(contents(folder(run)))
    assert (folder(run) / 'replay').exists() == (keep == 'replay.save=true')
    for train_steps in (100, 60, 0):
        complete(run | {'load': True, 'train_steps': train_steps, 'replay': run['replay'] | {'save': False}})
        assert sorted(contents(folder(run))) == files
        same(weights, checkpoint(run)['agent'])
        same(before, left(run, *parts))


@pytest.mark.parametrize('learn_per_steps', [2, 8])
def test_a_finished_run_owes_nothing_where_updates_come_in_another_ratio(learn_per_steps, tmp_path):
    run = values(tmp_path, 'gym/CartPole-v1', 'train_steps=100', 'learn_steps_after=5', 'replay.save=true')
    complete(run)
    weights = checkpoint(run)['agent']
    complete(run | {'load': True, 'learn_per_steps': learn_per_steps})
    same(weights, checkpoint(run)['agent'])


@pytest.mark.parametrize('keep', ['replay.save=true', 'replay.save=false'])
def test_a_longer_train_steps_goes_on(keep, tmp_path):
    run = values(tmp_path, 'gym/CartPole-v1', 'train_steps=200', 'learn_steps_after=30', 'evaluate_per_steps=100', WRAPPED, keep)
    complete(run)
    assert checkpoint(run)['agent']['update_count'] == (200 - 40) // 4 + 30
    longer = run | {'load': True, 'train_steps': 400}
    if keep == 'replay.save=false':  # killed before the replay that fills anew was ever saved
        for inside in ('Replay.begin', 'Saving.save'):
            assert start(longer, Shot(12, inside)).code == -signal.SIGKILL
    assert start(longer, Shot(5, 'Session.advance', 90)).code == -signal.SIGKILL
    complete(longer)
    assert steps(run, 'train') == list(range(20, 401, 20)) and steps(run, 'eval') == [0, 100, 200, 300, 400]
    updates, evaluated = ([int(row['update']) for row in rows(folder(run) / f'{phase}.csv')] for phase in ('train', 'eval'))
    kept = keep == 'replay.save=true'  # without a replay nothing is learnt for another seed_steps
    assert [late - early for early, late in zip(updates[10:], updates[11:], strict=False)] == ([5, 5] if kept else [0, 4]) + [5] * 6 + [6 + 30]
    assert evaluated == [0, 14, 70, 94 if kept else 84, 150 if kept else 140], 'learn_steps_after once more, at the new end'
    assert checkpoint(run)['step'] == 400 and (folder(run) / 'replay').exists() == kept


def test_a_longer_run_without_its_replay_that_is_not_saved_on_the_way(tmp_path):
    run = values(tmp_path, 'gym/CartPole-v1', 'train_steps=40', 'evaluate_per_steps=0', 'replay.save=false')
    complete(run)
    longer = run | {'load': True, 'train_steps': 300, 'save_per_steps': 0}
    assert start(longer, Shot(5, 'Session.advance', 200)).code == -signal.SIGKILL  # more rows than the short run had
    complete(longer)
    assert checkpoint(run)['step'] == 300


def test_a_start_that_was_killed_leaves_nothing_in_the_way(tmp_path):
    """Before config.yaml is there, nothing has begun: the same command starts, also where it replaces another run."""
    options = ('gym/CartPole-v1', 'train_steps=60', 'evaluate_per_steps=0')
    whole, torn = (values(tmp_path / name, *options) for name in ('whole', 'torn'))
    complete(whole)
    for shot in (Shot(1, 'Folder.claim'), Shot(4, 'Storage._open'), Shot(9, 'Replay.begin'), Shot(90, 'Checkpoint.write'), Shot(1, 'Folder.write_config')):
        assert start(torn, shot).code == -signal.SIGKILL
        assert not (folder(torn) / 'config.yaml').exists()
    complete(torn)
    same(left(whole), left(torn))
    for shot in (Shot(12, 'Folder.clear'), Shot(60, 'Folder.clear'), Shot(9, 'Replay.begin')):
        assert start(torn | {'overwrite': True}, shot).code == -signal.SIGKILL
    complete(torn | {'overwrite': True})
    same(left(whole), left(torn))


def test_killed_while_the_replay_is_discarded(tmp_path):
    for number, call in enumerate((1, 20, 32, 44)):
        run = values(tmp_path / str(number), 'gym/CartPole-v1', 'train_steps=60', 'evaluate_per_steps=0', 'replay.save=false')
        assert start(run, Shot(call, 'Storage.discard')).code == -signal.SIGKILL
        complete(run | {'load': True})
        assert not list((folder(run) / 'replay').glob('*.bin'))
        complete(run | {'load': True, 'train_steps': 120})


def test_processes_of_lanes_do_not_hold_a_killed_run(tmp_path):
    options = ('num_envs=2', 'train_steps=60', 'environment.vectorization=async', 'evaluate_per_steps=0', 'evaluate_episodes=1')
    whole, killed = (values(tmp_path / name, 'gym/CartPole-v1', *options) for name in ('whole', 'killed'))
    complete(whole)
    assert start(killed, Shot(5, 'Session.advance', 20)).code == -signal.SIGKILL
    complete(killed | {'load': True})  # at once
    same(left(whole), left(killed))


@pytest.mark.parametrize('sampler', ['uniform', 'epoch'])
def test_an_offline_learner(sampler, tmp_path):
    collector = values(tmp_path, 'gym/Pendulum-v1', 'train_steps=100', 'evaluate_per_steps=0', 'num_envs=2')
    complete(collector)
    options = ('offline=true', f'replay.path={folder(collector)}/replay', f'replay.sampler={sampler}', 'learn_per_steps=2', AFTER, 'train_steps=160',
               'evaluate_per_steps=80', 'environment.max_steps=40', 'replay.wait=0')
    whole, killed = (values(tmp_path, 'gym/Pendulum-v1', f'experiment={name}', *options) for name in ('whole', 'killed'))
    complete(whole)
    for shot in (Shot(30, 'Session.learn', 55), Shot(50, 'Session.evaluate', 1), Shot(3000, 'Session.learn', 81)):
        assert resume(killed, shot).code == -signal.SIGKILL, shot
    assert start(killed | {'load': True}, Shot(2000, 'Session.learn', 1, signal.SIGTERM)).code == 143
    complete(killed | {'load': True})
    same(left(whole, 'replay'), left(killed, 'replay'))


# specification, rows 43 to 46

def test_paths(tmp_path):
    run = values(tmp_path, 'atari/battlezone', 'train_steps=20', 'experiment=Mine', 'seed=3', 'Agent=DQNAgent', 'evaluate_per_steps=0', 'plotting.plot=true',
                 'logger.tensorboard=true', 'log_video=true')
    complete(run)
    path = tmp_path / 'Mine' / 'DQN' / 'atari' / 'battle_zone_3'
    files = {str(file.relative_to(path)) for file in path.rglob('*') if file.is_file()}
    assert files >= {'config.yaml', 'train.csv', 'eval.csv', 'checkpoint.pt', 'replay/obs.bin', 'videos/0.mp4', 'videos/20.mp4'}
    assert list((path / 'tensorboard').iterdir()) and list((tmp_path / 'Mine' / 'Plots').glob('*.png'))


def test_new_columns_leave_the_rows_before_them_alone(tmp_path):
    """agent_log switched on at a resume: its columns are blank above."""
    run = values(tmp_path, 'gym/CartPole-v1', 'train_steps=400', 'agent_log=false')
    assert start(run, Shot(1, 'Session.advance', 205)).code == -signal.SIGKILL
    before = rows(folder(run) / 'train.csv')[:10]
    assert resume(run | {'agent_log': True}, Shot(1, 'Benchmarking.Table._line')).code == -signal.SIGKILL
    assert list(folder(run).glob('.*.tmp'))
    complete(run | {'load': True, 'agent_log': True})
    assert not list(folder(run).glob('.*.tmp')), 'what was being written when the run was killed'
    after = rows(folder(run) / 'train.csv')
    assert 'critic_loss' not in before[0] and len(after) == 20
    assert all(new == old | dict.fromkeys(new.keys() - old.keys(), '') for old, new in zip(before, after[:10], strict=True))
    assert all(float(row['critic_loss']) >= 0 and float(row['step']) > 200 for row in after[10:])


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path):
    """Of a run that has ended, whose replay is gone."""
    run = values(tmp_path, 'gym/CartPole-v1', 'num_envs=2', 'replay.save=false', 'evaluate_per_steps=0')
    Run.run(run)
    path = folder(run)
    before = {file.relative_to(path): file.read_bytes() for file in path.rglob('*') if file.is_file()}
    again = values(tmp_path, 'gym/CartPole-v1', 'num_envs=4', 'replay.save=false', 'evaluate_per_steps=0', 'train_steps=480', 'load=true')
    with pytest.raises(ValueError, match='resume with the task and num_envs of the run'):
        Run.run(again)
    assert before == {file.relative_to(path): file.read_bytes() for file in path.rglob('*') if file.is_file()}
    Run.run(again | {'num_envs': 2})
    assert Checkpoint.read(path / Checkpoint.NEWEST)['step'] == 480


def test_inside_a_rollout_its_length_stays(tmp_path):
    rollouts = ('Agent=PPO', 'num_envs=2', 'seed_steps=0', 'agent.minibatches=2', 'evaluate_per_steps=0')

    def run(steps, *overrides):
        return values(tmp_path, 'gym/CartPole-v1', *rollouts, f'agent.rollout_steps={steps}', f'learn_per_steps={2 * steps}', *overrides)
    killed = start(run(20), Shot(9, 'Session.learn', 150))
    assert killed.code == -signal.SIGKILL
    with pytest.raises(ValueError, match='agent.rollout_steps=10: the run is inside a rollout of 20 steps a lane; resume with agent.rollout_steps=20'):
        Run.run(run(10, 'load=true'))
    Run.run(run(20, 'load=true'))
    assert Checkpoint.read(folder(run(20)) / Checkpoint.NEWEST)['step'] == 400
