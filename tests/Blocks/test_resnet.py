"""Residual networks against torchvision's own."""
from functools import partial

import pytest
import torch
from torch import nn

from Blocks.Architectures import MiniResNet, ResNet, ResNet18, ResNet34, ResNet50
from Blocks.Vision import import_torchvision


def torchvisions(name, channels=3, stem='imagenet'):
    """torchvision's network without its linear layer, its first convolution made for these channels."""
    torch.manual_seed(1)
    network = getattr(import_torchvision('models'), name)(num_classes=1)
    if channels != 3 or stem == 'cifar':
        network.conv1 = nn.Conv2d(channels, 64, *((3, 1, 1) if stem == 'cifar' else (7, 2, 3)), bias=False)
    if stem == 'cifar':
        network.maxpool = nn.Identity()
    network.avgpool = nn.Identity()
    network.fc = nn.Identity()
    return network


def size(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize('eyes, name', [(ResNet18, 'resnet18'), (ResNet34, 'resnet34'), (ResNet50, 'resnet50')])
@pytest.mark.parametrize('stem, channels', [('imagenet', 3), ('cifar', 9)])
def test_with_torchvisions_weights_it_computes_what_torchvision_does(eyes, name, stem, channels):
    reference, module, x = torchvisions(name, channels, stem).eval(), eyes((channels, 40, 56), stem=stem).eval(), torch.rand(2, channels, 40, 56)
    for norm in reference.modules():  # moments that are not those of the start
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)
    module.layers.load_state_dict(reference.state_dict())
    assert list(module.layers.state_dict()) == list(reference.state_dict()), 'torchvision\'s names'
    y = module(x)
    assert torch.equal(y.flatten(1), reference(x)) and y.shape[1:] == module.output_shape and y.std() > 1e-3
    assert size(module) == size(reference)


def test_published_sizes():
    """The sizes on torchvision's pages less the linear layers, 1000 · (512 + 1) and 1000 · (2048 + 1)."""
    assert size(ResNet18((3, 224, 224))) == 11_689_512 - 513_000
    assert size(ResNet34((3, 224, 224))) == 21_797_672 - 513_000
    assert size(ResNet50((3, 224, 224))) == 25_557_032 - 2_049_000
    assert size(ResNet18((3, 32, 32))) == 11_689_512 - 513_000 - 64 * 3 * (49 - 9)


def test_the_stem_follows_the_size_of_the_image():
    def stem(module):
        return module.layers.conv1.kernel_size, module.layers.conv1.stride, hasattr(module.layers, 'maxpool')

    cifar, imagenet = ((3, 3), (1, 1), False), ((7, 7), (2, 2), True)
    assert stem(ResNet18((3, 95, 200))) == cifar and stem(ResNet18((3, 96, 96))) == imagenet
    assert stem(ResNet18((3, 84, 84), stem='imagenet')) == imagenet and ResNet18((3, 84, 84), stem='imagenet').output_shape == (512, 3, 3)
    assert stem(ResNet18((3, 224, 224), stem='cifar')) == cifar and ResNet18((3, 224, 224)).output_shape == (512, 7, 7)
    assert stem(ResNet((3, 224, 224))) == cifar, 'the small one keeps the resolution'


def test_weights_begin_as_torchvisions_do():
    torch.manual_seed(0)
    module = ResNet18((3, 32, 32))
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1) and layer.bias is None
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 20 and all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


@pytest.mark.parametrize('eyes', [ResNet18, ResNet50, partial(ResNet, dims=(16, 16), depths=(2,))])
def test_with_zero_init_residual_blocks_begin_as_identities(eyes):
    module, x = eyes((3, 32, 32), zero_init_residual=True).eval(), torch.rand(1, 3, 32, 32)
    plain = eyes((3, 32, 32)).eval()
    seen = []
    for network in (module, plain):
        network.layers.layer1[1].register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
        network(x)
    (before, after), (plain_before, plain_after) = seen
    assert torch.equal(before, after) and not torch.allclose(plain_before, plain_after, atol=1e-2)


def test_the_small_one():
    """A stem and three blocks of 32 channels, 3×3 everywhere, each convolution with a batch norm behind it."""
    assert MiniResNet is ResNet
    module = ResNet((9, 84, 84))
    assert size(module) == 9 * 32 * 9 + 64 + 6 * (32 * 32 * 9 + 64) and module.output_shape == (32, 84, 84)
    wide = ResNet((9, 84, 50), dims=[8, 8, 16, 24], depths=[1, 2, 1], stride=3, kernel_size=5)
    assert wide.output_shape == (24, 10, 6) == tuple(wide(torch.rand(2, 9, 84, 50)).shape[1:]), 'strides begin at the second stage; sides are rounded up'
    first = 9 * 8 * 25 + 16 + 2 * (8 * 8 * 25 + 16)
    second = (8 * 16 * 25 + 32) + 3 * (16 * 16 * 25 + 32) + (8 * 16 + 32)
    assert size(wide) == first + second + (16 * 24 * 25 + 48) + (24 * 24 * 25 + 48) + (16 * 24 + 48)


def test_a_bottleneck_has_kernels_of_three():
    with pytest.raises(ValueError, match='^ResNet: kernel_size=5: expected 3, as a bottleneck has it$'):
        ResNet((3, 32, 32), kernel_size=5, bottleneck=True)
    assert ResNet((3, 32, 32), dims=(8, 4), depths=(1,), bottleneck=True).output_shape == (16, 32, 32)
