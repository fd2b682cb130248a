"""What all architectures for images have in common: shapes told and made, gradients, memory formats, refusals, names."""
import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import Blocks.Architectures as architectures
from Blocks.Actors import Actor
from Blocks.Architectures import CNN, ViT
from Blocks.Critics import Critic
from Blocks.Encoders import Encoder
from Datasets.Specs import ActionSpec, ObsSpec
from Hparams.Parts import check_types
from Utils import build, locate

ROOT = Path(__file__).parents[2]
WIDE = (3, 40, 64)

# UnifiedML's table of output shapes for 84, 32 and 28 pixels, and what an image that is not square makes of them
SHAPES = {
    'CNN': ((32, 35, 35), (32, 9, 9), (32, 7, 7), (32, 13, 25)),
    'NatureCNN': ((64, 7, 7), None, None, (64, 1, 4)),
    'MiniResNet': ((32, 84, 84), (32, 32, 32), (32, 28, 28), (32, 40, 64)),
    'ResNet18': ((512, 11, 11), (512, 4, 4), (512, 4, 4), (512, 5, 8)),
    'ResNet34': ((512, 11, 11), (512, 4, 4), (512, 4, 4), (512, 5, 8)),
    'ResNet50': ((2048, 11, 11), (2048, 4, 4), (2048, 4, 4), (2048, 5, 8)),
    'ViT': ((32, 1, 21 * 21 + 1), (32, 1, 8 * 8 + 1), (32, 1, 7 * 7 + 1), (32, 1, 10 * 16 + 1)),
    'ConvMixer': ((32, 12, 12), (32, 4, 4), (32, 4, 4), (32, 5, 9)),
    'ConvNeXt': ((32, 5, 5), (32, 2, 2), (32, 1, 1), (32, 2, 4)),
    'ConvNeXtTiny': ((768, 2, 2), (768, 1, 1), (768, 1, 1), (768, 1, 2)),
    'CoAtNet0': ((768, 3, 3), (768, 2, 2), (768, 2, 2), (768, 3, 4)),
    'Perceiver': ((32,),) * 4}
CASES = [(name, image, made) for name, shapes in SHAPES.items() for image, made in zip([(9, 84, 84), (3, 32, 32), (1, 28, 28), WIDE], shapes, strict=True)]
EYES = [name for name in SHAPES if name not in ('ResNet34', 'ResNet50', 'ConvNeXtTiny')]  # one of each make


def eyes(name, *arguments, **options):
    torch.manual_seed(0)
    return getattr(architectures, name)(*arguments, **options)


@pytest.mark.parametrize('name, image, made', [case for case in CASES if case[2]])
def test_the_shape_told_is_the_shape_made_and_every_weight_learns(name, image, made):
    module = eyes(name, image)
    assert module.output_shape == made and isinstance(module.output_shape, tuple)
    x = torch.rand(2, *image, requires_grad=True)
    y = module(x)
    assert y.shape == (2, *made) and y.isfinite().all() and y.std() > 0
    (y * torch.randn_like(y)).sum().backward()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0, 'the image matters'


@pytest.mark.parametrize('name', EYES)
def test_output_dim_ends_in_a_vector(name):
    module = eyes(name, WIDE, 5)
    y = module(torch.rand(2, *WIDE))
    assert module.output_shape == (5,) and y.shape == (2, 5)
    y.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    with pytest.raises(ValueError, match=r'^\w+: output_dim=0: expected 1 or more$'):
        eyes(name, WIDE, 0)


@pytest.mark.parametrize('name', ['CNN', 'NatureCNN', 'ResNet18', 'ConvMixer', 'CoAtNet0'])
def test_the_vector_is_a_linear_map_of_the_mean_over_positions(name):
    module = eyes(name, WIDE, 5).eval()
    x = torch.rand(2, *WIDE)
    linear, mean = module.head.linear, module.layers(x).double().flatten(2).sum(2) / (module.layers(x).shape[2] * module.layers(x).shape[3])
    assert torch.allclose(module(x).double(), mean @ linear.weight.double().T + linear.bias.double(), atol=1e-5)


