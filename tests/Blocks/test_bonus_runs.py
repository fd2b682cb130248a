"""Bonuses in an agent and in runs: what they leave alone, what is saved of them, what of the command line is refused."""
import copy
import signal

import pytest
import torch
from torch import nn

import Run
from Blocks.Auxiliary import Parts
from Blocks.Block import Block
from Blocks.Exploration import RND
from Datasets.Specs import ObsSpec
from Environment import Environment
from Hparams.Compose import ConfigError, compose_args
from tests.Agents.small import BOX, DISCRETE, VECTOR, filled_replay, look, make_dqn, observations, parameters, same
from tests.Agents.test_ppo import make as make_ppo
from tests.Agents.test_ppo import rolled
from tests.Agents.test_sac import make as make_sac
from tests.Blocks.test_exploration import explored, ppo
from tests.runs import Shot, checkpoint, folder, start, values


def test_a_bonus_without_weight_leaves_the_agent_as_it_is():
    """Its random streams are its own."""
    ends = []
    for weight in (None, 0):
        agent = make_dqn(seed=3) if weight is None else explored(make_dqn(seed=3), num_envs=2, weight=weight)
        replay = filled_replay(VECTOR, DISCRETE)
        if weight is not None:
            agent.bonuses(*(observations(2), torch.zeros(2, dtype=torch.int64), observations(2)))
        for _ in range(5):
            agent.improve(replay)
        ends.append((agent.act(look(6))[0], [parameters(block) for block in (agent.encoder, agent.critic)]))
    assert torch.equal(ends[0][0], ends[1][0]) and all(map(same, ends[0][1], ends[1][1]))


