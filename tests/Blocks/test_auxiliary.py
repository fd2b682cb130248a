"""Auxiliary losses: each in float64, whom they train, what they may see, any of them on any agent."""
import copy
import itertools
import math

import numpy as np
import pytest
import torch

from Agents.DQN import DQN
from Blocks.Auxiliary import Auxiliary
from Blocks.Auxiliary.SPR import renormalise
from Datasets.Batch import Batch
from Datasets.Specs import ObsSpec
from Hparams.Compose import ConfigError, compose_args
from tests.Agents.small import BOX, DISCRETE, VECTOR, filled_replay, parameters, same
from tests.Agents.test_sac import PIXELS, a2
from tests.Agents.test_sac import make as make_sac
from tests.Blocks.losses import attached, coordinates, crops, latents, names_that_moved, plain, recipe, sac, seen_by, window

CHOICES = ('curl', 'a2', 'a2_winner', 'a2_winner_formula', 'a2_winner_v', 'byol', 'barlow_twins', 'spr')


@pytest.mark.parametrize('name', ['a2_winner', 'byol', 'barlow_twins'])
def test_batch_norm_wants_two_samples(name):
    with pytest.raises(ValueError, match=rf'aux.{name}.batch_size=1: expected 2 or more'):
        attached(sac(), VECTOR, BOX, batch_size=1, **{name: recipe(name)})


class Told(Auxiliary):
    """A user's loss that returns what it is asked to."""

    answer = None

    def loss(self, batch):
        return self.answer(self.encode(batch.obs))


@pytest.mark.parametrize('answer, message', [
    (lambda z: z.mean(1), r'returned a tensor \(16,\)'), (lambda z: z.mean().detach(), r'returned a tensor \(\) without gradient'),
    (lambda z: 0.5, 'returned float'), (lambda z: None, 'returned NoneType'), (lambda z: (z.mean(), [1]), 'expected a scalar tensor')])
def test_a_loss_that_is_none_is_told_by_name(answer, message):
    agent = attached(sac(), VECTOR, BOX, mine={'_target_': 'tests.Blocks.test_auxiliary.Told'})
    agent.losses['mine'].answer = answer
    with pytest.raises(ValueError, match=f'aux.mine: Told.loss.*{message}'):
        agent.improve(filled_replay(VECTOR, BOX))
    agent.losses['mine'].answer = lambda z: z.square().mean()  # metrics are not needed
    assert agent.improve(filled_replay(VECTOR, BOX))['mine_loss'] > 0
    agent.losses['mine'].answer = lambda z: (z.square().mean(), {'three': 3.0})
    assert agent.improve(filled_replay(VECTOR, BOX))['mine_three'] == 3


def test_a_loss_without_a_loss_is_refused_at_once():
    with pytest.raises(ValueError, match='aux.mine=Auxiliary: expected a subclass of Auxiliary that defines loss'):
        attached(sac(), VECTOR, BOX, mine={'_target_': 'Blocks.Auxiliary.Auxiliary'})


def test_weights_of_another_loss_leave_copies_at_what_they_follow():
    """`load_path` of a run with other losses, or the same with other masks: the encoder is taken, and so are momentum copies of it."""
    source = attached(sac(seed=1), VECTOR, BOX, a2=a2())
    for losses in ({'byol': recipe('byol')}, {'a2': a2(output_s='00', tau=0.5)}):
        agent = attached(sac(seed=2), VECTOR, BOX, **losses)
        agent.load_weights(source.state_dict())
        (loss,) = agent.losses.values()
        assert same(parameters(agent.encoder), parameters(source.encoder)) and same(parameters(loss.own_target), parameters(source.encoder))
        with pytest.raises(ValueError, match=r"aux.a2 has another \w+ than the saved one|the auxiliary losses \['a2'\], this one \['byol'\]"):
            agent.load_state(source.state())


@pytest.mark.parametrize('arguments, message', [
    (['aux=cural'], 'aux=cural: no such aux; nearest: curl'), (['aux=curl', 'aux.curl.wieght=1'], 'aux.curl.wieght'),
    (['aux=no_such.Loss'], "no module 'no_such'")])
def test_misspelt_losses_are_refused(arguments, message):
    with pytest.raises(ConfigError) as error:
        compose_args(['task=gym/CartPole-v1', *arguments])
    assert message in str(error.value)


