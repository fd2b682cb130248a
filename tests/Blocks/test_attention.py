"""Pools, transformers, Perceiver and relation network against sums written out in float64 and against torchvision."""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from Blocks.Architectures import RN, AttentionPool, AvgPool, CLSPool, MaxPool, Perceiver, Transformer, ViT
from Blocks.Architectures.Transformers import fourier
from Blocks.Vision import import_torchvision


def size(module):
    return sum(p.numel() for p in module.parameters())


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


def normalised(x, layer):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def attend(query, key, weights, biases, out, heads):
    """Attention head by head. query: (B, T, D); key: (B, S, E), which is the value too; weights, biases: of query, key and value."""
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, key), weights, biases, strict=True))
    width = q.shape[-1] // heads
    made = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        logits = torch.einsum('btd,bsd->bts', q[..., part], k[..., part]) / math.sqrt(width)
        made.append(torch.einsum('bts,bsd->btd', logits.exp() / logits.exp().sum(-1, keepdim=True), v[..., part]))
    return linear(torch.cat(made, -1), out)


def self_attention(x, module):
    return attend(x, x, module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), module.out_proj, module.num_heads)


def drawn(module):
    """In float64, with biases and scales that are not 0 and 1."""
    for parameter in module.double().parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, -0.5, 1.5)
    return module.eval()


# --- pools

MAP = torch.tensor([[[[1.0, 2, 3], [4, 5, -9]], [[0, 0, 0], [0, 6, 0]]]])  # (1, 2, 2, 3)


@pytest.mark.parametrize('pool, expected', [(AvgPool, [1.0, 1.0]), (MaxPool, [5.0, 6.0]), (CLSPool, [1.0, 0.0])])
def test_pools_by_hand(pool, expected):
    module = pool((2, 2, 3))
    assert module.output_shape == (2,) and module(MAP).tolist() == [expected] and size(module) == 0
    assert module(MAP.flatten(1)).tolist() == [expected], 'flat is the same'
    head = pool((2, 2, 3), 4)
    assert head.output_shape == (4,) and torch.allclose(head(MAP), linear(torch.tensor([expected]), head.linear))


@pytest.mark.parametrize('heads, depth, output_dim', [(None, 1, None), (2, 2, 5), (3, 1, 4), (12, 3, None)])
def test_the_attention_pool_against_sums_in_float64(heads, depth, output_dim):
    torch.manual_seed(0)
    module, x = drawn(AttentionPool((12, 3, 5), output_dim, heads, depth)), torch.randn(4, 12, 3, 5).double()
    assert all(attention.num_heads == (heads or 4) for attention in module.attentions) and len(module.attentions) == depth
    tokens = x.flatten(2).mT
    for norm, attention in zip(module.norms, module.attentions, strict=True):
        tokens = tokens + self_attention(normalised(tokens, norm), attention)
    expected = tokens.sum(1) / 15
    expected = expected if output_dim is None else linear(expected, module.linear)
    assert torch.allclose(module(x), expected, atol=1e-10) and module.output_shape == tuple(expected.shape[1:])
    assert size(module) == depth * (24 + 3 * 12 * 12 + 36 + 12 * 12 + 12) + (13 * output_dim if output_dim else 0)


def test_the_attention_pool_does_not_ask_where():
    module, x = AttentionPool((8, 4, 4), 3).eval(), torch.randn(2, 8, 4, 4)
    shuffled = x.flatten(2)[:, :, torch.randperm(16)].view_as(x)
    assert torch.allclose(module(shuffled), module(x), atol=1e-5) and not torch.allclose(module(2 * x), module(x), atol=1e-2)


@pytest.mark.parametrize('channels, heads', [(32, 8), (12, 4), (50, 2), (9, 1), (4, 4)])
def test_heads_are_the_greatest_common_divisor_of_eight_and_the_channels(channels, heads):
    assert AttentionPool((channels, 2, 2)).attentions[0].num_heads == heads
    assert Transformer((channels, 2, 2), out_channels=channels).blocks[0].self_attn.num_heads == heads


@pytest.mark.parametrize('pool', [AvgPool, MaxPool, CLSPool, AttentionPool])
def test_pools_refuse_vectors_in_one_line(pool):
    with pytest.raises(ValueError) as error:
        pool((1568,))
    assert str(error.value) == f'{pool.__name__} sees maps (C, H, W), not (1568,); behind a part that ends in a vector choose pool=Flatten, ' \
                               'and for a pool as trunk pool=Null'


def test_a_pool_says_what_its_heads_can_be():
    with pytest.raises(ValueError, match='^AttentionPool: heads=5 does not divide 12 channels; try 4 or 6$'):
        AttentionPool((12, 2, 2), heads=5)
    with pytest.raises(ValueError, match='^AttentionPool: depth=0: expected 1 or more$'):
        AttentionPool((12, 2, 2), depth=0)


# --- ViT

