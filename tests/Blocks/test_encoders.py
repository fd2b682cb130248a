"""Encoder, Actor, Critic, and what their base gives them: optimisers, schedules, frozen copies."""
import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from Blocks.Actors import Actor, TruncatedNormal
from Blocks.Block import Block, init_orthogonal
from Blocks.Critics import Critic
from Blocks.Encoders import Encoder
from Datasets.Specs import ActionSpec, ObsSpec
from Utils import optimise

PIXELS, VECTOR = ObsSpec((3, 84, 84), frame_stack=3), ObsSpec((5,), torch.float32, -math.inf, math.inf, frame_stack=2)
DISCRETE, BOX = ActionSpec(num_actions=6), ActionSpec((6,))


def size(module):
    return sum(p.numel() for p in module.parameters())


# --- Encoder

def test_the_encoder_scales_bytes_to_one():
    obs = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    spec = ObsSpec((1, 16, 16))
    plain, centred = (Encoder(spec, {}, eyes='Null', centre=centre)(obs) for centre in (False, True))
    expected = torch.arange(256, dtype=torch.float64) / 255
    assert plain.shape == (1, 256) and plain.dtype == torch.float32
    assert torch.allclose(plain[0].double(), expected, atol=1e-7) and torch.allclose(centred[0].double(), expected - 0.5, atol=1e-7)
    assert torch.equal(Encoder(spec, {}, eyes='Null')(obs.float()), plain), 'floats are 0–255 too: an augmentation may have made them'


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32, torch.bfloat16])
def test_the_callers_images_stay_as_they_are(channels, layout, dtype):
    obs = torch.randint(256, (3, channels, 8, 8)).to(dtype).contiguous(memory_format=layout)
    before, encoder = obs.clone(), Encoder(ObsSpec((channels, 8, 8)), {}, eyes='Null')
    for context in (contextlib.nullcontext(), torch.autocast('cpu', torch.bfloat16)):
        with context:
            first, second = encoder(obs), encoder(obs)
            prepared = encoder.prepare(obs)
            shared = encoder.represent(prepared), encoder.represent(prepared)
        assert torch.equal(obs, before) and all(torch.equal(first, other) for other in (second, *shared))
    assert torch.allclose(first.float(), before.float().flatten(1) / 255, atol=4e-3)


def test_vectors_are_left_as_they_are():
    obs = 300 * torch.randn(4, 10)
    encoder = Encoder(VECTOR, {}, eyes='Null')
    assert encoder.repr_shape == (10,) and torch.equal(encoder(obs), obs) and encoder(obs.double()).dtype == torch.float32


def test_channels_last_computes_what_plain_convolutions_do():
    torch.manual_seed(0)
    encoder, obs = Encoder(ObsSpec((1, 84, 84), frame_stack=4), {}, eyes='NatureCNN'), torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    assert encoder.eyes.layers[0].weight.is_contiguous(memory_format=torch.channels_last)
    x = obs.double() / 255
    for layer in encoder.eyes.layers:
        x = F.conv2d(x, layer.weight.double().contiguous(), layer.bias.double(), layer.stride) if isinstance(layer, nn.Conv2d) else x.relu()
    assert torch.allclose(encoder(obs).double(), x.flatten(1), rtol=0, atol=1e-5) and x.std() > 0.01
    assert torch.allclose(encoder.features(obs).double(), x, rtol=0, atol=1e-5), 'the representation is in the order (C, H, W)'
    assert encoder.feature_shape == (64, 7, 7) and encoder.repr_shape == (3136,)


def test_parts_of_the_encoder_are_replaceable():
    encoder = Encoder(PIXELS, {'eyes': {'_target_': 'CNN', 'out_channels': 8}, 'pool': {'_target_': 'LayerNormTanh', 'output_dim': 20}}, eyes='NatureCNN')
    assert encoder.feature_shape == (8, 35, 35) and encoder.repr_shape == (20,)
    assert Encoder(PIXELS, {'pool': {'_target_': 'LayerNormTanh'}}, eyes='CNN').repr_shape == (50,)
    vector = Encoder(VECTOR, {'eyes': {'_target_': 'MLP', 'hidden_dim': 16}}, eyes='Null', layer_norm=True)
    assert vector.repr_shape == (16,) and any(isinstance(layer, nn.LayerNorm) for layer in vector.modules())
    assert vector(torch.randn(2, 10)).shape == (2, 16)
    assert Encoder(PIXELS, {}, eyes='CNN', input_shape=(9, 64, 64)).feature_shape == (32, 25, 25), 'an augmentation may change the size'
    with pytest.raises(ValueError, match='recipes.encoder.eyes.out_chanels: CNN has no such argument; nearest: out_channels'):
        Encoder(PIXELS, {'eyes': {'_target_': 'CNN', 'out_chanels': 8}}, eyes='NatureCNN')


