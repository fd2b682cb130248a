"""Auxiliary losses that join the agent's own steps of its encoder, encoders that are frozen, and encoders that are pre-trained by such losses alone."""
import copy
import math

import pytest
import torch
from torch import nn

import Run
from Blocks.Block import Block
from Blocks.Encoders import Encoder
from Hparams.Compose import ConfigError, compose_args
from tests.Agents.small import BOX, DISCRETE, IMAGE, VECTOR, filled_replay, make_dqn, parameters, same
from tests.Agents.test_ppo import make as make_ppo
from tests.Agents.test_ppo import rolled
from tests.Blocks.losses import attached, recipe, sac
from tests.Blocks.test_auxiliary import CHOICES
from tests.runs import checkpoint, folder, rows, values
from Utils import NonFinite, optimise


def joined(agent, obs=VECTOR, action=BOX, name='byol', **options):
    return attached(agent, obs, action, **{name: recipe(name) | {'grad': 'sum'} | options})


# --- the step

class Given:
    """A loss that joins with a gradient that it was given."""

    def __init__(self, *gradient):
        self.given, self.followed = torch.tensor(gradient), 0

    def gradient(self, own, parameters):
        self.own = own.clone()
        for p in parameters:
            p.grad = None
        return self.given

    def follow(self):
        self.followed += 1


class Line(Block):
    def __init__(self):
        super().__init__()
        self.w, self.unused = nn.Parameter(torch.tensor([[1.0], [2.0]])), nn.Parameter(torch.tensor(3.0))
        self.optim = torch.optim.SGD(self.parameters(), lr=0.5)


def test_gradients_of_losses_that_join_are_added_to_the_blocks_own():
    line = Line()
    line.joining = [Given(1.0, 0.0, 5.0), Given(0.0, 10.0, 0.0)]
    norm = optimise((line.w * torch.tensor([[3.0], [4.0]])).sum(), line, grad_clip=1e6)
    assert torch.equal(line.w.detach(), torch.tensor([[1 - 0.5 * 4], [2 - 0.5 * 14.0]])) and line.unused.item() == 3 - 0.5 * 5
    assert [one.own.tolist() for one in line.joining] == [[3, 4, 0]] * 2, 'each sees what the agent alone would do'
    assert [one.followed for one in line.joining] == [1, 1] and norm.item() == pytest.approx(math.sqrt(4 ** 2 + 14 ** 2 + 5 ** 2))


def test_the_norm_is_that_before_the_clip():
    line = Line()
    assert optimise((line.w * 3).sum(), line, grad_clip=0.1).item() == pytest.approx(math.sqrt(18))
    assert line.w.grad.norm().item() == pytest.approx(0.1, rel=1e-4)
    assert math.isnan(optimise((line.w * 3).sum(), line).item())


class Chosen(nn.Module):
    """What an auxiliary loss is to JoiningLoss, with a gradient of our choice."""

    def __init__(self, gradient, projects, weight=1.0):
        super().__init__()
        self.name, self.projects, self.weight, self.chosen = 'mine', projects, weight, gradient

    def step(self, replay, agent):
        self.parameter.grad = self.chosen.clone()
        return {'mine_loss': torch.tensor(2.0)}


@pytest.mark.parametrize('projects', [False, True])
@pytest.mark.parametrize('weight', [1.0, 0.25])
def test_projection_is_its_formula(projects, weight):
    from Blocks.Auxiliary import JoiningLoss
    random, opposed = torch.Generator().manual_seed(0), 0
    for _ in range(40):
        own, mine = torch.randn(2, 7, generator=random)
        parameter = nn.Parameter(torch.zeros(7))
        loss = Chosen(mine, projects, weight)
        object.__setattr__(loss, 'parameter', parameter)
        joining = JoiningLoss(loss, None, None)
        added = joining.gradient(own.clone(), [parameter]).double()
        deep_own, deep = own.double(), mine.double()
        dot = deep_own @ deep
        if projects and dot < 0:
            deep = deep - dot / (deep_own @ deep_own) * deep_own
        torch.testing.assert_close(added, weight * deep, rtol=1e-5, atol=1e-6)
        metrics = joining.metrics
        assert metrics['mine_cosine'].item() == pytest.approx((dot / own.double().norm() / mine.double().norm()).item(), rel=1e-5)
        assert ('mine_projected' in metrics) == projects and metrics.get('mine_projected', dot < 0) == (dot < 0)
        opposed += int(dot < 0)
        if projects:
            assert added @ deep_own > -1e-5
    assert 10 < opposed < 30