@pytest.mark.parametrize('channels, patch, width, depth, hidden, pool_type', [(3, 4, 32, 3, None, 'cls'), (9, 7, 24, 2, 40, 'mean'), (1, 2, 8, 0, 16, 'cls')])
def test_size_of_the_vit(channels, patch, width, depth, hidden, pool_type):
    module = ViT((channels, 28, 56), patch_size=patch, out_channels=width, depth=depth, hidden_dim=hidden, pool_type=pool_type)
    hidden, cls, tokens = hidden or 4 * width, pool_type == 'cls', (28 // patch) * (56 // patch)
    attention = 3 * width * width + 3 * width + width * width + width
    block = 4 * width + attention + width * hidden + hidden + hidden * width + width
    assert size(module) == channels * width * patch ** 2 + width + (tokens + cls) * width + cls * width + depth * block + 2 * width
    assert size(ViT((channels, 28, 56), 5, patch, width, depth=depth, hidden_dim=hidden, pool_type=pool_type)) == size(module) + 5 * (width + 1)


def test_with_torchvisions_weights_the_vit_computes_what_torchvision_does():
    torch.manual_seed(0)
    reference = drawn(import_torchvision('models.vision_transformer').VisionTransformer(28, 7, 2, 4, 16, 24, num_classes=5))
    nn.init.normal_(reference.heads.head.weight)
    nn.init.normal_(reference.class_token)
    module = ViT((3, 28, 28), 5, patch_size=7, out_channels=16, heads=4, depth=2, hidden_dim=24).double().eval()
    with torch.no_grad():
        tokens, encoder = module.layers, reference.encoder
        tokens.patches.load_state_dict(reference.conv_proj.state_dict())
        tokens.cls.copy_(reference.class_token)
        tokens.positions.copy_(encoder.pos_embedding)
        for ours, theirs in zip(tokens.blocks[:2], encoder.layers, strict=True):
            pairs = (ours.norm1, theirs.ln_1), (ours.self_attn, theirs.self_attention), (ours.norm2, theirs.ln_2), (ours.linear1, theirs.mlp[0]), \
                (ours.linear2, theirs.mlp[3])
            for to, source in pairs:
                to.load_state_dict(source.state_dict())
        tokens.blocks[2].load_state_dict(encoder.ln.state_dict())
        module.head.linear.load_state_dict(reference.heads.head.state_dict())
    for norm in reference.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = 1e-5
    x = torch.rand(3, 3, 28, 28).double()
    assert torch.allclose(module(x), reference(x), atol=1e-10) and reference(x).std() > 1e-2


def test_tokens_of_a_vit_lie_where_their_patches_do():
    torch.manual_seed(0)
    module = ViT((1, 12, 20), patch_size=4, depth=0, pool_type='mean').eval()
    x = torch.rand(1, 1, 12, 20)
    before = module(x)
    x[..., 4:8, 12:16] = 0
    changed = (module(x) != before).any(1)[0]
    assert changed.nonzero().tolist() == [[1, 3]]


def test_dropout_of_the_vit_ends_with_training():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 28, 28)
    for options, random in (({}, True), ({'dropout': 0, 'emb_dropout': 0}, False), ({'dropout': 0}, True), ({'emb_dropout': 0}, True)):
        module = ViT((3, 28, 28), **options)
        assert torch.equal(module(x), module(x)) is not random
        assert torch.equal(module.eval()(x), module(x))


def test_blocks_begin_with_weights_of_their_own():
    for module in (ViT((3, 28, 28)).layers, Transformer((8, 4, 4)), Perceiver((8, 4, 4))):
        first, second = module.blocks[:2]
        assert not torch.equal(first.linear1.weight, second.linear1.weight)


# --- Transformer

@pytest.mark.parametrize('shape, options, made', [((16, 3, 4), {}, (16, 3, 4)), ((12, 3, 4), {'out_channels': 8, 'heads': 2, 'hidden_dim': 20}, (8, 3, 4)),
                                                  ((6,), {}, (32, 1, 6)), ((3, 4, 4), {}, (32, 4, 4))])
def test_the_transformer_against_sums_in_float64(shape, options, made):
    torch.manual_seed(0)
    module, x = drawn(Transformer(shape, depth=2, **options)), torch.randn(3, *shape).double()
    tokens = x.view(3, 1, -1).mT if len(shape) == 1 else x.flatten(2).mT
    if made[0] != tokens.shape[-1]:
        tokens = linear(tokens, module.embed)
    tokens = tokens + module.positions
    for block in module.blocks[:2]:
        tokens = tokens + self_attention(normalised(tokens, block.norm1), block.self_attn)
        tokens = tokens + linear(F.gelu(linear(normalised(tokens, block.norm2), block.linear1)), block.linear2)
    expected = normalised(tokens, module.blocks[2]).mT.reshape(3, *made)
    assert module.output_shape == made and torch.allclose(module(x), expected, atol=1e-10) and expected.std() > 1e-2