def test_bytes_in_bf16_stay_close_to_fp32():
    torch.manual_seed(0)
    encoder, obs = Encoder(ObsSpec((4, 84, 84)), {}, eyes='NatureCNN'), torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    exact = encoder(obs)
    with torch.autocast('cpu', torch.bfloat16):
        half = encoder(obs)
    assert half.dtype == torch.bfloat16 and 0 < (half.float() - exact).norm() / exact.norm() < 0.02


# --- Actor

def test_the_truncated_normal_passes_the_gradient_through_the_clamp():
    mean = torch.tensor([[0.0, 0.9, -0.95, 0.5]], requires_grad=True)
    noise = torch.tensor([[0.1, 3.0, -3.0, -0.2]])
    action = TruncatedNormal(mean, 1.0).sample(noise)
    assert action.tolist()[0] == pytest.approx([0.1, 1 - 1e-6, -1 + 1e-6, 0.3], abs=1e-7)
    (gradient,) = torch.autograd.grad(action.sum(), mean)
    assert torch.equal(gradient, torch.ones(1, 4)), 'also where the clamp is active'


def test_actions_stay_inside_the_box_whatever_the_noise():
    torch.manual_seed(0)
    mean, bound = torch.rand(5000, 3) * 2 - 1, torch.tensor(1 - 1e-6)
    action = TruncatedNormal(mean, torch.tensor(2.5)).sample(torch.randn(7, 5000, 3))
    assert action.shape == (7, 5000, 3) and action.abs().max() == bound
    assert ((action == bound).float().mean(), (action == -bound).float().mean()) == pytest.approx((0.348, 0.348), abs=0.01)  # mean of 1 − Φ over 0 … 0.8


def test_the_clip_limits_the_noise_not_the_action():
    torch.manual_seed(0)
    mean, noise = torch.rand(1000, 2) * 1.2 - 0.6, torch.randn(1000, 2)
    action = TruncatedNormal(mean, 1.0).sample(noise, clip=0.3)
    assert (action - mean).abs().max() <= 0.3 + 1e-6
    assert torch.allclose(action, mean + noise.clamp(-0.3, 0.3), atol=1e-6)
    wide = TruncatedNormal(mean, 0.01).sample(noise, clip=0.3)  # the standard deviation comes before the clip
    assert torch.allclose(wide, mean + 0.01 * noise, atol=1e-6)


def test_log_prob_is_torchs():
    mean, stddev, action = torch.randn(4, 3).tanh().double(), torch.rand(4, 3).double() + 0.1, torch.randn(6, 4, 3).double()
    expected = torch.distributions.Normal(mean, stddev).log_prob(action).sum(-1)
    assert torch.allclose(TruncatedNormal(mean, stddev).log_prob(action), expected, rtol=1e-12)
    assert torch.allclose(TruncatedNormal(mean, 0.2).log_prob(action), torch.distributions.Normal(mean, 0.2).log_prob(action).sum(-1), rtol=1e-12)


def test_the_actors_mean_is_a_tanh():
    torch.manual_seed(0)
    actor, x = Actor((10,), BOX, {}, hidden_dim=8, depth=2), 5 * torch.randn(4, 10)
    policy = actor(x, 0.3)
    assert torch.allclose(policy.mean, torch.tanh(actor.pi_head(x))) and policy.mean.shape == (4, 6) and policy.stddev == 0.3
    with torch.autocast('cpu', torch.bfloat16):
        assert actor(x, 0.3).mean.dtype == torch.float32


# --- Critic

def test_critic_shapes():
    x, action = torch.randn(4, 10), torch.rand(4, 6)
    for heads in (1, 2, 5):
        assert Critic((10,), DISCRETE, {}, num_critics=heads, hidden_dim=8)(x).shape == (heads, 4, 6)
        assert Critic((10,), BOX, {}, num_critics=heads, hidden_dim=8)(x, action).shape == (heads, 4)
    assert Critic((2, 5), BOX, {}, hidden_dim=8)(x.view(4, 2, 5), action).shape == (1, 4)
    assert Critic((10,), DISCRETE, {}, q_head='Dueling', num_critics=2, hidden_dim=8)(x).shape == (2, 4, 6)
    with torch.autocast('cpu', torch.bfloat16):
        assert Critic((10,), DISCRETE, {}, hidden_dim=8)(x).dtype == Critic((10,), BOX, {}, hidden_dim=8)(x, action).dtype == torch.float32


def test_heads_of_the_ensemble_differ_and_share_the_trunk():
    torch.manual_seed(0)
    critic, x, action = Critic((10,), BOX, {}, trunk='LayerNormTanh', trunk_dim=7, num_critics=2, hidden_dim=8), torch.randn(4, 10), torch.rand(4, 6)
    q = critic(x, action)
    assert (q[0] - q[1]).abs().min() > 1e-4
    h = torch.cat([critic.trunk(x), action], -1)
    assert torch.allclose(q, torch.stack([head(h)[:, 0] for head in critic.heads])) and h.shape == (4, 13)
    assert not torch.allclose(critic(x, -action), q), 'the action matters'


