"""Auxiliary losses: masks against the specification's worked examples, each loss in float64, whom they train, what they may see."""
import copy
import itertools
import math
import sys

import numpy as np
import pytest
import torch

from Agents.DQN import DQN
from Blocks.Auxiliary import A2, Auxiliary
from Blocks.Auxiliary.A2 import decode, similarity_loss
from Blocks.Auxiliary.SPR import renormalise
from Datasets.Batch import Batch, Sequence
from Datasets.Replay import Replay
from Datasets.Specs import ActionSpec, ObsSpec
from Hparams.Compose import ConfigError, compose_args
from tests.Agents.small import BOX, DISCRETE, VECTOR, filled_replay, parameters, same
from tests.Agents.test_sac import PIXELS, a2
from tests.Agents.test_sac import make as make_sac

PRESETS = ('a2_winner', 'a2_winner_formula', 'a2_winner_v')
CHOICES = ('curl', 'a2', *PRESETS, 'byol', 'barlow_twins', 'spr')


def recipe(name, *overrides):
    """What `aux=name` composes to."""
    return compose_args(['task=dmc/cheetah_run', 'Agent=SAC', f'aux={name}', *overrides])['aux'][name]


def attached(agent, obs, action, lr=1e-3, batch_size=16, **losses):
    agent.attach(losses, obs, action, lr=lr, batch_size=batch_size)
    return agent


def sac(obs=VECTOR, action=BOX, **options):
    return make_sac(obs, action, **{'encoder': 'pixel' if obs.is_image else 'ofe'} | options)


# --- masks

@pytest.mark.parametrize('mask, length, ones', [('1000', 4, (0,)), ('0111', 4, (1, 2, 3)), ('0000', 4, ()), (1000, 4, (0,)), (1101, 4, (0, 1, 3)),
                                                ([1, 0, 1], 3, (0, 2)), (('0', '1'), 2, (1,)), (1, 1, (0,)), (0, 1, ()),
                                                (111111011, 9, (0, 1, 2, 3, 4, 5, 7, 8)), (None, 4, ())])
def test_masks(mask, length, ones):
    assert decode(mask, length, 'key') == ones


@pytest.mark.parametrize('mask, length, hint', [('100', 4, False), ('10000', 4, False), ('1002', 4, False), ('', 4, False), (73, 4, True), (0, 4, True),
                                                (111, 4, True), (True, 1, False), (-100, 4, True), ('１000', 4, False)])
def test_masks_that_lost_something_are_refused(mask, length, hint):
    """Unquoted, 0111 is 73 to YAML, and 0000 is 0."""
    with pytest.raises(ValueError, match=rf'^aux.a2.input_s=.*: expected {length} characters, each 0 or 1') as error:
        decode(mask, length, 'aux.a2.input_s')
    assert ('in quotes' in str(error.value)) == hint


@pytest.mark.parametrize('mask', [[1, 2], [10, 0], [True, 1], [1, '']])
def test_lists_hold_zeros_and_ones(mask):
    with pytest.raises(ValueError, match='aux.a2.input_s=.*: expected a list of 2 zeros and ones'):
        decode(mask, 2, 'aux.a2.input_s')


def test_masks_survive_yaml_and_the_command_line():
    given = recipe('a2', 'aux.a2.horizon=4', 'aux.a2.input_s="1000"', 'aux.a2.input_a=0111', 'aux.a2.input_r=1101', 'aux.a2.output_s=[0,1,1,1]',
                   'aux.a2.output_a=1000', "aux.a2.output_r='0011'")
    loss = attached(sac(), VECTOR, BOX, a2=given).auxiliaries['a2']
    assert loss.chosen == {'input': {'s': (0,), 'a': (1, 2, 3), 'r': (0, 1, 3), 's_': ()}, 'output': {'s': (1, 2, 3), 'a': (0,), 'r': (2, 3), 's_': (4,)}}