@pytest.mark.parametrize('shape', [(16, 5, 7), (9,)])
@pytest.mark.parametrize('kind', [Transformer, Perceiver, RN])
def test_they_take_maps_and_vectors_and_end_in_a_vector_where_asked(kind, shape):
    torch.manual_seed(0)
    module, x = kind(shape, 6), torch.randn(2, *shape)
    assert module.output_shape == (6,) and module(x).shape == (2, 6)
    (module(x) * torch.randn(2, 6)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in module.parameters() if p.numel() > 1)
    turned = module.eval()(x.flip(-1))
    assert not torch.allclose(turned, module(x), atol=1e-4), 'where a value lies matters'
    with torch.autocast('cpu', torch.bfloat16):
        half = module(x).float()
    exact = module(x)
    assert 0 < (half - exact).norm() < 0.1 * exact.norm()


# --- Perceiver

def test_fourier_features_by_hand():
    table = fourier((3, 8), 4)
    assert table.shape == (24, 2 + 4 * 4)
    y, x = 0, 5  # coordinates −1 and −1 + 2 · 5 / 7
    at, row = -1 + 10 / 7, table[y * 8 + x]
    low, high = (1, 1 + 0.5 / 3, 1 + 1 / 3, 1.5), (1, 2, 3, 4)  # from 1 to half of the positions
    expected = [-1, *(math.sin(-math.pi * f) for f in low), *(math.cos(-math.pi * f) for f in low),
                at, *(math.sin(math.pi * f * at) for f in high), *(math.cos(math.pi * f * at) for f in high)]
    assert row.tolist() == pytest.approx(expected, abs=1e-5)
    assert len({tuple(row) for row in table.round(decimals=4).tolist()}) == 24, 'no two positions look alike'
    assert fourier((1, 4), 2)[:, 0].tolist() == [0] * 4


def test_the_perceiver_against_sums_in_float64():
    torch.manual_seed(0)
    module, x = drawn(Perceiver((3, 4, 5), 2, out_channels=8, latents=6, heads=2, depth=1, hidden_dim=10, bands=2)), torch.randn(3, 3, 4, 5).double()
    seen = normalised(torch.cat([x.flatten(2).mT, fourier((4, 5), 2).double().expand(3, -1, -1)], -1), module.norm_seen)
    latents, cross = module.latents.expand(3, -1, -1), module.attention
    weights = cross.q_proj_weight, cross.k_proj_weight, cross.v_proj_weight
    latents = latents + attend(normalised(latents, module.norm), seen, weights, cross.in_proj_bias.chunk(3), cross.out_proj, 2)
    latents = latents + linear(F.gelu(linear(normalised(latents, module.mlp[0]), module.mlp[1])), module.mlp[4])
    block = module.blocks[0]
    latents = latents + self_attention(normalised(latents, block.norm1), block.self_attn)
    latents = latents + linear(F.gelu(linear(normalised(latents, block.norm2), block.linear1)), block.linear2)
    expected = linear(normalised(latents, module.blocks[1]).mean(1), module.linear)
    assert torch.allclose(module(x), expected, atol=1e-6) and expected.std() > 1e-2
    assert module.output_shape == (2,) and Perceiver((3, 4, 5), out_channels=8).output_shape == (8,)


# --- relation network

@pytest.mark.parametrize('shape, output_dim', [((3, 2, 4), 5), ((1, 3, 1), None), ((4,), 2)])
def test_the_relation_network_against_a_double_loop(shape, output_dim):
    torch.manual_seed(0)
    module, x = drawn(RN(shape, output_dim, hidden_dim=7, depth=2)), torch.randn(3, *shape).double()
    channels, height, width = shape if len(shape) == 3 else (1, 1, shape[0])
    image = x.view(3, channels, height, width)
    g, f = ([layer for layer in part.layers if isinstance(layer, nn.Linear)] for part in (module.g, module.f))
    assert len(g) == 2 and g[0].in_features == 2 * (channels + 2)
    expected = []
    for b in range(3):
        total = torch.zeros(7).double()
        for i in range(height * width):
            for j in range(height * width):
                pair = []
                for at in (i, j):
                    y, x_at = divmod(at, width)
                    place = [2 * p / (n - 1) - 1 if n > 1 else 0.0 for p, n in ((y, height), (x_at, width))]
                    pair += [*image[b, :, y, x_at].tolist(), *place]
                h = torch.tensor(pair).double()
                for layer in g:
                    h = linear(h, layer).relu()
                total += h
        h = linear(total / (height * width) ** 2, f[0]).relu()
        expected.append(linear(h, f[1]) if output_dim else h)
    assert torch.allclose(module(x), torch.stack(expected), atol=1e-6) and module.output_shape == tuple(expected[0].shape)


def test_too_many_pairs_are_one_line():
    with pytest.raises(ValueError) as error:
        RN((32, 35, 35))
    assert str(error.value) == 'RN: 35×35 positions make 1500625 pairs, more than max_pairs=131072: let it follow eyes that leave fewer, such as Eyes=NatureCNN'
    assert RN((32, 19, 19)).output_shape == (256,) and RN((4, 20, 20), max_pairs=160_000).output_shape == (256,)
