"""Networks of timm, where it is installed; and one line where it is not."""
import copy
import sys

import pytest
import torch

from Blocks.Architectures.Timm import Timm
from Blocks.Encoders import Encoder
from Blocks.Vision import import_torchvision
from Datasets.Specs import ObsSpec
from Utils import accepted, build, locate


@pytest.fixture(scope='module')
def timm():
    import_torchvision()
    return pytest.importorskip('timm')


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_without_timm_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ImportError) as error:
        build({'_target_': 'timm.resnet18'}, 'CNN', 'recipes.encoder.eyes', input_shape=(3, 32, 32))
    assert str(error.value) == 'timm.resnet18 needs timm: pip install timm==1.0.31'


def test_a_name_is_a_class_of_its_own_that_takes_what_timm_takes():
    found = locate('timm.resnet18', 'recipes.encoder.eyes')
    assert issubclass(found, Timm) and found.model == found.__name__ == 'resnet18' and found is locate('timm.resnet18', 'recipes.encoder.pool')
    assert locate('timm.vit_tiny_patch16_224.augreg_in21k', 'recipes.encoder.eyes').model == 'vit_tiny_patch16_224.augreg_in21k', 'a tag is part of it'
    assert accepted(found) == ({'input_shape', 'output_dim', 'name', 'pretrained', 'options'}, False)
    with pytest.raises(ValueError, match=r'^recipes.encoder.eyes.pretraind: resnet18 has no such argument; nearest: pretrained'):
        build({'_target_': 'timm.resnet18', 'pretraind': True}, 'CNN', 'recipes.encoder.eyes', input_shape=(3, 32, 32))


@pytest.mark.parametrize('name, shape, made', [('resnet18', (9, 84, 84), (512, 3, 3)), ('vit_tiny_patch16_224', (3, 64, 96), (192, 4, 6)),
                                               ('convnext_atto', (1, 32, 64), (320, 1, 2)), ('swin_tiny_patch4_window7_224', (3, 32, 64), (768, 1, 2)),
                                               ('mobilenetv3_small_050.lamb_in1k', (3, 64, 64), (288, 2, 2))])
def test_maps_and_heads(timm, name, shape, made):
    torch.manual_seed(0)
    module, x = build({'_target_': f'timm.{name}'}, 'CNN', 'recipes.encoder.eyes', input_shape=shape), torch.rand(2, *shape)
    assert module.output_shape == made and module(x).shape == (2, *made)
    module(x).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters()) and any(p.grad is not None for p in module.parameters())
    module.eval()
    assert torch.equal(copy.deepcopy(module)(x.flatten(1)), module(x))
    with torch.autocast('cpu', torch.bfloat16):
        assert copy.deepcopy(module).to(memory_format=torch.channels_last)(x).isfinite().all()
    head = Timm(shape, 5, name)
    assert head.output_shape == (5,) and head(x).shape == (2, 5)


def test_it_is_timms_network(timm):
    torch.manual_seed(0)
    module = Timm((4, 64, 64), name='resnet18').eval()
    reference = timm.create_model('resnet18', num_classes=0, in_chans=4).eval()
    reference.load_state_dict(dict(module.network.state_dict()))
    x = torch.rand(2, 4, 64, 64)
    assert torch.allclose(module(x), reference.forward_features(x), atol=1e-5) and size(module) == size(reference)
    assert size(Timm((3, 64, 64), 1000, 'resnet18')) == 11_689_512, 'the published size'


def test_options_reach_the_network(timm):
    module = Timm((3, 64, 64), name='resnet18', options={'drop_rate': 0.25, 'block_args': {'attn_layer': 'se'}})
    assert size(module) > size(Timm((3, 64, 64), name='resnet18'))


def test_in_an_encoder(timm):
    encoder = Encoder(ObsSpec((3, 64, 64)), {'eyes': {'_target_': 'timm.resnet18'}, 'pool': {'_target_': 'AvgPool'}}, eyes='CNN', hidden_dim=7, depth=2)
    assert encoder.repr_shape == (512,) and encoder(torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)).shape == (2, 512)


@pytest.mark.parametrize('name, shape, options, message', [
    ('resnet81', (3, 64, 64), {}, r"^timm.resnet81: timm \S+ has no network of the name 'resnet81'; nearest: resnet18"),
    ('resnet18', (17,), {}, r'^timm.resnet18 sees images \(C, H, W\), not \(17,\); for vectors choose Eyes=Null or Eyes=MLP$'),
    ('convnext_atto', (3, 28, 28), {}, r'^timm.convnext_atto, image 3×28×28, options=\{\}: \w'),
    ('xcit_nano_12_p16_224', (3, 84, 84), {}, r'^timm.xcit_nano_12_p16_224, image 3×84×84, options=\{\}: .*patch_size'),
    ('resnet18', (3, 64, 64), {'drop_pth': 1}, r"^timm.resnet18, image 3×64×64, options=\{'drop_pth': 1\}: .*drop_pth")])
def test_refusals_are_one_line(timm, name, shape, options, message):
    with pytest.raises(ValueError, match=message) as error:
        Timm(shape, name=name, options=options)
    assert '\n' not in str(error.value)
