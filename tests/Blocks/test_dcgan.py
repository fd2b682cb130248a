"""DCGAN's generator and discriminator: published sizes, shapes, the image as an action."""
import pytest
import torch
from torch import nn

from Blocks.Actors import Actor
from Blocks.Architectures.DCGAN import Discriminator, Generator
from Datasets.Specs import ActionSpec
from Utils import build

SHAPES = [(3, 64, 64), (3, 32, 32), (1, 28, 28), (9, 84, 84), (1, 4, 4), (2, 8, 8), (3, 48, 64)]


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_published_sizes():
    """Those of the paper's networks for 64 pixels, 100 numbers of noise and 64 channels, in PyTorch's DCGAN example."""
    assert size(Generator((100,), image_shape=(3, 64, 64))) == 3_576_704
    assert size(Discriminator((3, 64, 64))) == 2_765_568


@pytest.mark.parametrize('shape', SHAPES)
def test_from_noise_to_an_image_to_a_number(shape):
    torch.manual_seed(0)
    generator, discriminator = Generator((50,), image_shape=list(shape), out_channels=8), Discriminator(shape, out_channels=8)
    image = generator(torch.randn(6, 50))
    assert image.shape == (6, *shape) and generator.output_shape == shape and image.abs().max() < 1
    assert image.std(0).mean() > 1e-3, 'other noise, other image'
    logit = discriminator(image)
    assert logit.shape == (6, 1) and discriminator.output_shape == (1,)
    logit.sum().backward()
    for module in (generator, discriminator):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    discriminator.eval()
    assert torch.equal(discriminator(image.flatten(1)), discriminator(image))


def test_layers_double_from_the_start_to_the_image():
    def sides(module, x):
        seen = []
        for layer in module.layers:
            x = layer(x)
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                seen.append(tuple(x.shape[1:]))
        return seen

    made = sides(Generator((10,), image_shape=(3, 64, 64), out_channels=4), torch.randn(2, 10))
    assert made == [(32, 4, 4), (16, 8, 8), (8, 16, 16), (4, 32, 32), (3, 64, 64)]
    made = sides(Generator((10,), image_shape=(1, 28, 28), out_channels=4), torch.randn(2, 10))
    assert made == [(8, 7, 7), (4, 14, 14), (1, 28, 28)]
    made = sides(Discriminator((1, 28, 28), out_channels=4), torch.rand(2, 1, 28, 28))
    assert made == [(4, 14, 14), (8, 7, 7), (1, 1, 1)]


def test_as_an_action_the_image_is_flat():
    torch.manual_seed(0)
    flat, image = Generator((10,), 3072, out_channels=4), Generator((10,), image_shape=(3, 32, 32), out_channels=4)
    image.load_state_dict(flat.state_dict())
    z = torch.randn(5, 10)
    assert flat.output_shape == (3072,) and torch.equal(flat(z), image(z).flatten(1))
    assert Generator((10,), 784).image_shape == (1, 28, 28) and Generator((2, 5), 9 * 84 * 84, [9, 84, 84], 4)(torch.randn(2, 2, 5)).shape == (2, 9 * 84 * 84)
    raw = Generator((10,), 784, out_channels=4, tanh=False)
    squashed = Generator((10,), 784, out_channels=4)
    squashed.load_state_dict(raw.state_dict())
    assert torch.equal(raw(z).tanh(), squashed(z))


def test_in_an_actor_and_as_a_head():
    recipe = {'pi_head': {'_target_': 'DCGAN.Generator', 'out_channels': 4, 'tanh': False}}
    actor = Actor((50,), ActionSpec((784,)), recipe, hidden_dim=16, depth=2)
    assert actor(torch.randn(3, 50), 0.1).mean.shape == (3, 784)
    head = build({'_target_': 'DCGAN.Discriminator', 'input_shape': [1, 28, 28]}, 'MLP', 'recipes.critic.q_head', input_shape=(834,), output_dim=1,
                 hidden_dim=16, depth=2)
    assert head(torch.randn(3, 784)).shape == (3, 1)


def test_weights_begin_as_the_papers():
    torch.manual_seed(0)
    for module in (Generator((100,), image_shape=(3, 64, 64)), Discriminator((3, 64, 64))):
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                assert layer.bias is None and layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and abs(layer.weight.mean()) < 1e-3
            if isinstance(layer, nn.BatchNorm2d):
                assert not layer.bias.any() and layer.weight.mean().item() == pytest.approx(1, abs=0.01) and 0.01 < layer.weight.std() < 0.03
    slopes = [layer.negative_slope for layer in module.modules() if isinstance(layer, nn.LeakyReLU)]
    assert slopes == [0.2] * 4


def test_channels_last_and_bf16():
    torch.manual_seed(0)
    generator, discriminator = Generator((10,), image_shape=(3, 32, 32), out_channels=8).eval(), Discriminator((3, 32, 32), out_channels=8).eval()
    exact = discriminator(generator(z := torch.randn(4, 10)))
    for module in (generator, discriminator):
        module.to(memory_format=torch.channels_last)
    assert torch.allclose(discriminator(generator(z)), exact, atol=1e-5)
    with torch.autocast('cpu', torch.bfloat16):
        assert (discriminator(generator(z)).float() - exact).norm() < 0.05 * exact.norm() + 1e-3


@pytest.mark.parametrize('make, message', [
    (lambda: Generator((10,)), 'DCGAN.Generator: nothing says which image to make; give image_shape=[C,H,W]'),
    (lambda: Generator((10,), 785), 'DCGAN.Generator: output_dim=785 is no square image of 1 or 3 channels; give image_shape=[C,H,W]'),
    (lambda: Generator((10,), 784, (3, 32, 32)), 'DCGAN.Generator: image_shape=[3, 32, 32] has 3072 numbers, output_dim=784 asks for others'),
    (lambda: Generator((10,), image_shape=[32, 32]), 'DCGAN.Generator: image_shape=[32, 32]: expected [C,H,W]'),
    (lambda: Generator((10,), image_shape=(3, 210, 160)),
     'DCGAN.Generator: an image of 210×160: expected sides of 4 to 24 pixels times the same power of two, as 28, 32, 64 and 84 are'),
    (lambda: Discriminator((3, 2, 2)),
     'DCGAN.Discriminator: an image of 2×2: expected sides of 4 to 24 pixels times the same power of two, as 28, 32, 64 and 84 are'),
    (lambda: Discriminator((784,)), 'Discriminator sees images (C, H, W), not (784,); for vectors choose Eyes=Null or Eyes=MLP'),
    (lambda: Discriminator((1, 28, 28))(torch.rand(2, 700)), 'Discriminator: 700 numbers are no image of 1×28×28, which has 784')])
def test_refusals_are_one_line(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