DECODED = {  # source and target as the specification writes them out
    'a2_winner': ('h(g(s_t), a_t, a_t+1, a_t+2, a_t+3, r_t, r_t+1, r_t+3) → g′(s_t+1), g′(s_t+2), g′(s_t+3), g′(s_t+4)'),
    'a2_winner_formula': 'h(g(s_t+1), a_t+1, a_t+2, a_t+3) → g′(s_t+2), g′(s_t+3), r_t, r_t+1',
    'a2_winner_v': ('h(g(s_t), g(s_t+2), g(s_t+8), a_t, a_t+1, a_t+2, a_t+3, a_t+4, a_t+5, a_t+7, a_t+8, r_t+3, r_t+4, r_t+8) → '
                    'g′(s_t+1), g′(s_t+3), g′(s_t+6), a_t+4, g′(s_t+9)')}
# input and output widths for 6 actions: latents of 50 (pixels), of 57 (ofe, 17 numbers and 40 units)
WIDTHS = {'a2_winner': ((77, 200), (84, 228)), 'a2_winner_v': ((201, 206), (222, 234)), 'a2_winner_formula': ((68, 102), (75, 116))}


@pytest.mark.parametrize('name', PRESETS)
def test_presets_are_the_published_losses(name):
    cheetah = ActionSpec((6,))
    pixels = sac(ObsSpec((3, 24, 24), frame_stack=3), cheetah, trunk_dim=50)
    state = sac(ObsSpec((17,), torch.float32, -math.inf, math.inf), cheetah, encoder_hidden_dim=40)
    for agent, widths in zip((pixels, state), WIDTHS[name], strict=True):
        spec = ObsSpec((3, 24, 24), frame_stack=3) if agent is pixels else ObsSpec((17,), torch.float32, -math.inf, math.inf)
        loss = attached(agent, spec, cheetah, **{name: recipe(name)}).auxiliaries[name]
        assert loss.formula == DECODED[name] and (loss.source_dim, loss.target_dim) == widths
        shapes = [tuple(layer.weight.shape) for layer in loss.predictor if isinstance(layer, torch.nn.Linear)]
        assert shapes == [(2 * widths[0], widths[0]), (widths[1], 2 * widths[0])]


@pytest.mark.parametrize('change, key', [
    ({'input_s': '00'}, 'aux.a2.input_s=00: expected a state in the source'), ({'output_s': '00', 'output_s_': '0'}, 'expected something in the target'),
    ({'input_a': '1'}, 'aux.a2.input_a=1: expected 2 characters'), ({'input_s_': '01'}, 'aux.a2.input_s_=01: expected 1 characters'),
    ({'similarity': 'l2'}, 'aux.a2.similarity=l2'), ({'target': 'ema'}, 'aux.a2.target=ema'), ({'horizon': 0}, 'aux.a2.horizon=0: expected 1 or more'),
    ({'weight': -1}, 'aux.a2.weight=-1'), ({'tau': 2}, 'aux.a2.tau=2'), ({'latent_dim': 0}, 'aux.a2.latent_dim=0')])
def test_wrong_losses_are_named(change, key):
    with pytest.raises(ValueError) as error:
        attached(sac(), VECTOR, BOX, a2=a2(**change))
    assert key in str(error.value)


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


# --- the layout, and what a sequence holds

class Tracer(A2):
    """Encodes an observation as its first number, so that the layout can be read off."""

    def encode(self, obs):
        return obs[:, :1].repeat(1, self.latent_dim)

    target = encode


def window(n=4, horizon=3, frames=3, whole=None):
    """Observation i of sample b is 100 b + 10 + i, action i is −(100 b + i), reward i is 1000 + 100 b + i."""
    b, i = torch.arange(n).float()[:, None], torch.arange(horizon + 1).float()
    obs = (100 * b + 10 + i)[..., None].repeat(1, 1, frames)
    mask = torch.ones(n, horizon) if whole is None else whole
    return Sequence(obs, -(100 * b + i[:-1])[..., None].repeat(1, 1, 2), 1000 + 100 * b + i[:-1], mask, torch.cat([torch.ones(n, 1), mask], 1))


