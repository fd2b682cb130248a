"""Seeds, schedules, recipes, the one optimiser step, moving averages."""
import importlib
import math
import sys
import zlib

import numpy as np
import pytest
import torch
from torch import nn

from Blocks.Architectures import CNN, Null
from Blocks.Augmentations import Null as NoAugmentation
from Blocks.Augmentations import RandomShift
from Blocks.Block import Block
from Utils import Args, NonFinite, accepted, build, check_arguments, choose_device, derive_seed, follow, generator, locate, optimise, schedule

# --- randomness

def test_seeds_differ_by_run_and_by_name_and_never_collide():
    names = [('acting',), ('learning',), ('environment',), ('episode', 0), ('episode', 1), ('episode', 0, 1), ('episode', 10)]
    seeds = [derive_seed(run, *name) for run in range(2000) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0 and max(seeds) < 2 ** 63
    assert max(seeds) > 2 ** 62, 'all 63 bits are in use'


def test_seeds_are_the_same_on_every_machine():
    words = np.random.SeedSequence([7, zlib.crc32(b'acting')]).generate_state(1, np.uint64)
    assert derive_seed(7, 'acting') == int(words[0]) // 2


def test_streams_of_two_names_are_independent():
    def draws(run, name):
        return torch.randn(40_000, generator=generator(run, name))

    streams = torch.stack([draws(1, 'acting'), draws(1, 'learning'), draws(2, 'acting'), draws(2, 'learning')])
    correlation = torch.corrcoef(streams) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(40_000)
    assert torch.equal(draws(1, 'acting'), streams[0])


# --- schedules

@pytest.mark.parametrize('text, expected', {
    'linear(1.0,0.1,500)': {0: 1.0, 250: 0.55, 500: 0.1, 501: 0.1, 10 ** 9: 0.1},
    'linear(1.0, 0.1, 20000)': {0: 1.0, 5000: 0.775, 10000: 0.55, 20000: 0.1},
    ' linear(0,5,10) ': {0: 0, 3: 1.5, 10: 5, 11: 5},
    'linear(1e-3,-1e-3,2e1)': {0: 1e-3, 10: 0, 20: -1e-3},
    'linear(1,0.5,0)': {0: 0.5, 9: 0.5},
    'step_linear(1,0.5,100,0.1,400)': {0: 1, 50: 0.75, 100: 0.5, 200: 0.4, 300: 0.3, 500: 0.1, 501: 0.1, 10 ** 9: 0.1},
    'step_linear(1,0.5,0,0.1,10)': {0: 0.5, 5: 0.3, 10: 0.1, 11: 0.1},
    'step_linear(1,0.5,10,0.1,0)': {0: 1, 5: 0.75, 9: 0.55, 10: 0.1, 11: 0.1},
    '0.25': {0: 0.25, 10 ** 6: 0.25},
    '1e-2': {0: 0.01},
    0.3: {0: 0.3, 77: 0.3},
    2: {5: 2.0},
}.items())
def test_schedules(text, expected):
    function = schedule(text)
    assert {step: function(step) for step in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('text', ['', 'cosine(1,0,5)', 'linear(1,0)', 'linear(1,0,5,6)', 'linear(1,zero,5)', 'linear 1 0 5', 'step_linear(1,0.5,100)',
                                  'linear(1,0,5', '__import__("os")', 'nan', 'inf', None])
def test_a_bad_schedule_says_what_was_given_where_and_what_is_expected(text):
    with pytest.raises(ValueError, match=r'linear\(a,b,n\) or step_linear\(a,b,n,c,m\)') as error:
        schedule(text, 'agent.epsilon')
    assert str(error.value).startswith(f'agent.epsilon={text}: expected a number')


# --- recipes

def test_short_names_are_looked_up_by_what_they_are_for():
    assert locate('CNN', 'recipes.encoder.eyes') is CNN
    assert locate('RandomShift', 'recipes.aug') is RandomShift
    assert locate('SGD', 'recipes.encoder.optim') is torch.optim.SGD
    assert locate('StepLR', 'recipes.actor.scheduler') is torch.optim.lr_scheduler.StepLR
    assert locate('Null', 'recipes.aug') is NoAugmentation
    assert locate('Null', 'recipes.encoder.pool') is Null


def test_dotted_names():
    from Agents.Random import Random
    assert locate('Blocks.Architectures.CNN') is CNN
    assert locate('Blocks.Architectures.CNN.CNN') is CNN
    assert locate('torch.optim.Adam') is torch.optim.Adam
    assert locate('Agents.Random') is Random


def test_a_file_of_the_user_beside_the_run(tmp_path, monkeypatch):
    (tmp_path / 'my_eyes_for_a_test.py').write_text('class Eyes:\n    def __init__(self, input_shape, sharp=1):\n        self.seen = (input_shape, sharp)\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    importlib.invalidate_caches()
    try:
        eyes = build({'_target_': 'my_eyes_for_a_test.Eyes', 'sharp': 3}, 'CNN', 'recipes.encoder.eyes', input_shape=(1, 2, 2), output_dim=None)
        assert eyes.seen == ((1, 2, 2), 3)
        with pytest.raises(ValueError, match=r'recipes.encoder.eyes=my_eyes_for_a_test.Eye: no such name; nearest: Eyes'):
            locate('my_eyes_for_a_test.Eye', 'recipes.encoder.eyes')
    finally:
        sys.modules.pop('my_eyes_for_a_test', None)


def test_an_import_that_fails_inside_a_users_file_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / 'my_broken_file_for_a_test.py').write_text('import a_package_that_is_not_there\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match='a_package_that_is_not_there'):
        locate('my_broken_file_for_a_test.Eyes', 'recipes.encoder.eyes')


@pytest.mark.parametrize('name, where, message', [
    ('NatureCCN', 'recipes.encoder.eyes', 'recipes.encoder.eyes=NatureCCN: no such name; nearest: NatureCNN'),
    ('adamw', 'recipes.actor.optim', 'recipes.actor.optim=adamw: no such name; nearest: AdamW'),
    ('RandomShfit', 'recipes.aug', 'recipes.aug=RandomShfit: no such name; nearest: RandomShift'),
    ('my_absent_package.Eyes', 'recipes.encoder.eyes', "recipes.encoder.eyes=my_absent_package.Eyes: no module 'my_absent_package'"),
    ('torch.optim.Adamm', 'recipes.encoder.optim', 'nearest: Adam')])
def test_an_unknown_name_names_the_nearest(name, where, message):
    with pytest.raises(ValueError) as error:
        locate(name, where)
    assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('recipe, where, message', [
    ({'_target_': 'RandomShift', 'pda': 3}, 'recipes.aug', 'recipes.aug.pda: RandomShift has no such argument; nearest: pad'),
    ({'_target_': 'NatureCNN', 'widht': 2}, 'recipes.encoder.eyes', 'recipes.encoder.eyes.widht: NatureCNN has no such argument; nearest: width'),
    ({'_target_': 'CNN', 'kernelsize': 5}, 'recipes.encoder.eyes', 'nearest: kernel_size')])
def test_a_misspelt_argument_names_the_nearest(recipe, where, message):
    for refuse in (lambda: build(recipe, 'CNN', where, input_shape=(1, 84, 84)), lambda: check_arguments(recipe, where)):
        with pytest.raises(ValueError) as error:
            refuse()
        assert message in str(error.value) and '\n' not in str(error.value)


class Base:
    def __init__(self, *, seed=0, patch_size=16):
        self.seed, self.patch_size = seed, patch_size


class Derived(Base):
    def __init__(self, width, **settings):
        super().__init__(**settings)
        self.width = width


class Inherits(Derived):
    pass


class Free:
    def __init__(self, width=1, **anything):
        self.anything = anything


class Bare(nn.Module):
    pass


HERE = {'Derived': Derived, 'Inherits': Inherits, 'Free': Free, 'Bare': Bare}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    for name, value in HERE.items():
        monkeypatch.setattr(sys.modules['Utils'], name, value, raising=False)


@pytest.mark.parametrize('name', ['Derived', 'Inherits'])
def test_keywords_passed_on_to_a_base_class_are_known(name):
    part = build({'_target_': f'Utils.{name}', 'patch_size': 8}, '', 'agent', width=4, seed=3, device='cpu', batch_size=5)
    assert (part.width, part.seed, part.patch_size) == (4, 3, 8)
    with pytest.raises(ValueError, match=r'agent.patchsize: \w+ has no such argument; nearest: patch_size'):
        build({'_target_': f'Utils.{name}', 'patchsize': 8}, '', 'agent', width=4)


def test_what_the_caller_offers_is_left_out_where_it_is_unknown_and_given_where_anything_goes():
    assert accepted(Derived) == ({'width', 'seed', 'patch_size'}, False)
    assert build({'_target_': 'Utils.Free'}, '', 'x', width=2, colour='red').anything == {'colour': 'red'}
    assert isinstance(build({'_target_': 'Utils.Bare'}, '', 'x', input_shape=(3,)), Bare), 'a module without a constructor of its own takes nothing'
    assert build(None, 'Utils.Derived', 'x', width=2, colour='red').width == 2
    assert build({'_target_': None}, 'Utils.Derived', 'x', width=2).width == 2
    assert build({'_target_': None, 'width': 9}, 'Utils.Derived', 'x', width=2).width == 9, 'the recipe wins'


def test_a_missing_argument_is_one_line():
    with pytest.raises(ValueError, match=r'^recipes.actor.scheduler: StepLR also needs recipes.actor.scheduler.step_size$'):
        build({'_target_': 'StepLR'}, '', 'recipes.actor.scheduler', optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))]))