@pytest.mark.parametrize('name', EYES)
def test_a_flat_image_is_an_image(name):
    module, x = eyes(name, [3, 40, 64]).eval(), torch.rand(2, *WIDE)  # the shape from a command line is a list
    assert torch.equal(module(x.flatten(1)), module(x))
    with pytest.raises(ValueError, match=f'{name if name != "MiniResNet" else "ResNet"}: 7 numbers are no image of 3×40×64, which has 7680'):
        module(torch.rand(2, 7))


@pytest.mark.parametrize('name', EYES)
def test_channels_last_and_bf16(name):
    module, x = eyes(name, WIDE).eval(), torch.rand(2, *WIDE)
    plain = module(x)
    twin = copy.deepcopy(module).to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(twin(x), plain, atol=1e-4 * plain.abs().max().item())
    with torch.autocast('cpu', torch.bfloat16):
        half = twin.train()(x.bfloat16())
        half.float().square().mean().backward()
        close = twin.eval()(x.bfloat16())
        with torch.no_grad():
            assert (twin(x.bfloat16()).float() - close.float()).norm() <= 0.02 * close.float().norm()
    assert all(parameter.grad.isfinite().all() for parameter in twin.parameters())


@pytest.mark.parametrize('name', EYES)
def test_bf16_stays_close_to_fp32(name):
    module, x = eyes(name, WIDE).eval(), torch.rand(2, *WIDE)
    exact = module(x)
    with torch.autocast('cpu', torch.bfloat16):
        assert 0 < (module(x).float() - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize('name', EYES)
def test_copies_are_equal_and_independent(name):
    module, x = eyes(name, WIDE).eval(), torch.rand(2, *WIDE)
    twin, before = copy.deepcopy(module), module(x)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(module(x), before) and not torch.equal(twin(x), before)
    other = eyes(name, WIDE)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.eval()(x), before)


@pytest.mark.parametrize('name', EYES)
def test_building_leaves_batch_norm_and_mode_as_torch_makes_them(name):
    module = eyes(name, WIDE, 5)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(layer.num_batches_tracked == 0 and not layer.running_mean.any() and (layer.running_var == 1).all() for layer in norms)
    assert all(layer.training for layer in module.modules())
    assert all(parameter.requires_grad and parameter.grad is None and parameter.isfinite().all() for parameter in module.parameters())


def test_default_weights_of_the_cnn_are_those_of_four_convolutions_in_a_row():
    torch.manual_seed(3)
    convolutions = [nn.Conv2d(*size) for size in ((9, 32, 3, 2), (32, 32, 3), (32, 32, 3), (32, 32, 3))]
    after = torch.rand(4)
    torch.manual_seed(3)
    module = CNN((9, 84, 84))
    assert torch.equal(torch.rand(4), after), 'the shape is found without a random number'
    assert list(module.state_dict()) == [f'layers.{2 * i}.{name}' for i in range(4) for name in ('weight', 'bias')]
    x = torch.rand(2, 9, 84, 84)
    y = x
    for convolution in convolutions:
        y = convolution(y).relu()
    assert torch.equal(module(x), y)


def test_options_of_the_cnn():
    assert CNN((3, 32, 32), padding=1, stride=1).output_shape == (32, 32, 32)
    assert CNN((3, 32, 32), padding=1, depth=0).output_shape == (32, 16, 16)
    module = eyes('CNN', (3, 32, 32), batch_norm=True, depth=1, out_channels=8)
    assert sum(p.numel() for p in module.parameters()) == 3 * 8 * 9 + 16 + 8 * 8 * 9 + 16, 'a bias before batch norm would do nothing'
    y = module.layers[1](module.layers[0](torch.rand(4, 3, 32, 32)))
    assert torch.allclose(y.mean((0, 2, 3)), torch.zeros(8), atol=1e-5) and torch.allclose(y.var((0, 2, 3)), torch.ones(8), atol=1e-2)


@pytest.mark.parametrize('name', [name for name in SHAPES if name != 'Perceiver'])
def test_a_vector_for_eyes_is_one_line(name):
    with pytest.raises(ValueError, match=r'^\w+ sees images \(C, H, W\), not \(17,\); for vectors choose Eyes=Null or Eyes=MLP$'):
        eyes(name, (17,))