def test_without_a_gradient_of_the_agents_nothing_is_projected():
    from Blocks.Auxiliary import JoiningLoss
    parameter, loss = nn.Parameter(torch.zeros(3)), Chosen(torch.tensor([1.0, -2, 3]), True)
    object.__setattr__(loss, 'parameter', parameter)
    assert JoiningLoss(loss, None, None).gradient(torch.zeros(3), [parameter]).tolist() == [1, -2, 3]


def gradient_of(loss, replay, encoder):
    """An auxiliary loss's gradient of the encoder on the batch that it will draw next. Nothing of it is moved."""
    twin = copy.deepcopy(loss)  # its streams too
    copied = twin.parts.encoder
    copied.zero_grad()
    batch = replay.sample(twin.batch_size, horizon=twin.horizon, rng=twin.draws)
    with torch.random.fork_rng():
        torch.manual_seed(int(twin.draws.integers(2 ** 63)))
        twin.loss(batch)[0].backward()
    return [p.grad for p in copied.parameters()]


@pytest.mark.parametrize('weight', [1.0, 0.1])
@pytest.mark.parametrize('name', ['byol', 'curl', 'spr', 'a2_winner'])
def test_the_encoders_step_is_on_the_sum_of_both_losses(name, weight):
    """Against gradients that are worked out apart: those of the agent without the loss, and those of the loss."""
    sgd = {'encoder': {'optim': {'_target_': 'SGD'}}}
    alone, both = (sac(recipes=sgd) for _ in range(2))
    joined(both, name=name, weight=weight)
    replay = filled_replay(VECTOR, BOX, window=9)
    before, added = parameters(both.encoder), gradient_of(both.losses[name], replay, both.encoder)
    own = []
    alone.encoder.joining = [type('Watch', (), {'gradient': lambda self, flat, parameters: own.append(flat) or torch.zeros_like(flat),
                                                'follow': lambda self: None})()]
    alone.learn(filled_replay(VECTOR, BOX, window=9))
    metrics = both.improve(replay)
    own = own[0].split([p.numel() for p in before])
    for was, p, mine, theirs in zip(before, both.encoder.parameters(), own, added, strict=True):
        torch.testing.assert_close(p.detach(), was - both.encoder.optim.param_groups[0]['lr'] * (mine.view_as(p) + weight * theirs), rtol=1e-4, atol=1e-7)
    assert max(theirs.abs().max() for theirs in added) > 1e-6 and {f'{name}_loss', f'{name}_cosine'} <= metrics.keys()


@pytest.mark.parametrize('grad', ['sum', 'project'])
@pytest.mark.parametrize('name', CHOICES)
@pytest.mark.parametrize('make, obs, action', [(sac, VECTOR, BOX), (make_dqn, IMAGE, DISCRETE)], ids=['SAC', 'DQN'])
def test_every_loss_may_join_any_agent(make, obs, action, name, grad):
    agent = joined(make(obs, action), obs, action, name, grad=grad)
    loss, replay = agent.losses[name], filled_replay(obs, action, window=9)
    heads = {key: p.detach().clone() for key, p in loss.named_parameters() if p.requires_grad}
    held = {id(p) for group in loss.optim.param_groups for p in group['params']}
    assert not held & {id(p) for p in agent.encoder.parameters()}, "the encoder is stepped by the agent's optimiser alone"
    steps = agent.encoder.optim.state
    for _ in range(3):
        metrics = agent.improve(replay)
    assert all(value['step'] == 3 for value in steps.values()) and agent.encoder.joining == ()
    assert all(not torch.equal(p, heads[key]) for key, p in loss.named_parameters() if p.requires_grad)
    assert all(torch.isfinite(value) for value in metrics.values()) and (f'{name}_projected' in metrics) == (grad == 'project')
    assert -1 <= metrics[f'{name}_cosine'] <= 1


