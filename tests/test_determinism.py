"""A run is a function of its seed and of what concerns training; how often it is looked at concerns nothing."""
import random

import numpy as np
import pytest
import torch

import Run
from tests.runs import checkpoint, complete, differences, folder, left, replay, rows, same, values

TASKS = ('gym/CartPole-v1', 'gym/Pendulum-v1', 'atari/pong', 'atari/breakout')
SHORT = ('train_steps=210', 'replay.capacity=1000', 'save_per_steps=100')


PAIRS: list[tuple[str, tuple[str, ...]]] = [(task, options) for task in TASKS for options in [('num_envs=1',), ('num_envs=3',)]]
PAIRS += [('dmc/finger_spin', ('obs=state', 'Agent=CURL', 'num_envs=2')),
          ('dmc/reacher_easy', ('Agent=SAC', 'Aug=RandomCrop', '+recipes.aug.size=28', '+recipes.encoder.eyes.out_channels=4', 'aux=spr', 'num_envs=3'))]
PAIRS += [(task, ('Agent=Random', 'num_envs=3')) for task in TASKS]
PAIRS += [(task, ('num_envs=3', 'threads=2', 'env_threads=2')) for task in ('gym/Pendulum-v1', 'atari/pong')]


@pytest.mark.parametrize('task, options', PAIRS, ids=lambda value: value if isinstance(value, str) else ' '.join(value))
def test_two_runs_with_one_seed_are_equal_to_the_bit(task, options, tmp_path):
    first, second = (values(tmp_path / name, task, *SHORT, *options) for name in ('first', 'second'))
    complete(first)
    complete(second)
    state = checkpoint(first)
    assert state['step'] >= 200 and ('Agent=Random' in options or state['agent']['update_count'] >= 20)
    assert sum(len(lane['action']) for lane in replay(first)) == state['step'], 'every action of the run is compared'
    if task == 'atari/breakout':
        assert sum(((lane['meta'][1:] & 4 != 0) & (lane['meta'][:-1] & 2 == 0)).sum() for lane in replay(first)) >= 1, 'lives were lost'
    same(left(first), left(second))


def test_what_ran_before_in_the_process_makes_no_difference(tmp_path):
    alone, later = (values(tmp_path / name, 'gym/CartPole-v1', *SHORT) for name in ('alone', 'later'))
    complete(alone)
    Run.run(values(tmp_path / 'other', 'gym/Pendulum-v1', *SHORT, 'seed=7'))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(12345)
    Run.run(later)
    same(left(alone), left(later))


def training(run: dict) -> dict:
    """What training made: all of the agent, the environment and the replay."""
    state = checkpoint(run)
    (process,) = state['processes']
    stored = {key: process['replay'][key] for key in ('cursor', 'rng', 'epochs', 'order')}  # not the room that was made for it
    for agent in (state['agent'], process['agent']):
        agent['generators'].pop('evaluating')
    return {key: state[key] for key in ('step', 'learn_calls', 'episodes', 'agent')} | {
        key: process[key] for key in ('agent_state', 'environment', 'torch')} | {'replay': stored, 'rows': replay(run)}


@pytest.fixture(scope='module')
def watched(tmp_path_factory):
    """Runs that differ in how they are looked at, by task: one undisturbed run each to compare with."""
    def run(task, *options):
        made = values(tmp_path_factory.mktemp('run'), task, *SHORT, 'num_envs=2', *options)
        complete(made)
        return made
    return {task: run(task) for task in ('gym/CartPole-v1', 'gym/Pendulum-v1', 'atari/breakout')} | {'run': run}


@pytest.mark.parametrize('task, options', [
    ('dmc/cheetah_run', ('obs=state', 'Agent=SAC', 'aux=[a2_winner,curl]', 'encoder=ofe')), ('dmc/cheetah_run', ('obs=state', 'Agent=SAC', 'aux=byol')),
    ('gym/CartPole-v1', ('Agent=DQN', 'aux=[spr,barlow_twins]')), ('atari/pong', ('Agent=DQN', 'aux=curl')),
    ('gym/CartPole-v1', ('Agent=DQN', 'aux=spr', 'aux.spr.horizon=30', 'replay.capacity=60', 'num_envs=4')),
    ('dmc/cheetah_run', ('Agent=SAC', 'aux=a2_winner_v', 'Aug=RandomCrop', '+recipes.aug.size=28', '+recipes.encoder.eyes.out_channels=4'))], ids=str)
