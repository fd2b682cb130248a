"""A full disk, no renderer, a simulator that dies, numbers that are none: one clear line, and the last checkpoint is good."""
import dataclasses
import errno

import gymnasium
import numpy as np
import pytest
import torch

import Checkpoint
import Session as session_module
from Datasets.Batch import Batch
from tests.conftest import assert_one_line, lines
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


gymnasium.register('Troubled-v0', 'tests.test_bad_machine:Troubled')


def test_a_space_that_is_neither_box_nor_discrete(graft):
    gymnasium.register('Dictionary-v0', lambda: Troubled())
    graft.monkeypatch.setattr(Troubled, 'observation_space', gymnasium.spaces.Dict(a=gymnasium.spaces.Discrete(2)))
    assert_one_line(graft.main(*lines('task=gym/Dictionary-v0')), 'task=gym/Dictionary-v0: observations are Dict, expected Box or Discrete')
    assert graft.files() == []


@pytest.mark.render
@pytest.mark.parametrize('backend, message', [('nonsense', 'MUJOCO_GL=nonsense: expected egl or osmesa'),
                                              ('glfw', 'MUJOCO_GL=glfw does not work here; rendering needs OpenGL')])
def test_a_renderer_that_does_not_work_is_one_line(graft, monkeypatch, backend, message):
    monkeypatch.setenv('MUJOCO_GL', backend)
    monkeypatch.delenv('DISPLAY', raising=False)
    said = graft.main(*lines('task=dmc/cheetah_run', 'Agent=Random'))
    assert_one_line(said, message)
    assert graft.files() == []


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


@pytest.mark.parametrize('trouble, at, told', [('obs', 25, 'the value of what is seen is nan at step 25'), ('obs', 30, 'loss is nan at step 40'),
                                                ('reward', 30, 'loss is nan at step 40')])
def test_on_a_rollout_too(graft, trouble, at, told):
    """What a policy would draw its actions from is no number: told at once, in a line. At step 30 an episode ends, and nothing is drawn from what it shows."""
    options = ('task=gym/Troubled-v0', f'+environment.kwargs={{trouble:{trouble},at:{at}}}', 'Agent=PPO', 'num_envs=1', 'train_steps=200', 'save_per_steps=10',
               'agent.rollout_steps=20', 'learn_per_steps=20', 'agent.minibatches=2', 'seed_steps=0', 'normalise_obs=false', 'evaluate_per_steps=0',
               'evaluate_envs=1')
    left = graft.left(*options)
    graft.monkeypatch.setattr(session_module.Session, 'evaluate', lambda self: None)
    assert_one_line(graft.main(*lines(*options)), told, f'agent and batch are in {left.path / "nonfinite.pt"}', 'the last checkpoint is intact')
    assert Checkpoint.read(left.path / 'nonfinite.pt')['agent'] and left.state()['step'] >= 20


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