@pytest.mark.parametrize('grad', ['sum', 'project'])
def test_on_a_rollout_it_joins_every_minibatch(grad):
    agent = joined(make_ppo(encoder='mlp', epochs=3), VECTOR, DISCRETE, grad=grad)
    calls, followed = [], []
    loss = agent.losses['byol']
    step, follow = loss.step, loss.follow
    loss.step, loss.follow = (lambda *given: calls.append(1) or step(*given)), (lambda: followed.append(1) or follow())
    metrics = agent.improve(rolled(agent, VECTOR, DISCRETE))
    assert len(calls) == len(followed) == agent.steps_per_learn == 6 and agent.update_count == 6
    assert metrics['byol_loss'] > 0 and ('byol_projected' not in metrics or 0 <= metrics['byol_projected'] <= 1)


def test_projection_never_leaves_what_opposes_the_agent():
    agent = joined(make_ppo(encoder='mlp', epochs=4, minibatches=5), VECTOR, DISCRETE, grad='project')
    added, join = [], Block.join

    def watched(block):
        before = torch.cat([p.grad.flatten() for p in block.parameters()])
        join(block)
        added.append((before, torch.cat([p.grad.flatten() for p in block.parameters()]) - before))
    agent.encoder.join = lambda: watched(agent.encoder)
    metrics = agent.improve(rolled(agent, VECTOR, DISCRETE))
    cosines = [(own @ mine / own.norm() / mine.norm()).item() for own, mine in added]
    assert len(cosines) == 20 and min(cosines) > -1e-4 and 0 < metrics['byol_projected'] < 1


def test_a_weight_of_0_does_not_join():
    plain_agent, watched = sac(), joined(sac(), weight=0)
    for agent in (plain_agent, watched):
        replay = filled_replay(VECTOR, BOX, window=9)
        for _ in range(3):
            agent.improve(replay)
    theirs = watched.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in plain_agent.state_dict().items())


def test_an_agent_that_never_steps_its_encoder_says_so():
    agent = joined(sac())
    agent.learn = lambda replay: {}
    with pytest.raises(ValueError, match='aux.byol.grad: SAC took no step of its encoder that a loss could join; grad=own'):
        agent.improve(filled_replay(VECTOR, BOX))
    without = sac()
    del without.encoder.optim
    with pytest.raises(ValueError, match='aux.byol.grad=sum: expected own: the encoder of SAC has no optimiser of its own'):
        joined(without)


def test_a_loss_that_is_not_finite_leaves_the_encoder_as_it_was():
    agent = joined(sac())
    agent.losses['byol'].predictor[0].weight.data.fill_(math.nan)
    before = parameters(agent.encoder)
    with pytest.raises(NonFinite, match='byol_loss is nan'):
        agent.improve(filled_replay(VECTOR, BOX))
    assert same(before, parameters(agent.encoder)) and agent.encoder.joining == ()


def test_a_run_is_not_gone_on_with_another_way_to_join():
    agent, other = joined(sac(), grad='own'), joined(sac(), grad='project')
    agent.improve(filled_replay(VECTOR, BOX))
    with pytest.raises(ValueError, match=r'^aux\.byol: the saved optimiser has \[12, 6\] parameters, this one \[12\]; resume with the options'):
        other.load_state(agent.state())
    frozen = sac(recipes=MOVING, encoder='mlp')
    with pytest.raises(ValueError, match=r"auxiliary losses \['byol'\], this one \[\] \(recipes.encoder.freeze=true leaves losses out\)"):
        frozen.load_state(agent.state())


