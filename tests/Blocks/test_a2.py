"""A2: masks against the specification's worked examples, layout, similarities in float64, sequences inside an episode."""
import copy
import math
import sys

import numpy as np
import pytest
import torch

from Blocks.Auxiliary import A2
from Blocks.Auxiliary.A2 import decode, similarity_loss
from Datasets.Batch import Batch
from Datasets.Replay import Replay
from Datasets.Specs import ActionSpec, ObsSpec
from tests.Agents.small import BOX, VECTOR, filled_replay
from tests.Agents.test_sac import PIXELS, a2
from tests.Blocks.losses import attached, coordinates, crops, latents, names_that_moved, recipe, sac, seen_by, window

PRESETS = ('a2_winner', 'a2_winner_formula', 'a2_winner_v')


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
    assert ('every mask is to be given' in str(error.value)) == (mask in ('100', '10000'))


@pytest.mark.parametrize('mask', [[1, 2], [10, 0], [True, 1], [1, '']])
def test_lists_hold_zeros_and_ones(mask):
    with pytest.raises(ValueError, match='aux.a2.input_s=.*: expected a list of 2 zeros and ones'):
        decode(mask, 2, 'aux.a2.input_s')


def test_masks_survive_yaml_and_the_command_line():
    given = recipe('a2', 'aux.a2.horizon=4', 'aux.a2.input_s="1000"', 'aux.a2.input_a=0111', 'aux.a2.input_r=1101', 'aux.a2.output_s=[0,1,1,1]',
                   'aux.a2.output_a=1000', "aux.a2.output_r='0011'")
    loss = attached(sac(), VECTOR, BOX, a2=given).auxiliaries['a2']
    assert loss.chosen == {'input': {'s': (0,), 'a': (1, 2, 3), 'r': (0, 1, 3), 's_': ()}, 'output': {'s': (1, 2, 3), 'a': (0,), 'r': (2, 3), 's_': (4,)}}


def test_masks_that_are_not_given_are_those_of_the_authors_code():
    assert recipe('a2') == recipe('a2_winner') and recipe('a2', 'aux.a2.input_r=null')['input_r'] is None


DECODED = {  # source and target as the specification writes them out
    'a2_winner': ('h(g(s_t), a_t, a_t+1, a_t+2, a_t+3, r_t, r_t+1, r_t+3) → g′(s_t+1), g′(s_t+2), g′(s_t+3), g′(s_t+4)'),
    'a2_winner_formula': 'h(g(s_t+1), a_t+1, a_t+2, a_t+3) → g′(s_t+2), g′(s_t+3), r_t, r_t+1',
    'a2_winner_v': ('h(g(s_t), g(s_t+2), g(s_t+8), a_t, a_t+1, a_t+2, a_t+3, a_t+4, a_t+5, a_t+7, a_t+8, r_t+3, r_t+4, r_t+8) → '
                    'g′(s_t+1), g′(s_t+3), g′(s_t+6), a_t+4, g′(s_t+9)')}


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


class Tracer(A2):
    """Encodes an observation as its first number, so that the layout can be read off."""

    def encode(self, obs):
        return obs[:, :1].repeat(1, self.latent_dim)

    target = encode


def test_source_and_target_are_laid_out_by_kind(monkeypatch):
    """States in order of time, actions, rewards, last state: not interleaved by time."""
    loss = attached(sac(), VECTOR, BOX, a2=a2(_target_='tests.Blocks.test_a2.Tracer', horizon=3, input_s='101', input_a='010', input_r='110',
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