def test_drqv2_has_its_published_size():
    encoder = Encoder(PIXELS, {}, eyes='CNN')
    sizes = {'hidden_dim': 1024, 'depth': 2, 'trunk': 'LayerNormTanh', 'trunk_dim': 50}
    actor, critic = Actor(encoder.repr_shape, BOX, {}, **sizes), Critic(encoder.repr_shape, BOX, {}, num_critics=2, **sizes)
    assert size(actor.pi_head) == 1_107_974 and [size(head) for head in critic.heads] == [1_108_993] * 2
    assert size(encoder) + size(actor) + size(critic) == 7_276_628


# --- Block

class Line(Block):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(3))


def test_a_block_gets_fused_adamw_and_no_schedule():
    block = Line().equip({}, 'recipes.line', lr=0.01, weight_decay=0.2, eps=1e-3)
    group = block.optim.param_groups[0]
    assert type(block.optim) is torch.optim.AdamW and block.scheduler is None
    assert (group['lr'], group['weight_decay'], group['eps'], group['fused']) == (0.01, 0.2, 1e-3, True)
    optimise(2 * block.slope.sum(), block)  # AdamW by hand: decay, then lr · m̂ / (√v̂ + eps) with m̂ = 2 and v̂ = 4
    assert torch.allclose(block.slope.double(), torch.tensor(1 * (1 - 0.01 * 0.2) - 0.01 * 2 / (2 + 1e-3)).double(), atol=1e-7)


def test_the_cosine_schedule():
    block = Line().equip({}, 'recipes.line', lr=0.8, lr_decay_steps=10)
    seen = []
    for _ in range(11):
        seen.append(block.optim.param_groups[0]['lr'])
        optimise(block.slope.sum(), block)
    assert seen == pytest.approx([0.8 * (1 + math.cos(math.pi * t / 10)) / 2 for t in range(11)], abs=1e-9)


def test_recipes_choose_optimiser_and_schedule():
    recipe = {'optim': {'_target_': 'SGD', 'momentum': 0.5}, 'scheduler': {'_target_': 'StepLR', 'step_size': 2, 'gamma': 0.1}}
    block = Line().equip(recipe, 'recipes.line', lr=0.3, lr_decay_steps=10)
    assert type(block.optim) is torch.optim.SGD and block.optim.param_groups[0]['momentum'] == 0.5 and block.optim.param_groups[0]['lr'] == 0.3
    assert type(block.scheduler) is torch.optim.lr_scheduler.StepLR
    assert Line().equip({'optim': {'_target_': None, 'lr': 5.0}}, 'recipes.line', lr=0.3).optim.param_groups[0]['lr'] == 5.0, 'a number of one block'
    with pytest.raises(ValueError, match='recipes.line.optim.momentun: SGD has no such argument; nearest: momentum'):
        Line().equip({'optim': {'_target_': 'SGD', 'momentun': 0.5}}, 'recipes.line', lr=0.3)


def test_a_block_without_weights_can_be_equipped_and_stepped():
    empty, line = Encoder(VECTOR, {}, eyes='Null').equip({}, 'x', lr=0.1), Line().equip({}, 'x', lr=0.1)
    optimise(line.slope.sum(), empty, line)
    assert line.slope.max() < 1 and not list(empty.parameters())


def test_a_frozen_copy_is_weights_only():
    block = Line().equip({}, 'recipes.line', lr=0.1, lr_decay_steps=5)
    optim, scheduler = block.optim, block.scheduler
    twin = block.frozen_copy()
    assert block.optim is optim and block.scheduler is scheduler and not hasattr(twin, 'optim') and twin.scheduler is None
    assert torch.equal(twin.slope, block.slope) and twin.slope.data_ptr() != block.slope.data_ptr()
    assert not twin.slope.requires_grad and block.slope.requires_grad
    optimise(block.slope.sum(), block)
    assert torch.equal(twin.slope, torch.ones(3)) and not torch.equal(block.slope.detach(), torch.ones(3))


def test_orthogonal_initialisation():
    linear, wide, conv = nn.Linear(40, 20), nn.Linear(20, 40), nn.Conv2d(4, 8, 3)
    nn.Sequential(linear, wide, conv).apply(init_orthogonal)
    assert torch.allclose(linear.weight @ linear.weight.T, torch.eye(20), atol=1e-5) and torch.allclose(wide.weight.T @ wide.weight, torch.eye(20), atol=1e-5)
    assert torch.allclose(conv.weight.flatten(1) @ conv.weight.flatten(1).T, 2 * torch.eye(8), atol=1e-5), 'gain √2'
    assert linear.bias.abs().sum() + conv.bias.abs().sum() == 0