def test_curl_is_its_formula():
    agent = attached(sac(), VECTOR, BOX, curl=recipe('curl'))
    loss, obs = agent.auxiliaries['curl'], torch.randn(6, 3)
    for p in agent.target_encoder.parameters():
        p.data.mul_(1.1)
    value, metrics = loss.loss(plain(obs))
    q, k = latents(loss, obs, agent.encoder), latents(loss, obs, agent.target_encoder)  # on vectors both views are the observation itself
    logits = q @ loss.bilinear.detach().double().numpy() @ k.T
    expected = np.mean([np.log(np.exp(row - row.max()).sum()) + row.max() - row[i] for i, row in enumerate(logits)])
    assert value.item() == pytest.approx(expected, rel=1e-5) and metrics['accuracy'].item() == pytest.approx((logits.argmax(1) == np.arange(6)).mean())


def fixed_views(loss, *views):
    turns = itertools.cycle(views)
    loss.see = lambda obs: next(turns)


def test_byol_is_its_formula():
    agent = attached(sac(), VECTOR, BOX, byol=recipe('byol'))
    loss, one, two = agent.auxiliaries['byol'].eval(), torch.randn(6, 3), torch.randn(6, 3)
    for p in [*loss.target_projector.parameters(), *loss.own_target.parameters()]:
        p.data.mul_(1.1)
    fixed_views(loss, one, two)
    with torch.no_grad():
        value = loss.loss(plain(one))[0].item()
        deep = copy.deepcopy(loss).double()

        def distance(a, b):
            q = deep.predictor(deep.projector(torch.from_numpy(latents(loss, a, agent.encoder)))).numpy()
            z = deep.target_projector(torch.from_numpy(latents(loss, b, loss.own_target))).numpy()
            return np.mean([2 - 2 * x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(q, z, strict=True)])
        assert value == pytest.approx(distance(one, two) + distance(two, one), rel=1e-5) and 0 <= value <= 8


def test_barlow_twins_is_its_formula():
    agent = attached(sac(), VECTOR, BOX, barlow_twins=recipe('barlow_twins', 'aux.barlow_twins.projection_dim=7'))
    loss, one, two = agent.auxiliaries['barlow_twins'], torch.randn(40, 3), torch.randn(40, 3)
    fixed_views(loss, one, two)
    with torch.no_grad():
        value, metrics = loss.loss(plain(one))
        z = [copy.deepcopy(loss.projector).double()(torch.from_numpy(latents(loss, view, agent.encoder))).numpy() for view in (one, two)]
    z = [(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in z]
    c = z[0].T @ z[1] / 40
    expected = ((np.diag(c) - 1) ** 2).sum() + 0.0051 * sum(c[i, j] ** 2 for i in range(7) for j in range(7) if i != j)
    assert value.item() == pytest.approx(expected, rel=1e-4) and metrics['diagonal'].item() == pytest.approx(np.diag(c).mean(), rel=1e-4)


def test_spr_is_its_formula():
    agent = attached(sac(), VECTOR, BOX, spr=recipe('spr', 'aux.spr.horizon=3'))
    loss = agent.auxiliaries['spr']
    for p in agent.target_encoder.parameters():
        p.data.mul_(1.1)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1.0]])
    sequence = window(n=4, horizon=3, whole=mask)
    sequence.obs, sequence.action = torch.randn(4, 4, 3), torch.randn(4, 3, 2)
    with torch.no_grad():
        value = loss.loss(Batch(*[None] * 7, sequence=sequence))[0].item()
        deep, encoder, target = (copy.deepcopy(module).double() for module in (loss, agent.encoder, agent.target_encoder))
        z, losses = encoder.eyes(sequence.obs[:, 0].double()), []
        for k in range(3):
            z = deep.transition(z, sequence.action[:, k].double())
            y = deep.predictor(deep.projection(encoder.projection(z))).numpy()
            goal = deep.target_projection(target.represent(sequence.obs[:, k + 1].double())).numpy()
            losses += [2 - 2 * a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b, there in zip(y, goal, mask[:, k], strict=True) if there]
    assert len(losses) == 9 and value == pytest.approx(np.mean(losses), rel=1e-5)


def test_renormalised_features():
    x = torch.tensor([[[[1.0, 3.0], [2.0, 5.0]]], [[[4.0, 4.0], [4.0, 4.0]]]])
    torch.testing.assert_close(renormalise(x), torch.tensor([[[[0, 0.5], [0.25, 1]]], [[[0.0, 0], [0, 0]]]]), atol=1e-4, rtol=0)


def test_curl_draws_two_independent_crops():
    loss = attached(sac(PIXELS), PIXELS, BOX, curl=recipe('curl')).auxiliaries['curl']
    one, two = (crops(view) for view in seen_by(loss, plain(coordinates(64))))
    assert len(set(one)) > 10 and sum(a == b for a, b in zip(one, two, strict=True)) < 20
    assert {row for row, _ in one + two} == set(range(5)), 'every offset, the last one too (24 → 20)'