def test_everything_of_a_bonus_is_saved():
    agent, other = ppo(seed=1), ppo(seed=2)
    agent.learn(rolled(agent, VECTOR, DISCRETE))
    other.load_state(copy.deepcopy(agent.state()))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in agent.state_dict().items())
    kinds = {name.split('.')[1] for name in agent.state_dict() if name.startswith('bonus.')}
    assert kinds == {'filter', 'moments', 'target', 'predictor'} and 'bonus' in agent.state()['optims']
    ours, theirs = (a.learn(rolled(a, VECTOR, DISCRETE)) for a in (agent, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(ValueError, match='the saved agent has a bonus for exploration, this one has none'):
        make_ppo(intrinsic=True).load_state(agent.state())


@pytest.mark.parametrize('options', [{'input': 'encoder'}, {'input': 'encoder_ema'}], ids=str)
def test_a_bonus_of_other_sizes_is_not_gone_on_with(options):
    """A fused optimiser would write the moments of the old parameters beyond the ends of the new ones."""
    agent = ppo(encoder='mlp')
    agent.learn(rolled(agent, VECTOR, DISCRETE))
    other = ppo(encoder='mlp', rnd=options)
    before = parameters(other)
    with pytest.raises(ValueError, match=r'^explore\.rnd has another \w+ than the saved one: resume with the options of explore\.rnd'):
        other.load_state(agent.state())
    assert same(before, parameters(other))
    block, smaller = nn.Linear(3, 2), nn.Linear(2, 2)
    for one in (block, smaller):
        one.optim = torch.optim.AdamW(one.parameters(), fused=True)
        one(torch.ones(1, one.in_features)).sum().backward()
        one.optim.step()
    with pytest.raises(ValueError, match='the saved optimiser holds 6 numbers of a parameter that has 4'):
        load_optim(smaller, block.optim.state_dict())


def load_optim(part, state):
    held = Block()
    held.optim = part.optim
    held.load_optim(state)


def test_statistics_of_other_lanes_are_refused():
    agent = ppo()
    with pytest.raises(ValueError, match='the saved agent has statistics of 2 lanes, this one of 3: resume with the num_envs of the run'):
        agent.load_lanes({'bonus.filter.filtered': torch.zeros(2)})


@pytest.mark.parametrize('make', [make_dqn, make_sac], ids=['DQN', 'SAC'])
def test_a_bonus_looks_through_the_encoder_as_acting_does(make):
    """With a batch norm in it: neither do what others show nor what is looked at move its moments."""
    eyes = {'encoder': {'eyes': {'_target_': 'tests.Agents.test_ppo.MovingFeatures'}}}
    action = DISCRETE if make is make_dqn else BOX
    agent = explored(make(VECTOR, action, recipes=eyes, encoder='mlp'), VECTOR, action, input='encoder')
    agent.mode(training=True)
    norm, obs = agent.encoder.eyes.layers[1], observations(3, seed=1)
    seen = []
    see = agent.bonus.see
    agent.bonus.see = lambda obs: seen.append(see(obs)) or seen[-1]
    agent.bonuses(obs, torch.zeros(3, dtype=torch.int64) if action.discrete else torch.zeros(3, 2), observations(3, seed=2))
    assert not norm.running_mean.any() and torch.allclose(seen[0][:1], see(obs[:1]))
    before = norm.running_mean.clone()
    agent.bonus.learn_drawn(filled_replay(VECTOR, action), agent)
    assert torch.equal(norm.running_mean, before) and agent.encoder.training, 'learning goes on as it was'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_first_random_steps_leaves_nothing_behind(tmp_path, number):
    run = values(tmp_path, 'gym/CartPole-v1', 'Agent=RND', 'num_envs=2', 'train_steps=80', 'seed_steps=0', 'learn_per_steps=40', 'agent.rollout_steps=20',
                 'explore.rnd.warmup_steps=5000', 'evaluate_per_steps=0', 'evaluate_episodes=1')
    outcome = start(run, Shot(40, 'Session.warm_up', 1, number))
    assert outcome.code == 128 + number and 'stopped before the first step' in outcome.said and 'Traceback' not in outcome.said, outcome
    assert '5000 random steps of each of 2 lanes come first' in outcome.said and not folder(run).exists()


def test_weights_without_a_bonus_begin_one_anew():
    agent = explored(make_dqn(seed=1))
    before = parameters(agent.bonus.predictor)
    agent.load_weights(make_dqn(seed=2).state_dict())
    assert same(before, parameters(agent.bonus.predictor)) and same(parameters(agent.critic), parameters(make_dqn(seed=2).critic))


def test_random_steps_precede_the_run_and_are_not_counted(tmp_path, monkeypatch):
    steps = []
    advance = Environment.advance
    monkeypatch.setattr(Environment, 'advance', lambda self, action: steps.append(self.num_envs) or advance(self, action))
    run = values(tmp_path, 'gym/CartPole-v1', 'Agent=RND', 'num_envs=2', 'train_steps=80', 'seed_steps=0', 'learn_per_steps=40', 'agent.rollout_steps=20',
                 'explore.rnd.warmup_steps=150', 'evaluate_per_steps=0', 'evaluate_episodes=1')
    Run.run(run)
    assert steps[:150] == [2] * 150 and set(steps[150:]) == {1}, 'the others are those of evaluation'
    state = checkpoint(run)
    assert state['step'] == 80 and state['agent']['weights']['bonus.moments.count'].item() == pytest.approx(300 + 80 + 1e-4, abs=1e-9)
    assert state['agent']['weights']['bonus.filter.count'].item() == pytest.approx(80 + 1e-4, abs=1e-9)


@pytest.mark.parametrize('options, message', [
    ({'weight': -1}, 'explore.rnd.weight=-1: expected 0 or more'), ({'discount': 1.0}, 'explore.rnd.discount=1.0'),
    ({'update_proportion': 0}, 'explore.rnd.update_proportion=0'), ({'input': 'pixel'}, 'explore.rnd.input=pixel: expected obs, encoder'),
    ({'ema_tau': 2}, 'explore.rnd.ema_tau=2'), ({'warmup_steps': -1}, 'explore.rnd.warmup_steps=-1'), ({'batch_size': 0}, 'explore.rnd.batch_size=0')], ids=str)
def test_a_wrong_value_is_one_line(options, message):
    with pytest.raises(ValueError) as error:
        explored(make_dqn(), **options)
    assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('lanes, here, share', [(16, 16, 1.0), (32, 16, 1.0), (64, 16, 0.5), (128, 64, 0.25)])
def test_the_predictor_learns_from_as_much_as_32_lanes_would_bring(lanes, here, share):
    """Lanes of all processes, however many of them are here."""
    parts = Parts(None, None, None, VECTOR, DISCRETE)
    assert RND(parts=parts, num_envs=here, total_envs=lanes).update_proportion == share
    assert RND(parts=parts, num_envs=here, total_envs=lanes, update_proportion=0.75).update_proportion == 0.75


def test_images_too_small_for_the_convolutions():
    tiny = ObsSpec((1, 20, 20), frame_stack=2)
    with pytest.raises(ValueError, match=r'explore=rnd: observations of \(1, 20, 20\) are too small .*input=encoder has the agent'):
        RND(parts=Parts(None, None, None, tiny, DISCRETE), name='rnd')


@pytest.mark.parametrize('arguments, message', [
    (['explore=rdn'], 'explore=rdn: no such explore; nearest: rnd'), (['explore=rnd', 'explore.rnd.wieght=1'], 'explore.rnd.wieght'),
    (['explore=no_such.Bonus'], "no module 'no_such'"), (['explore=[rnd,tests.Blocks.test_own_bonus.Counts]'], 'expected one bonus')], ids=str)
def test_misspelt_bonuses_are_refused(arguments, message):
    with pytest.raises(ConfigError) as error:
        compose_args(['task=gym/CartPole-v1', *arguments])
    assert message in str(error.value)


def test_a_composed_run_of_the_paper():
    values = compose_args(['task=atari/montezuma_revenge', 'Agent=Agents.RND'])
    assert values['plugs'] == ['rnd'] and values['explore']['rnd']['warmup_steps'] == 6400 and values['num_envs'] == 128
    assert values['train_steps'] == 30_000 * 128 * 128 and values['learn_per_steps'] == 128 * 128 and values['discount'] == 0.999
    assert values['environment']['preset'] == 'v5' and values['environment']['max_frames'] == 18000 and values['grad_clip'] is None
    assert compose_args(['task=atari/montezuma_revenge', 'Agent=Agents.RND', 'explore=none'])['explore'] == {}
    own = compose_args(['task=gym/CartPole-v1', 'Agent=Agents.DQN', 'explore=tests.Blocks.test_own_bonus.Counts', '+explore.Counts.grid=3'])
    assert own['plugs'] == ['Counts'] and own['explore']['Counts']['grid'] == 3