def test_source_and_target_are_laid_out_by_kind(monkeypatch):
    """States in order of time, actions, rewards, last state: not interleaved by time."""
    loss = attached(sac(), VECTOR, BOX, a2=a2(_target_='tests.Blocks.test_auxiliary.Tracer', horizon=3, input_s='101', input_a='010', input_r='110',
                                              input_s_='1', output_s='011', output_a='001', output_r='100', output_s_='1')).auxiliaries['a2']
    seen = {}
    module = sys.modules['Blocks.Auxiliary.A2']
    monkeypatch.setattr(module, 'similarity_loss', lambda prediction, target, *rest: seen.update(target=target) or prediction.mean())
    loss.predictor.register_forward_pre_hook(lambda module, given: seen.update(source=given[0]))
    w = loss.latent_dim
    loss.loss(Batch(*[None] * 7, sequence=window()))
    b = 2
    assert seen['source'][b].tolist() == [210] * w + [212] * w + [-201] * 2 + [1200, 1201] + [213] * w
    assert seen['target'][b].tolist() == [211] * w + [212] * w + [-202] * 2 + [1200] + [213] * w


@pytest.mark.parametrize('losses', [{'a2': a2()}, {'a2': a2(input_a='00', input_r='00')}, {'spr': {'_target_': 'Blocks.Auxiliary.SPR', 'horizon': 4}}])
def test_sequences_stay_inside_an_episode(losses):
    """Frames tell their episode and time; a sample that counts shows one episode and consecutive times (the released code runs into the next)."""
    spec = ObsSpec((2,), torch.float32, -math.inf, math.inf)
    replay = Replay(spec, BOX, num_envs=1, capacity=300, seed=0, store='ram', window=4)
    random, episode, time = np.random.default_rng(0), 0, 0
    replay.begin(np.zeros((1, 2), np.float32))
    for _ in range(400):
        ended = random.random() < 0.15
        final = np.array([[episode, time + 1]], np.float32)
        if ended:
            episode, time = episode + 1, 0
        else:
            time += 1
        replay.add(np.full((1, 2), time, np.float32), np.ones(1, np.float32), np.zeros(1, bool), np.array([ended]),
                   np.array([[episode, time]], np.float32), np.array([ended]), *(([0], final) if ended else ()))
    loss = next(iter(attached(sac(spec), spec, BOX, **losses).auxiliaries.values()))
    batch = replay.sample(500, horizon=loss.horizon, rng=np.random.default_rng(1))
    sequence = batch.sequence
    counted = loss.there(sequence) if isinstance(loss, A2) else sequence.obs_mask.prod(1)
    whole = sequence.obs[counted.bool()]
    assert 0.2 < counted.mean() < 0.9, 'some are cut by an end, some are not'
    assert (whole[:, 1:, 0] == whole[:, :-1, 0]).all() and (whole[:, 1:, 1] == whole[:, :-1, 1] + 1).all()
    # what lies beyond an end makes no difference
    with torch.no_grad():
        loss.eval()
        value = loss.loss(batch)[0]
        sequence.obs = torch.where(sequence.obs_mask[..., None].bool(), sequence.obs, torch.tensor(1e3))
        sequence.reward = torch.where(sequence.mask.bool(), sequence.reward, torch.tensor(1e3))
        torch.testing.assert_close(loss.loss(batch)[0], value)


# --- each loss in float64

def reference_similarity(y, target, kind, negatives, bilinear):
    """As the specification's table writes it, sample by sample."""
    n = len(y)
    if kind in ('nmse', 'cosine'):
        y, target = y / np.linalg.norm(y, axis=1, keepdims=True), target / np.linalg.norm(target, axis=1, keepdims=True)
    if kind in ('mse', 'nmse'):
        value = ((y - target) ** 2).mean()
        return value - np.mean([((y[i] - target[i - 1]) ** 2).mean() for i in range(n)]) if negatives else value
    products = target @ bilinear @ y.T if kind == 'bilinear' else y @ target.T
    values = []
    for i in range(n):
        row = products[i] if negatives else np.where(np.arange(n) == i, products[i], 0)
        values.append(np.log(np.exp(row - row.max()).sum()) + row.max() - products[i, i])
    return np.mean(values)