@pytest.mark.parametrize('name, image, options, message', [
    ('ViT', (1, 28, 28), {'patch_size': 5}, 'ViT: patch_size=5 does not divide an image of 28×28; try 4 or 7'),
    ('ViT', (1, 28, 32), {'patch_size': 7}, 'ViT: patch_size=7 does not divide an image of 28×32; try 4'),
    ('ViT', (1, 29, 29), {}, 'ViT: patch_size=4 does not divide an image of 29×29; try 1 or 29'),
    ('ViT', (1, 28, 28), {'patch_size': 0}, 'ViT: patch_size=0: expected 1 or more'),
    ('ViT', (1, 28, 28), {'out_channels': 20}, 'ViT: heads=8 does not divide 20 channels; try 5 or 10'),
    ('ViT', (1, 28, 28), {'pool_type': 'max'}, 'ViT: pool_type=max: expected cls or mean'),
    ('ConvMixer', (1, 6, 28), {}, 'ConvMixer: patch_size=7 is larger than an image of 6×28; expected 6 or less'),
    ('ConvNeXt', (3, 7, 32), {}, 'ConvNeXt: an image of 7×32 is too small for patch_size=2 and 3 stages: expected sides of 8 or more'),
    ('ConvNeXtTiny', (3, 28, 28), {'patch_size': 4},
     'ConvNeXtTiny: an image of 28×28 is too small for patch_size=4 and 4 stages: expected sides of 32 or more'),
    ('ConvNeXt', (3, 32, 32), {'dims': [8], 'depths': [1, 1]},
     'ConvNeXt: dims=[8], depths=[1, 1]: expected as many of dims as of depths, all of them 1 or more'),
    ('ConvNeXt', (3, 32, 32), {'stochastic_depth': 1.5}, 'stochastic_depth=1.5: expected a probability below 1'),
    ('CoAtNet0', (3, 16, 84), {}, 'CoAtNet0: an image of 16×84 is too small: expected sides of 17 or more'),
    ('CoAtNet', (3, 32, 32), {'dims': [8, 8], 'depths': [1, 1]}, 'CoAtNet: dims=[8, 8]: expected five, of the stem and four stages'),
    ('CoAtNet', (3, 32, 32), {'head_dim': 20},
     'CoAtNet: head_dim=20 does not divide the channels 384 and 768 of the attention; try 16 or 24'),
    ('ResNet18', (3, 32, 32), {'stem': 'small'}, 'ResNet18: stem=small: expected auto, cifar or imagenet'),
    ('ResNet', (3, 32, 32), {'kernel_size': 4}, 'ResNet: kernel_size=4: expected an odd number'),
    ('ResNet', (3, 32, 32), {'dims': [32]}, 'ResNet: dims=[32], depths=[3]: expected one more of dims than of depths, all of them 1 or more'),
    ('Perceiver', (3, 4), {}, 'Perceiver sees maps (C, H, W) and vectors (D,), not (3, 4); choose what comes before it accordingly'),
    ('CNN', (3, 0, 32), {}, 'CNN: height=0: expected 1 or more')])
def test_refusals_are_one_line(name, image, options, message):
    with pytest.raises(ValueError) as error:
        eyes(name, image, **options)
    assert str(error.value) == message


# --- names and recipes

@pytest.mark.parametrize('name', [*architectures.__all__, 'DCGAN.Generator', 'DCGAN.Discriminator', 'Blocks.Architectures.DCGAN.Generator'])
def test_every_architecture_has_its_short_name(name):
    found = locate(name, 'recipes.encoder.eyes')
    assert found.__name__ == {'MiniResNet': 'ResNet'}.get(name, name.rpartition('.')[2]) and found.__module__.startswith('Blocks.Architectures.')


