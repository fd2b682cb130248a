"""ConvMixer, ConvNeXt and CoAtNet against torchvision, formulas and brute force."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import Blocks.Architectures as architectures
from Blocks.Architectures import CoAtNet, ConvMixer, ConvNeXt, ConvNeXtTiny
from Blocks.Architectures.CoAtNet import AttentionBlock, RelativeAttention
from Blocks.Vision import import_torchvision


def size(module):
    return sum(p.numel() for p in module.parameters())


# --- ConvMixer

@pytest.mark.parametrize('channels, width, depth, kernel, patch', [(3, 32, 3, 9, 7), (9, 8, 2, 5, 5), (1, 6, 0, 3, 2)])
def test_size_of_the_conv_mixer(channels, width, depth, kernel, patch):
    module = ConvMixer((channels, 28, 35), out_channels=width, depth=depth, kernel_size=kernel, patch_size=patch)
    norm = 2 * width
    assert size(module) == channels * width * patch ** 2 + width + norm + depth * (width * kernel ** 2 + width + norm + width ** 2 + width + norm)
    assert module(torch.rand(2, channels, 28, 35)).shape == (2, *module.output_shape) == (2, width, 28 // patch, 35 // patch)


def test_the_conv_mixer_is_what_the_paper_writes():
    """z₀ = BN(σ(patches)), z′ = BN(σ(depthwise(z))) + z, z = BN(σ(pointwise(z′))); with moments 0 and 1 the norm divides by √(1 + 1e-5)."""
    torch.manual_seed(0)
    module, x = ConvMixer((3, 21, 14), out_channels=4, depth=2, kernel_size=5, patch_size=7).double().eval(), torch.rand(2, 3, 21, 14).double()
    patches, *convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]

    def norm(y):
        return F.gelu(y) / (1 + 1e-5) ** 0.5

    z = norm(F.conv2d(x, patches.weight, patches.bias, 7))
    for depthwise, pointwise in zip(convolutions[::2], convolutions[1::2], strict=True):
        z = norm(F.conv2d(F.pad(z, (2, 2, 2, 2)), depthwise.weight, depthwise.bias, groups=4)) + z
        z = norm(torch.einsum('oi,bihw->bohw', pointwise.weight[:, :, 0, 0], z) + pointwise.bias.view(-1, 1, 1))
    assert torch.allclose(module(x), z, atol=1e-10) and z.std() > 1e-3


def test_the_conv_mixer_sees_whole_patches_only():
    module, x = ConvMixer((1, 20, 16)).eval(), torch.rand(1, 1, 20, 16, requires_grad=True)
    module(x).sum().backward()
    assert (x.grad[..., :14, :14] != 0).any() and not x.grad[..., 14:, :].any() and not x.grad[..., :, 14:].any()


# --- ConvNeXt

def torchvisions(settings, classes):
    convnext = import_torchvision('models.convnext')
    torch.manual_seed(1)
    return convnext.ConvNeXt([convnext.CNBlockConfig(*setting) for setting in settings], num_classes=classes).eval()


@pytest.mark.parametrize('eyes, settings', [
    (ConvNeXt, [(96, 192, 1), (192, 32, 1), (32, None, 3)]),
    (ConvNeXtTiny, [(96, 192, 3), (192, 384, 3), (384, 768, 9), (768, None, 3)])])
def test_with_torchvisions_weights_it_computes_what_torchvision_does(eyes, settings):
    reference, x = torchvisions(settings, 5), torch.rand(2, 3, 64, 96)
    for name, parameter in reference.named_parameters():
        if name.endswith('layer_scale'):  # 1e-6 would hide the blocks
            nn.init.uniform_(parameter, 0.5, 1)
    features, module = eyes((3, 64, 96)).eval(), eyes((3, 64, 96), 5).eval()
    features.layers.load_state_dict(reference.features.state_dict())
    module.layers.load_state_dict(reference.features.state_dict())
    module.head.norm.load_state_dict(reference.classifier[0].state_dict())
    module.head.linear.load_state_dict(reference.classifier[2].state_dict())
    assert torch.allclose(features(x), reference.features(x), atol=1e-5) and torch.allclose(module(x), reference(x), atol=1e-5)
    assert reference(x).std() > 1e-2 and size(module) == size(reference)


def test_convnext_begins_as_torchvisions_does():
    torch.manual_seed(0)
    module = ConvNeXt((9, 32, 32), 5)
    linears = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(linears) == 1 + 2 + 5 * 3 + 1
    assert all(not layer.bias.any() and layer.weight.std().item() == pytest.approx(0.02, rel=0.1) and layer.weight.abs().max() <= 2 for layer in linears)
    scales = [parameter for name, parameter in module.named_parameters() if name.endswith('layer_scale')]
    assert len(scales) == 5 and all((scale == 1e-6).all() for scale in scales)


def test_patches_of_small_images_are_smaller():
    def patch(module):
        return module.layers[0][0].kernel_size, module.layers[0][0].stride

    assert patch(ConvNeXtTiny((3, 32, 32))) == ((4, 4), (4, 4)) and patch(ConvNeXtTiny((3, 31, 40))) == ((2, 2), (2, 2))
    assert patch(ConvNeXt((3, 28, 28))) == ((4, 4), (4, 4)) and patch(ConvNeXt((3, 28, 28), patch_size=2)) == ((2, 2), (2, 2))
    assert ConvNeXt((3, 28, 28), patch_size=2).output_shape == (32, 3, 3)
    assert ConvNeXt((3, 28, 28), dims=[8], depths=[1]).output_shape == (8, 7, 7), 'one stage, one block'


def test_stochastic_depth_rises_to_the_last_block():
    for module, count in ((ConvNeXt((3, 32, 32), stochastic_depth=0.4), 5), (CoAtNet((3, 32, 32), dims=[8, 8, 8, 32, 32], depths=[1, 1, 2, 1, 1],
                                                                                     stochastic_depth=0.4), 5)):
        probabilities = [layer.p for layer in module.modules() if type(layer).__name__ == 'StochasticDepth']
        known = [0.4 * i / (count - 1) for i in range(count)]
        assert probabilities == pytest.approx(known if len(probabilities) == count else known[1:]), 'a convolution with probability 0 has none'
        x = torch.rand(64, 3, 32, 32)
        with torch.no_grad():
            for parameter_name, parameter in module.named_parameters():
                if parameter_name.endswith('layer_scale'):
                    parameter.fill_(1)
        assert not torch.allclose(module(x[:1].expand(64, -1, -1, -1)).std(0), torch.zeros(()), atol=1e-4), 'in training, images of a batch lose other blocks'
        assert torch.equal(module.eval()(x), module(x))


# --- CoAtNet

@pytest.mark.parametrize('number, millions', [(0, 25), (1, 42), (2, 75), (3, 168), (4, 275)])
def test_coatnets_have_the_published_sizes(number, millions):
    """Table 4 of the paper, at 224 pixels and 1000 classes. MBConv is torchvision's, which squeezes to a quarter of its output."""
    with torch.device('meta'):
        assert size(getattr(architectures, f'CoAtNet{number}')((3, 224, 224), 1000)) == pytest.approx(millions * 1e6, rel=0.025)