def test_pretraining_clips_as_learning_does():
    agent = joined(make_ppo(encoder='mlp', pretrain_steps=30, grad_clip=1e-6))
    agent.step, norms = 10, []
    step = agent.encoder.optim.step
    agent.encoder.optim.step = lambda: norms.append(torch.cat([p.grad.flatten() for p in agent.encoder.parameters()]).norm().item()) or step()
    agent.improve(rolled(agent, VECTOR, DISCRETE))
    assert len(norms) == agent.steps_per_learn and max(norms) <= 1.01e-6


def test_copies_of_an_encoder_do_not_hold_what_joins_it():
    agent = joined(sac())
    with agent.joined(filled_replay(VECTOR, BOX)):
        assert agent.encoder.frozen_copy().joining == ()
        agent.encoder.joining[0].steps = 1


# --- frozen

MOVING = {'encoder': {'eyes': {'_target_': 'tests.Blocks.test_auxiliary.MovingEyes'}, 'freeze': True}}
FROZEN = {'encoder': {'eyes': {'_target_': 'NatureCNN', 'width': 0.125}, 'freeze': True}}


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize('make, obs, action, recipes', [(sac, VECTOR, BOX, MOVING), (make_dqn, IMAGE, DISCRETE, FROZEN)], ids=['SAC', 'DQN'])
def test_a_frozen_encoder_keeps_its_bits(make, obs, action, recipes):
    agent = make(obs, action, recipes=recipes, **({'encoder': 'mlp'} if make is sac else {}))
    before, heads = state_of(agent.encoder), parameters(agent.critic)
    replay = filled_replay(obs, action)
    for _ in range(3):
        agent.improve(replay)
        agent.mode(training=False)
    assert all(torch.equal(value, before[name]) for name, value in agent.encoder.state_dict().items())
    assert not any(torch.equal(a, b) for a, b in zip(heads, parameters(agent.critic), strict=True) if a.numel() > 8)
    assert not any(part.training for part in agent.encoder.modules()), 'no dropout either'


@pytest.mark.parametrize('shared', [True, False])
def test_a_frozen_encoder_of_ppo_keeps_its_bits_and_its_moments(shared):
    agent = make_ppo(VECTOR, BOX, recipes=MOVING, encoder='mlp', normalise_obs=True, shared=shared)
    before, heads = state_of(agent.encoder), parameters(agent.actor)
    agent.improve(rolled(agent, VECTOR, BOX))
    assert all(torch.equal(value, before[name]) for name, value in agent.encoder.state_dict().items()) and 'normaliser.mean' in before
    assert not same(heads, parameters(agent.actor))


RUN = ('gym/CartPole-v1', 'Agent=PPO', 'num_envs=4', 'seed_steps=0', 'learn_per_steps=80', 'agent.rollout_steps=20', 'evaluate_per_steps=0', 'aux=byol',
       'aux.byol.batch_size=32', 'encoder=mlp', 'normalise_obs=false')


def weights(run, part):
    return {name: value for name, value in checkpoint(run)['agent']['weights'].items() if name.startswith(f'{part}.')}


def test_pretrained_then_frozen(tmp_path, capfd):
    """The workflow of the exploration repository: a loss alone, then reinforcement learning on what it made."""
    first = values(tmp_path, *RUN, 'train_steps=320', 'pretrain_steps=320', 'experiment=before')
    Run.run(first)
    drawn = values(tmp_path, *RUN, 'train_steps=0', 'experiment=drawn', 'evaluate_episodes=1')
    Run.run(drawn)
    for part, moves in (('encoder', True), ('actor', False), ('critic', False), ('auxiliaries', True)):
        own, old = weights(first, part), weights(drawn, part)
        floats = [name for name, value in own.items() if value.is_floating_point()]
        assert any(not torch.equal(own[name], old[name]) for name in floats) == moves, part
    told = rows(folder(first) / 'train.csv')
    assert told[-1]['byol_loss'] and not told[-1].get('policy_loss') and \
        checkpoint(first)['agent']['update_count'] == 4 * first['agent']['epochs'] * first['agent']['minibatches']
    capfd.readouterr()
    second = values(tmp_path, *RUN, 'train_steps=320', 'recipes.encoder.freeze=true', 'experiment=after',
                    f'load_path={folder(first)}')
    Run.run(second)
    assert 'aux=byol makes no difference: recipes.encoder.freeze=true (aux.byol.weight=0 trains its heads alone)' in capfd.readouterr().out
    same_bits = weights(second, 'encoder')
    assert same_bits and all(torch.equal(value, same_bits[name]) for name, value in weights(first, 'encoder').items())
    assert any(not torch.equal(value, weights(second, 'actor')[name]) for name, value in weights(first, 'actor').items())
    assert not weights(second, 'auxiliaries')