def test_a_users_own_file_comes_before_a_module_of_ours(tmp_path, monkeypatch):
    (tmp_path / 'DCGAN.py').write_text('class Generator:\n    pass\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    try:
        assert locate('DCGAN.Generator', 'recipes.actor.pi_head').__module__ == 'DCGAN'
    finally:
        sys.modules.pop('DCGAN', None)


def test_an_unknown_class_of_a_module_of_ours_is_one_line():
    with pytest.raises(ValueError, match=r'^recipes.actor.pi_head=DCGAN.Genrator: no such name; nearest: Generator'):
        locate('DCGAN.Genrator', 'recipes.actor.pi_head')
    with pytest.raises(ValueError, match=r"no module 'DCGAN'"):
        locate('DCGAN.Generator', 'recipes.encoder.optim')


def test_arguments_reach_the_constructor_and_misspelt_ones_are_told():
    made = build({'_target_': 'ViT', 'patch_size': 7}, 'CNN', 'recipes.encoder.eyes', input_shape=(3, 84, 84), output_dim=None)
    assert made.output_shape == (32, 1, 12 * 12 + 1)
    with pytest.raises(ValueError, match=r'^recipes.encoder.eyes.patchsize: ViT has no such argument; nearest: patch_size'):
        build({'_target_': 'ViT', 'patchsize': 7}, 'CNN', 'recipes.encoder.eyes', input_shape=(3, 84, 84))
    with pytest.raises(ValueError, match=r'^recipes.encoder.eyes.stem=small: expected auto, cifar, imagenet$'):
        check_types({'stem': 'small'}, architectures.ResNet18, 'recipes.encoder.eyes')
    check_types({'dims': [8, 8], 'depths': [1]}, architectures.ResNet, 'recipes.encoder.eyes')


def test_importing_the_names_imports_no_torchvision():
    code = "import sys; from Blocks.Architectures import MLP; assert not {'torchvision', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, timeout=60)


# --- in the blocks of an agent

def test_eyes_and_pools_in_an_encoder():
    spec, obs = ObsSpec((1, 28, 28)), torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8)
    for name, pool, size in (('ViT', 'CLSPool', 32), ('ResNet', 'AvgPool', 32), ('ConvMixer', 'AttentionPool', 32), ('CNN', 'RN', 256),
                             ('ViT', 'Flatten', 32 * 50)):
        encoder = Encoder(spec, {'eyes': {'_target_': name}, 'pool': {'_target_': pool}}, eyes='CNN')
        assert encoder.repr_shape == (size,) and encoder(obs).shape == (2, size), (name, pool)
    encoder = Encoder(spec, {'eyes': {'_target_': 'ViT'}, 'pool': {'_target_': 'CLSPool'}}, eyes='CNN').eval()
    assert torch.equal(encoder(obs), encoder.features(obs)[:, :, 0, 0]), 'the class token is the first'


@pytest.mark.parametrize('trunk', ['AttentionPool', 'AvgPool', 'Transformer', 'Perceiver', 'RN', 'ViT'])
def test_trunks_over_the_map_itself(trunk):
    recipe = {'eyes': {'_target_': 'CNN', 'depth': 1}, 'pool': {'_target_': 'Null'}}
    encoder = Encoder(ObsSpec((1, 28, 28)), recipe, eyes='CNN')
    options = {'patch_size': 11} if trunk == 'ViT' else {}
    sizes = {'trunk_dim': 50, 'hidden_dim': 16, 'depth': 1}
    actor = Actor(encoder.repr_shape, ActionSpec((10,)), {'trunk': {'_target_': trunk, **options}}, **sizes)
    critic = Critic(encoder.repr_shape, ActionSpec((10,)), {'trunk': {'_target_': trunk, **options}}, num_critics=2, **sizes)
    features = encoder(torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8))
    mean = actor(features, 0.1).mean
    q = critic(features, mean)
    assert features.shape == (3, 32, 11, 11) and actor.trunk.output_shape == (50,) and mean.shape == (3, 10) and q.shape == (2, 3)
    q.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for block in (encoder, actor, critic) for p in block.parameters())


def test_a_cnn_as_discriminator_of_a_flat_image():
    recipe = {'q_head': {'_target_': 'CNN', 'input_shape': [3, 32, 32]}}
    head = build(recipe['q_head'], 'MLP', 'recipes.critic.q_head', input_shape=(50 + 3072,), output_dim=1, hidden_dim=16)
    image = torch.rand(4, 3, 32, 32)
    assert head.output_shape == (1,) and torch.equal(head(image.flatten(1)), head(image)) and head(image).shape == (4, 1)


def test_vit_as_class_tokens_or_means():
    cls, mean = (eyes('ViT', (3, 32, 32), 7, pool_type=pool_type).eval() for pool_type in ('cls', 'mean'))
    assert ViT((3, 32, 24), pool_type='mean').output_shape == (32, 8, 6)
    x = torch.rand(2, 3, 32, 32)
    for module, pooled in ((cls, cls.layers(x)[:, :, 0, 0]), (mean, mean.layers(x).mean((2, 3)))):
        assert torch.allclose(module(x), pooled @ module.head.linear.weight.T + module.head.linear.bias, atol=1e-5)