def test_a_loss_of_weight_0_changes_nothing_of_the_run(task, options, tmp_path):
    """Weights, optimisers, replay and actions are those of aux=none, to the bit."""
    names = next(line for line in options if line.startswith('aux=')).removeprefix('aux=').strip('[]').split(',')
    plain = values(tmp_path / 'plain', task, *SHORT, *(line for line in options if not line.startswith('aux')))
    watched = values(tmp_path / 'watched', task, *SHORT, *options, *(f'aux.{name}.weight=0' for name in names))
    complete(plain)
    complete(watched)
    one, two = training(plain), training(watched)
    heads = {key: value for key, value in two['agent']['weights'].items() if key.startswith('auxiliaries.')}
    two['agent']['weights'] = {key: value for key, value in two['agent']['weights'].items() if key not in heads}
    two['agent']['optims'] = {key: value for key, value in two['agent']['optims'].items() if not key.startswith('auxiliaries.')}
    assert heads and two['agent']['auxiliaries'].keys() == set(names) and one['agent']['update_count'] >= 10
    one['agent']['weights'], two['agent']['auxiliaries'] = dict(one['agent']['weights']), {}
    for here, there in zip(one['rows'], two['rows'], strict=True):  # a longer window keeps more rows behind those that can be drawn
        for name in (name for name in here if np.ndim(here[name])):
            newest = min(len(here[name]), len(there[name]))
            assert newest >= 15
            here[name], there[name] = here[name][-newest:], there[name][-newest:]
    same(one, two)


WAYS = [('gym/CartPole-v1', ('evaluate_per_steps=40',)), ('gym/Pendulum-v1', ('evaluate_episodes=6', 'evaluate_envs=3')),
        ('gym/CartPole-v1', ('agent.eval_epsilon=0.5',)), ('gym/CartPole-v1', ('log_per_steps=7', 'agent_log=false')),
        ('gym/Pendulum-v1', ('save_per_steps=0',)), ('gym/CartPole-v1', ('save_per_steps=6', 'replay.store=ram')),
        ('gym/CartPole-v1', ('plotting.plot=true', 'plot_per_steps=100', 'logger.tensorboard=true')),
        ('atari/breakout', ('log_video=true', 'evaluate_per_steps=100', 'env_threads=2'))]


@pytest.mark.parametrize('task, options', WAYS, ids=lambda value: value if isinstance(value, str) else ' '.join(value))
def test_how_a_run_is_looked_at_changes_nothing(task, options, watched):
    plain, other = watched[task], watched['run'](task, *options)
    same(training(plain), training(other))
    if not any('evaluate' in option or 'eval_' in option for option in options):
        same({'eval': rows(folder(plain) / 'eval.csv')}, {'eval': rows(folder(other) / 'eval.csv')})
    if 'evaluate_per_steps=40' in options:  # an evaluation depends on the weights and the step, not on those before it
        often = {row['step']: row for row in rows(folder(other) / 'eval.csv')}
        assert len(often) == 7 and all(differences(row, often[row['step']]) == [] for row in rows(folder(plain) / 'eval.csv'))


def test_another_seed_changes_every_stream(watched, tmp_path):
    one, two = (checkpoint(watched['run']('gym/CartPole-v1', f'seed={seed}')) for seed in (1, 2))
    weights = differences(one['agent']['weights'], two['agent']['weights'])
    assert any('critic' in line for line in weights), 'the initialisation'
    for stream in ('acting', 'learning', 'evaluating'):
        assert differences(one['agent']['generators'][stream], two['agent']['generators'][stream]), stream
    (one,), (two,) = one['processes'], two['processes']
    assert differences(one['environment']['stack'], two['environment']['stack'])
    assert one['replay']['rng'] != two['replay']['rng']


def test_streams_are_independent_of_one_another(tmp_path):
    """The episodes that a lane meets depend on the seed and the lane alone: not on other lanes, nor on who plays."""
    def first_frames(*options):
        run = values(tmp_path / str(random.random()), 'gym/CartPole-v1', 'train_steps=3', 'evaluate_per_steps=0', *options)
        complete(run)
        return [lane['obs'][0] for lane in replay(run)]
    two, three, other_agent = first_frames('num_envs=2'), first_frames('num_envs=3'), first_frames('num_envs=3', 'Agent=Random')
    assert np.array_equal(two, three[:2]) and np.array_equal(three, other_agent)
    assert len({frame.tobytes() for frame in three}) == 3, 'lanes differ'