@pytest.mark.parametrize('kind', ['mse', 'nmse', 'inner_product', 'bilinear', 'cosine'])
@pytest.mark.parametrize('negatives', [False, True])
def test_similarities(kind, negatives):
    random = np.random.default_rng(0)
    y, target, bilinear = random.normal(size=(7, 5)), random.normal(size=(7, 5)), random.random((5, 5))
    w = torch.from_numpy(bilinear).float() if kind == 'bilinear' else None
    value = similarity_loss(torch.from_numpy(y).float(), torch.from_numpy(target).float(), torch.ones(7), kind, negatives, w)
    assert value.item() == pytest.approx(reference_similarity(y, target, kind, negatives, bilinear), abs=1e-5)
    # samples that do not count are as if they were not there: behind the others, so that neighbours stay neighbours but for one pair of mse
    longer = [torch.cat([torch.from_numpy(x).float(), torch.full((3, 5), 7.0)]) for x in (y, target)]
    there = torch.cat([torch.ones(7), torch.zeros(3)])
    if not (negatives and kind in ('mse', 'nmse')):
        assert similarity_loss(*longer, there, kind, negatives, w).item() == pytest.approx(value.item(), abs=1e-5)
    assert similarity_loss(*longer, torch.zeros(10), kind, negatives, w).item() == 0
    if kind in ('nmse', 'cosine'):
        scale = torch.rand(7, 1) + 0.5
        scaled = similarity_loss(torch.from_numpy(y).float() * scale, torch.from_numpy(target).float() * 3, torch.ones(7), kind, negatives, w)
        assert scaled.item() == pytest.approx(value.item(), abs=1e-5)


def test_contrastive_is_bilinear_with_negatives():
    loss = attached(sac(), VECTOR, BOX, a2=a2(similarity='contrastive')).auxiliaries['a2']
    assert loss.similarity == 'bilinear' and loss.negatives and loss.bilinear.shape == (loss.target_dim, loss.target_dim)


def latents(loss, obs, encoder):
    """float64: what an encoder makes of observations, by way of its parts."""
    return copy.deepcopy(encoder).double().represent(obs.double()).detach().numpy()


def test_a2_is_its_formula():
    agent = attached(sac(), VECTOR, BOX, a2=a2())
    loss = agent.auxiliaries['a2'].eval()
    for p in agent.target_encoder.parameters():
        p.data.mul_(1.1)
    sequence = window(n=6, horizon=2)
    sequence.obs, sequence.reward = torch.randn(6, 3, 3), torch.randn(6, 2)
    with torch.no_grad():
        value = loss.loss(Batch(*[None] * 7, sequence=sequence))[0].item()
        source = np.concatenate([latents(loss, sequence.obs[:, 0], agent.encoder), sequence.action[:, 0], sequence.action[:, 1], sequence.reward[:, 1:]], 1)
        prediction = copy.deepcopy(loss.predictor).double()(torch.from_numpy(source)).numpy()
    goal = np.concatenate([latents(loss, sequence.obs[:, 1], agent.target_encoder), latents(loss, sequence.obs[:, 2], agent.target_encoder)], 1)
    assert value == pytest.approx(((prediction - goal) ** 2).mean(), rel=1e-5)


def plain(obs):
    return Batch(obs=obs, action=torch.zeros(len(obs), 2), reward=None, discount=None, next_obs=None, indices=None, weight=None)


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


# --- views

def crops(obs):
    """Offsets of the crops that an image of coordinates was seen at."""
    return [(int(view[0, 0, 0]), int(view[1, 0, 0])) for view in obs]


def coordinates(n, size=24, channels=6):
    """Channel 0 has a pixel's row, channel 1 its column, the others 0."""
    rows = torch.arange(size)[:, None].expand(size, size)
    image = torch.zeros(n, channels, size, size, dtype=torch.uint8)
    image[:, 0], image[:, 1] = rows, rows.T
    return image


def seen_by(loss, batch):
    views = []
    see = loss.see
    loss.see = lambda obs: views.append(see(obs)) or views[-1]
    loss.loss(batch)
    return views


def test_curl_draws_two_independent_crops():
    loss = attached(sac(PIXELS), PIXELS, BOX, curl=recipe('curl')).auxiliaries['curl']
    one, two = (crops(view) for view in seen_by(loss, plain(coordinates(64))))
    assert len(set(one)) > 10 and sum(a == b for a, b in zip(one, two, strict=True)) < 20
    assert {row for row, _ in one + two} == set(range(5)), 'every offset, the last one too (24 → 20)'