def test_args_are_nested_and_attributes():
    args = Args({'a': 1, 'b': {'c': {'d': 2}}})
    assert args.b.c.d == 2 and args['b']['c'] == {'d': 2} and args.get('x') is None
    with pytest.raises(AttributeError):
        _ = args.x


# --- learning

class Line(Block):
    def __init__(self, slope=1.0, buffer=False):
        super().__init__()
        self.slope = nn.Parameter(torch.full((3,), slope))
        if buffer:
            self.register_buffer('seen', torch.arange(3))


def sgd(block, lr=1.0):
    block.optim = torch.optim.SGD(block.parameters(), lr=lr)
    return block


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_move(value):
    block = sgd(Line())
    with pytest.raises(NonFinite, match=f'actor_loss is {value}') as error:
        optimise((block.slope * value).sum(), block, name='actor_loss')
    assert error.value.loss == 'actor_loss'
    assert torch.equal(block.slope.detach(), torch.ones(3)) and block.slope.grad is None


def test_optimise_steps_every_block_on_its_own_gradient_only():
    first, second, other = sgd(Line()), sgd(Line(), lr=0.1), sgd(Line())
    for _ in range(2):  # gradients of the first call must not linger
        optimise((2 * first.slope + 3 * second.slope).sum(), first, second)
    assert torch.allclose(first.slope, torch.full((3,), 1 - 2 * 2.0)) and torch.allclose(second.slope, torch.full((3,), 1 - 2 * 0.3))
    assert torch.equal(other.slope.detach(), torch.ones(3))