def test_the_size_of_a_small_coatnet_by_hand():
    def mbconv(before, dim):
        wide, squeezed = 4 * dim, dim // 4
        return 2 * before + before * wide + 2 * wide + 9 * wide + 2 * wide + 2 * wide * squeezed + squeezed + wide + wide * dim + dim

    def attention(before, dim, positions, beside):
        block = 2 * before + (before + 1) * 3 * dim + (dim + 1) * dim + (dim // 32) * positions + 2 * dim + (dim + 1) * 4 * dim + (4 * dim + 1) * dim
        return block + beside * (before + 1) * dim

    module = CoAtNet((3, 84, 66), dims=(8, 8, 16, 32, 64), depths=(1, 2, 1, 1, 2))
    beside = 8 * 8 + 8, 8 * 16 + 16  # of the blocks with a stride
    convolutions = 3 * 8 * 9 + 16 + mbconv(8, 8) * 2 + beside[0] + mbconv(8, 16) + beside[1]
    attentions = attention(16, 32, 11 * 9, 1) + attention(32, 64, 25, 1) + attention(64, 64, 25, 0)
    assert module.output_shape == (64, 3, 3) and size(module) == convolutions + attentions


def test_the_stem_of_small_images_keeps_the_resolution():
    sizes = {'dims': (8, 8, 8, 32, 32), 'depths': (1, 1, 1, 1, 1)}
    assert CoAtNet((3, 64, 64), **sizes).output_shape == (32, 2, 2) and CoAtNet((3, 63, 64), **sizes).output_shape == (32, 4, 4)
    assert CoAtNet((3, 17, 17), **sizes).output_shape == (32, 2, 2) and CoAtNet((3, 224, 160), **sizes).output_shape == (32, 7, 5)


def test_relative_attention_against_loops():
    """Each logit is q·k / √d plus what belongs to the offset (Δy, Δx) between the two positions."""
    torch.manual_seed(0)
    height, width, dim, head_dim = 3, 4, 8, 4
    module, x = RelativeAttention(5, dim, (height, width), head_dim).double(), torch.randn(2, height * width, 5).double()
    nn.init.normal_(module.offsets)
    table = module.offsets.view(2, 2 * height - 1, 2 * width - 1)
    q, k, v = module.qkv(x).chunk(3, -1)
    out = torch.zeros(2, height * width, dim).double()
    for b in range(2):
        for head in range(2):
            part = slice(head * head_dim, (head + 1) * head_dim)
            for i in range(height * width):
                logits = torch.stack([q[b, i, part] @ k[b, j, part] / head_dim ** 0.5
                                      + table[head, i // width - j // width + height - 1, i % width - j % width + width - 1] for j in range(height * width)])
                out[b, i, part] = logits.softmax(0) @ v[b, :, part]
    assert torch.allclose(module(x), module.merge(out), atol=1e-10)


def test_an_attention_block_with_a_stride():
    """x ← Proj(Pool(x)) + Attention(Pool(Norm(x))), as the paper writes it."""
    torch.manual_seed(0)
    block, x = AttentionBlock(8, 32, (3, 2), 2, 32, 0.0).double(), torch.randn(2, 8, 5, 4).double()

    def norm(y, layer):
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return y * layer.weight + layer.bias

    def pooled(y):
        return F.max_pool2d(y, 3, 2, 1).flatten(2).mT

    beside = pooled(x) @ block.beside.weight[:, :, 0, 0].T + block.beside.bias
    y = beside + block.attention(pooled(norm(x.permute(0, 2, 3, 1), block.norm).permute(0, 3, 1, 2)))
    first, _, second = block.mlp[1:]
    y = y + second(F.gelu(first(norm(y, block.mlp[0]))))
    assert torch.allclose(block(x), y.mT.reshape(2, 32, 3, 2), atol=1e-10)