def test_a2_draws_a_crop_for_each_state_and_shows_a_shared_state_once():
    """One crop covers the stack; each time step has its own; a state on both sides is the same picture there."""
    shared = a2(input_s='11', output_s='11', output_s_='0')
    loss = attached(sac(PIXELS), PIXELS, BOX, a2=shared).auxiliaries['a2']
    sequence = window(n=64, horizon=2)
    sequence.obs = coordinates(64)[:, None].expand(64, 3, 6, 24, 24)
    views = seen_by(loss, Batch(*[None] * 7, sequence=sequence))
    assert len(views) == 2, 's_t and s_t+1, once each'
    one, two = (crops(view) for view in views)
    assert len(set(one)) > 10 and sum(a == b for a, b in zip(one, two, strict=True)) < 20


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


# --- who trains what

def names_that_moved(agent, before):
    return {name for name, value in agent.named_parameters() if not torch.equal(value, before[name])}


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


def test_targets_without_momentum():
    for kind, flows in (('online', True), ('detached', False)):
        agent = attached(sac(), VECTOR, BOX, a2=a2(target=kind))
        sequence = window(n=6, horizon=2)
        sequence.obs = torch.randn(6, 3, 3, requires_grad=True)
        agent.auxiliaries['a2'].loss(Batch(*[None] * 7, sequence=sequence))[0].backward()
        assert bool(sequence.obs.grad[:, 2].any()) == flows and sequence.obs.grad[:, 0].any()


def test_embedded_actions_and_rewards():
    agent = attached(sac(), VECTOR, BOX, a2=a2(embed_actions=True, embed_rewards=True, output_a='10', output_r='01'))
    loss = agent.auxiliaries['a2']
    width = loss.latent_dim
    assert loss.source_dim == 4 * width and loss.target_dim == 4 * width
    before = {key: value.detach().clone() for key, value in agent.named_parameters()}
    loss.learn(filled_replay(VECTOR, BOX), agent)
    moved = names_that_moved(agent, before)
    assert all(any(key.startswith(f'auxiliaries.a2.{part}.') for key in moved) for part in ('embed_action', 'embed_reward', 'target_embed_action'))


# --- any loss on any agent

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
    with pytest.raises(ValueError, match='Random has no encoder to train'):
        Random(action_spec=BOX).attach({'curl': recipe('curl')}, VECTOR, BOX, lr=1e-3, batch_size=8)


def test_wide_representations_are_brought_down():
    """NatureCNN's 3,136 numbers would make CURL's matrix ten million."""
    obs = ObsSpec((1, 84, 84), frame_stack=2)
    loss = attached(dqn(obs, DISCRETE), obs, DISCRETE, curl=recipe('curl')).auxiliaries['curl']
    assert loss.squeeze is None, 'an eighth of its width is narrow enough'
    agent = make_sac(ObsSpec((3, 60, 60)), BOX, encoder='nature', recipes={'aug': {}})
    loss = attached(agent, ObsSpec((3, 60, 60)), BOX, curl=recipe('curl')).auxiliaries['curl']
    assert loss.latent_dim == 50 and loss.bilinear.shape == (50, 50) and loss.target_squeeze is not None


def test_masks_that_are_not_given_are_those_of_the_authors_code():
    assert recipe('a2') == recipe('a2_winner') and recipe('a2', 'aux.a2.input_r=null')['input_r'] is None


class DropEyes(torch.nn.Module):
    """Eyes that draw from torch's own stream."""

    def __init__(self, input_shape):
        super().__init__()
        self.layers, self.output_shape = torch.nn.Sequential(torch.nn.Linear(input_shape[0], 6), torch.nn.Dropout(0.5)), (6,)

    def forward(self, x):
        return self.layers(x)


def test_a_loss_does_not_draw_from_torchs_own_stream():
    eyes = {'encoder': {'eyes': {'_target_': 'tests.Blocks.test_auxiliary.DropEyes'}}}
    plain_agent, watched = (make_sac(VECTOR, BOX, recipes=eyes, encoder='mlp') for _ in range(2))
    attached(watched, VECTOR, BOX, curl=recipe('curl', 'aux.curl.weight=0'))
    for agent in (plain_agent, watched):
        torch.manual_seed(3)
        replay = filled_replay(VECTOR, BOX)
        for _ in range(3):
            agent.improve(replay)
    assert same(parameters(plain_agent), [p for name, p in watched.named_parameters() if not name.startswith('auxiliaries.')])