def test_grad_clip_is_on_the_norm_over_all_blocks():
    first, second = sgd(Line()), sgd(Line())
    optimise((3 * first.slope[0] + 4 * second.slope[0]), first, second, grad_clip=1.0)  # the norm of (3, 4) is 5
    assert torch.allclose(first.slope, torch.tensor([1 - 3 / 5, 1.0, 1.0]), atol=1e-5)
    assert torch.allclose(second.slope, torch.tensor([1 - 4 / 5, 1.0, 1.0]), atol=1e-5)
    optimise(0.5 * first.slope[1], first, grad_clip=1.0)  # short gradients are not stretched
    assert first.slope[1].item() == pytest.approx(0.5)


def test_optimise_advances_the_schedule():
    block = sgd(Line(), lr=0.5)
    block.scheduler = torch.optim.lr_scheduler.StepLR(block.optim, step_size=1, gamma=0.1)
    for lr in (0.5, 0.05, 0.005):
        assert block.optim.param_groups[0]['lr'] == pytest.approx(lr)
        optimise(block.slope.sum(), block)


def test_follow_moves_by_tau_of_the_difference_and_copies_buffers():
    torch.manual_seed(0)
    online, target = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20)), nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20))
    online(torch.randn(64, 30))  # moves the buffers
    before = [p.detach().double().clone() for p in target.parameters()]
    follow(target.requires_grad_(False), online, 0.01)
    for old, new, source in zip(before, target.parameters(), online.parameters()):
        assert torch.allclose(new.double(), 0.99 * old + 0.01 * source.detach().double(), rtol=0, atol=1e-7)
    assert any(not torch.equal(a.double(), b) for a, b in zip(target.parameters(), before))
    for mine, theirs in zip(target.buffers(), online.buffers()):
        assert torch.equal(mine, theirs)
    assert target[1].num_batches_tracked == 1 and target[1].running_mean.abs().sum() > 0

    difference = [(a - b).norm().item() for a, b in zip(target.parameters(), online.parameters())]
    for _ in range(10):
        follow(target, online, 0.25)
    assert [(a - b).norm().item() for a, b in zip(target.parameters(), online.parameters())] == pytest.approx([d * 0.75 ** 10 for d in difference], rel=1e-4)


def test_follow_with_tau_one_is_a_hard_copy():
    online, target = Line(slope=math.pi, buffer=True), Line(slope=-1e9, buffer=True)
    online.seen.add_(5)
    follow(target, online, 1)
    assert torch.equal(target.slope, online.slope) and target.seen.tolist() == [5, 6, 7]
    assert target.slope.data_ptr() != online.slope.data_ptr() and target.seen.data_ptr() != online.seen.data_ptr()


def test_follow_copies_buffers_of_a_part_without_weights():
    online, target = nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2, affine=False)
    online(torch.randn(9, 2))
    follow(target, online, 0.5)
    assert torch.equal(target.running_mean, online.running_mean)


# --- the machine

def test_devices():
    assert choose_device('cpu') == torch.device('cpu')
    assert choose_device('auto').type == ('cuda' if torch.cuda.is_available() else 'cpu')
    with pytest.raises(ValueError, match=r'^device=cuda:99: torch sees \d+ CUDA devices here$'):
        choose_device('cuda:99')