@pytest.mark.parametrize('name, changes', [('curl', False), ('byol', True), ('barlow_twins', True)])
def test_views_of_vectors(name, changes):
    """CURL's are the observation itself, as in A2LS; BYOL's and Barlow Twins' are scaled and noisy."""
    loss, obs = attached(sac(), VECTOR, BOX, **{name: recipe(name)}).auxiliaries[name], torch.ones(2000, 3)
    view = loss.see(obs)
    assert torch.equal(view, obs) != changes
    if changes:
        factor = view.mean(1)
        assert 0.75 < factor.min() < 0.85 and 1.15 < factor.max() < 1.25 and 0.005 < view.std(1).mean() < 0.015


def test_a_view_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r'aux.curl.views=RandomShift: expected an augmentation that shows the encoder \(6, 20, 20\)'):
        attached(sac(PIXELS), PIXELS, BOX, curl=recipe('curl', 'aux.curl.views=RandomShift'))


@pytest.mark.parametrize('obs', [VECTOR, PIXELS], ids=['vector', 'pixels'])
@pytest.mark.parametrize('name', CHOICES)
def test_a_step_reaches_the_encoder_and_its_own_heads_and_nothing_else(name, obs):
    agent = attached(sac(obs), obs, BOX, **{name: recipe(name)})
    before = {key: value.detach().clone() for key, value in agent.named_parameters()}
    agent.auxiliaries[name].learn(filled_replay(obs, BOX, window=9), agent)
    moved = names_that_moved(agent, before)
    trained = {key for key in before if key.startswith('encoder.')}
    assert trained <= moved, f'left alone: {trained - moved}'
    own = {key for key in moved if key.startswith(f'auxiliaries.{name}.')}
    assert moved == trained | own
    copies = {key for key in before if 'own_target' in key or '.target_' in key}
    assert all(not before[key].requires_grad for key in copies) and not any(p.requires_grad for key, p in agent.named_parameters() if key in copies)
    heads = {key for key in before if key.startswith(f'auxiliaries.{name}.') and key not in copies}
    assert heads <= moved, f'heads left alone: {heads - moved}'


def test_the_encoder_moves_by_one_learning_rate_on_the_first_step():
    """The released code steps it twice, in two Adams. `weight` is the share of the learning rate."""
    for weight in (1.0, 0.25):
        agent = attached(sac(), VECTOR, BOX, a2=a2(weight=weight))
        before = parameters(agent.encoder)
        agent.auxiliaries['a2'].learn(filled_replay(VECTOR, BOX), agent)
        steps = torch.cat([(new - old).abs().flatten() for new, old in zip(parameters(agent.encoder), before, strict=True)])
        assert steps.max() <= 1e-3 * weight * 1.01 and steps.median() == pytest.approx(1e-3 * weight, rel=0.01)


def test_the_runs_schedule_and_clip_hold_for_losses_too():
    agent, moved = sac(), []
    agent.attach({'a2': a2()}, VECTOR, BOX, lr=1e-3, batch_size=16, lr_decay_steps=4, grad_clip=1e-9)
    loss, replay = agent.auxiliaries['a2'], filled_replay(VECTOR, BOX)
    rates = []
    for _ in range(4):
        rates.append(loss.optim.param_groups[0]['lr'])
        loss.learn(replay, agent)
        moved.append(sum(p.grad.square().sum() for group in loss.optim.param_groups for p in group['params']).sqrt().item())
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]) and max(moved) <= 1.01e-9


def test_a_loss_has_the_optimiser_of_the_agents_encoder_and_leaves_the_encoders_decay_to_it():
    agent = sac()
    agent.attach({'curl': recipe('curl', 'aux.curl.weight=0.25')}, VECTOR, BOX, lr=0.5, batch_size=16, weight_decay=0.1,
                 recipe={'optim': {'_target_': 'SGD'}, 'scheduler': {'_target_': 'StepLR', 'step_size': 1, 'gamma': 0.5}})
    loss, before = agent.auxiliaries['curl'], parameters(agent.encoder)
    heads, eyes = loss.optim.param_groups
    assert type(loss.optim) is torch.optim.SGD and [(g['lr'], g['weight_decay']) for g in (heads, eyes)] == [(0.5, 0.1), (0.125, 0)]
    old = loss.bilinear.detach().clone()
    loss.learn(filled_replay(VECTOR, BOX), agent)
    torch.testing.assert_close(loss.bilinear.detach(), old - 0.5 * (loss.bilinear.grad + 0.1 * old))
    for was, now in zip(before, agent.encoder.parameters(), strict=True):
        torch.testing.assert_close(now.detach(), was - 0.125 * now.grad)
    assert [group['lr'] for group in loss.optim.param_groups] == [0.25, 0.0625], 'the schedule'