def test_an_unknown_key_beside_freeze_is_refused():
    with pytest.raises(ConfigError, match='recipes.encoder.frezee: no such part'):
        compose_args(['task=gym/CartPole-v1', '+recipes.encoder.frezee=true'])
    with pytest.raises(ConfigError, match='recipes.encoder.freeze=3: expected true or false'):
        compose_args(['task=gym/CartPole-v1', 'recipes.encoder.freeze=3'])


# --- pre-training

@pytest.mark.parametrize('grad', ['own', 'sum'])
def test_pretraining_moves_the_encoder_alone(grad):
    agent = attached(sac(pretrain_steps=100), VECTOR, BOX, byol=recipe('byol') | {'grad': grad})
    replay = filled_replay(VECTOR, BOX)
    before = {name: p.detach().clone() for name, p in agent.named_parameters()}
    agent.step = 100
    metrics = agent.improve(replay)
    moved = {name.partition('.')[0] for name, p in agent.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {'encoder', 'auxiliaries'} and 'critic_loss' not in metrics and metrics['byol_loss'] > 0 and agent.update_count == 1
    agent.step = 101
    metrics = agent.improve(replay)
    assert 'critic_loss' in metrics and 'byol_loss' in metrics and not same([before['critic.' + name] for name, _ in agent.critic.named_parameters()],
                                                                            parameters(agent.critic))


def test_pretraining_on_a_rollout_takes_as_many_steps_as_learning_would():
    agent = attached(make_ppo(encoder='mlp', epochs=3, pretrain_steps=30), VECTOR, DISCRETE, byol=recipe('byol') | {'grad': 'project'})
    before, policy = parameters(agent.encoder), parameters(agent.actor)
    agent.step = 30
    metrics = agent.improve(rolled(agent, VECTOR, DISCRETE))
    assert agent.update_count == 6 and metrics['byol_projected'] == 0 and same(policy, parameters(agent.actor))
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(agent.encoder), strict=True))
    assert all(state['step'] == 6 for state in agent.encoder.optim.state.values())


def test_a_frozen_encoder_is_not_pretrained(tmp_path):
    with pytest.raises(ValueError, match='pretrain_steps=80: recipes.encoder.freeze=true leaves nothing to train; choose one of the two'):
        Run.run(values(tmp_path, *RUN, 'pretrain_steps=80', 'recipes.encoder.freeze=true'))


def test_pretraining_wants_a_loss_that_trains():
    for losses in ({}, {'byol': recipe('byol', 'aux.byol.weight=0')}):
        with pytest.raises(ValueError, match='pretrain_steps=5: expected an auxiliary loss that trains the encoder, such as aux=byol; or 0'):
            attached(sac(pretrain_steps=5), VECTOR, BOX, **losses)
    with pytest.raises(ConfigError, match='pretrain_steps=-1: expected 0 or more'):
        compose_args(['task=gym/CartPole-v1', 'aux=byol', 'pretrain_steps=-1'])


def test_a_frozen_encoder_is_an_encoder():
    assert Encoder(VECTOR, {'freeze': True}, eyes='MLP').frozen and not Encoder(VECTOR, {}, eyes='MLP').frozen