@pytest.mark.parametrize('name, settings, message', [
    ('curl', {'views': 'RandomShift'}, r'aux.curl.views: RandomShift sees images \(C, H, W\), not'),
    ('curl', {'views': 'RandomShft'}, r'aux.curl.views: RandomShft: no such name; nearest: RandomShift'),
    ('byol', {'projection_dim': 0}, 'aux.byol.projection_dim=0: expected 1 or more'), ('byol', {'hidden_dim': 0}, 'aux.byol.hidden_dim=0: expected 1 or more'),
    ('spr', {'projection_dim': 0}, 'aux.spr.projection_dim=0: expected 1 or more'), ('spr', {'hidden_dim': 0}, 'aux.spr.hidden_dim=0: expected 1 or more'),
    ('barlow_twins', {'projection_dim': 0}, 'aux.barlow_twins.projection_dim=0: expected 1 or more'),
    ('barlow_twins', {'redundancy': -1.0}, 'aux.barlow_twins.redundancy=-1.0: expected 0 or more'),
    ('curl', {'weight': -1.0}, 'aux.curl.weight=-1.0: expected 0 or more'), ('curl', {'tau': 0.0}, 'aux.curl.tau=0.0: expected more than 0')])
def test_a_wrong_number_is_one_line(name, settings, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        attached(sac(), VECTOR, BOX, **{name: recipe(name) | settings})


@pytest.mark.parametrize('name', ['curl', 'byol', 'spr'])
def test_momentum_copies_move_by_exactly_tau(name):
    agent = attached(sac(), VECTOR, BOX, **{name: recipe(name, f'aux.{name}.tau=0.125')})
    loss = agent.auxiliaries[name]
    pairs = [('own_target', agent.encoder), *((copy_, getattr(loss, online)) for copy_, online in loss.copies)]
    before = {copy_: parameters(getattr(loss, copy_)) for copy_, _ in pairs}
    agents_own = parameters(agent.target_encoder)
    loss.learn(filled_replay(VECTOR, BOX), agent)
    for copy_, online in pairs:
        for old, new, follows in zip(before[copy_], parameters(getattr(loss, copy_)), parameters(online), strict=True):
            torch.testing.assert_close(new, 0.875 * old + 0.125 * follows, rtol=0, atol=1e-7)
    assert same(parameters(agent.target_encoder), agents_own), "the agent's own is the agent's to move"


def test_the_agents_copy_is_taken_where_it_has_one():
    agent = attached(sac(), VECTOR, BOX, curl=recipe('curl'))
    assert agent.auxiliaries['curl'].target_encoder is agent.target_encoder
    agent.target_encoder = None
    again = attached(agent, VECTOR, BOX, byol=recipe('byol', 'aux.byol.tau=null')).auxiliaries['byol']
    assert again.target_encoder is again.own_target


def dqn(obs, action):
    torch.manual_seed(0)
    recipes = {'aug': {}, 'encoder': {'eyes': {'_target_': 'NatureCNN', 'width': 0.125}} if obs.is_image else {}, 'critic': {}, 'actor': {}}
    return DQN(obs_spec=obs, action_spec=action, recipes=recipes, seed=0, hidden_dim=8, explore_steps=0, lr=1e-2, batch_size=8,
               encoder_hidden_dim=6, trunk_dim=5, encoder='auto' if obs.is_image else 'mlp')


IMAGE = ObsSpec((1, 36, 36), frame_stack=2)


@pytest.mark.parametrize('name', CHOICES)
@pytest.mark.parametrize('agent, obs, action', [('SAC', VECTOR, BOX), ('SAC', PIXELS, DISCRETE), ('DQN', IMAGE, DISCRETE), ('DQN', VECTOR, DISCRETE),
                                                ('DQN', IMAGE, BOX)],
                         ids=['SAC vector', 'SAC pixels discrete', 'DQN pixels', 'DQN vector', 'DQN pixels continuous'])
def test_every_loss_trains_every_agents_encoder(name, agent, obs, action):
    made = sac(obs, action) if agent == 'SAC' else dqn(obs, action)
    attached(made, obs, action, **{name: recipe(name)})
    replay, before = filled_replay(obs, action, window=9), parameters(made.encoder)
    for _ in range(3):
        metrics = made.improve(replay)
    assert all(torch.isfinite(value) for value in metrics.values()) and f'{name}_loss' in metrics
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(made.encoder), strict=True))


def test_several_losses_at_once_do_not_disturb_one_another():
    """Each has streams of its own: with another beside it, a loss draws the same batches and begins with the same heads."""
    alone, both = (attached(sac(), VECTOR, BOX, **{name: recipe(name) for name in names}) for names in (('curl',), ('curl', 'byol')))
    assert torch.equal(alone.auxiliaries['curl'].bilinear, both.auxiliaries['curl'].bilinear)
    replay = filled_replay(VECTOR, BOX)
    assert np.array_equal(replay.draw(9, alone.auxiliaries['curl'].draws), replay.draw(9, both.auxiliaries['curl'].draws))


@pytest.mark.parametrize('obs', [VECTOR, PIXELS], ids=['vector', 'pixels'])
@pytest.mark.parametrize('name', CHOICES)
def test_with_weight_0_the_agent_is_the_one_without_to_the_bit(name, obs):
    plain_agent, watched = sac(obs), attached(sac(obs), obs, BOX, **{name: recipe(name, f'aux.{name}.weight=0')})
    for agent in (plain_agent, watched):
        replay = filled_replay(obs, BOX, window=9)
        for _ in range(4):
            metrics = agent.improve(replay)
    theirs = {key: value for key, value in watched.state_dict().items() if not key.startswith('auxiliaries.')}
    assert theirs.keys() == plain_agent.state_dict().keys() and all(torch.equal(value, theirs[key]) for key, value in plain_agent.state_dict().items())
    for block in ('encoder', 'critic', 'actor', 'temperature'):
        one, two = (getattr(agent, block).optim.state_dict()['state'] for agent in (plain_agent, watched))
        assert all(torch.equal(one[p][key], two[p][key]) for p in one for key in one[p])
    assert torch.equal(plain_agent.learning.get_state(), watched.learning.get_state()) and f'{name}_loss' in metrics


def test_an_encoder_without_weights_says_so():
    with pytest.raises(ValueError, match=r'aux.curl.weight=1: expected 0, as this encoder has nothing to train; or an encoder that has: encoder=ofe'):
        attached(sac(encoder='identity'), VECTOR, BOX, curl=recipe('curl'))
    attached(sac(encoder='identity'), VECTOR, BOX, curl=recipe('curl', 'aux.curl.weight=0')).improve(filled_replay(VECTOR, BOX))


def test_an_agent_without_an_encoder_says_so():
    from Agents.Random import Random
    with pytest.raises(ValueError, match='^aux=curl: Random has no encoder to train'):
        Random(action_spec=BOX).attach({'curl': recipe('curl')}, VECTOR, BOX, lr=1e-3, batch_size=8)


def test_wide_representations_are_brought_down():
    """NatureCNN's 3,136 numbers would make CURL's matrix ten million."""
    obs = ObsSpec((1, 84, 84), frame_stack=2)
    loss = attached(dqn(obs, DISCRETE), obs, DISCRETE, curl=recipe('curl')).auxiliaries['curl']
    assert loss.squeeze is None, 'an eighth of its width is narrow enough'
    agent = make_sac(ObsSpec((3, 60, 60)), BOX, encoder='nature', recipes={'aug': {}})
    loss = attached(agent, ObsSpec((3, 60, 60)), BOX, curl=recipe('curl')).auxiliaries['curl']
    assert loss.latent_dim == 50 and loss.bilinear.shape == (50, 50) and loss.target_squeeze is not None


class MovingEyes(torch.nn.Module):
    """Eyes that draw from torch's own stream and keep moments of what they see."""

    def __init__(self, input_shape):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(input_shape[0], 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.5))
        self.output_shape = (6,)

    def forward(self, x):
        return self.layers(x)


def test_at_weight_0_a_loss_leaves_torchs_own_stream_and_batch_norms_moments_alone():
    eyes = {'encoder': {'eyes': {'_target_': 'tests.Blocks.test_auxiliary.MovingEyes'}}}
    plain_agent, watched = (make_sac(VECTOR, BOX, recipes=eyes, encoder='mlp') for _ in range(2))
    attached(watched, VECTOR, BOX, curl=recipe('curl', 'aux.curl.weight=0'))
    for agent in (plain_agent, watched):
        torch.manual_seed(3)
        replay = filled_replay(VECTOR, BOX)
        for _ in range(3):
            agent.improve(replay)
    theirs = watched.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in plain_agent.state_dict().items())
    assert 'encoder.eyes.layers.1.running_mean' in theirs and theirs['encoder.eyes.layers.1.running_mean'].abs().sum() > 0
