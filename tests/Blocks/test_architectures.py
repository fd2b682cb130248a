"""Eyes, trunks and heads: shapes, sizes and formulas of the papers."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from Blocks.Architectures import CNN, MLP, RNDCNN, Dueling, Flatten, ImpalaCNN, LayerNormTanh, NatureCNN, Null, ResidualReLU, TwoLinearReLU


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_nature_cnn():
    eyes = NatureCNN((4, 84, 84))
    assert eyes.output_shape == (64, 7, 7)
    assert eyes(torch.zeros(2, 4, 84, 84)).shape == (2, 64, 7, 7)
    assert size(eyes) == (4 * 32 * 64 + 32) + (32 * 64 * 16 + 64) + (64 * 64 * 9 + 64)
    assert NatureCNN((4, 84, 84), width=0.5).output_shape == (32, 7, 7)
    assert NatureCNN((1, 36, 36)).output_shape == (64, 1, 1), 'the smallest image'
    assert NatureCNN((3, 100, 64)).output_shape == (64, 9, 4)


def test_nature_cnn_is_what_the_paper_draws():
    torch.manual_seed(0)
    eyes, x = NatureCNN((4, 84, 84)), torch.rand(3, 4, 84, 84)
    (w1, b1), (w2, b2), (w3, b3) = ((layer.weight, layer.bias) for layer in eyes.layers if isinstance(layer, nn.Conv2d))
    expected = F.relu(F.conv2d(F.relu(F.conv2d(F.relu(F.conv2d(x, w1, b1, 4)), w2, b2, 2)), w3, b3, 1))
    assert torch.allclose(eyes(x), expected, atol=1e-6) and expected.std() > 1e-3


def test_impalas_deep_network():
    eyes = ImpalaCNN((3, 64, 64))
    heads = (2048 * 256 + 256) + (256 * 15 + 15) + (256 + 1)
    assert eyes.output_shape == (32, 8, 8) and size(eyes) + heads == 626_256, 'with its hidden layer and 15 actions, as published for ProcGen'
    x = torch.rand(2, 3, 64, 64)
    convolutions = iter([layer for layer in eyes.modules() if isinstance(layer, nn.Conv2d)])

    def convolved(x):
        layer = next(convolutions)
        return F.conv2d(x, layer.weight, layer.bias, padding=1)
    expected = x
    for _ in range(3):
        expected = F.max_pool2d(convolved(expected), 3, 2, 1)
        for _ in range(2):
            inner = convolved(F.relu(expected))
            expected = expected + convolved(F.relu(inner))
    torch.testing.assert_close(eyes(x), F.relu(expected))


def test_the_networks_of_random_network_distillation():
    eyes = RNDCNN((4, 84, 84))
    assert eyes.output_shape == (64, 6, 6)
    between = TwoLinearReLU(eyes.output_shape, 448)
    policy, value = ResidualReLU((448,)), ResidualReLU((448,))
    heads = (448 * 18 + 18) + 2 * (448 + 1)
    assert round(sum(map(size, (eyes, between, policy, value))) + heads, -3) == 1_223_000, 'the published network, with 18 actions'
    x = torch.randn(3, 448)
    torch.testing.assert_close(policy(x), x + F.relu(x @ policy.linear.weight.T))
    torch.testing.assert_close(policy.linear.weight @ policy.linear.weight.T, 0.01 * torch.eye(448), atol=1e-5, rtol=0)
    h = torch.randn(3, 64, 6, 6)
    first, second = between.first, between.linear
    torch.testing.assert_close(between(h), F.relu(F.relu(h.flatten(1) @ first.weight.T + first.bias) @ second.weight.T + second.bias))


def test_drqv2_eyes():
    eyes = CNN((9, 84, 84))
    assert eyes.output_shape == (32, 35, 35) and Flatten(eyes.output_shape).output_shape == (39_200,)
    assert size(eyes) == 30_368
    sizes = [84]
    x = torch.rand(1, 9, 84, 84)
    for layer in eyes.layers:
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            sizes.append(x.shape[-1])
    assert sizes == [84, 41, 39, 37, 35]
    assert CNN((3, 32, 64), out_channels=8, depth=1, kernel_size=5, stride=1).output_shape == (8, 24, 56)


@pytest.mark.parametrize('eyes, shape', [(NatureCNN, (4, 35, 84)), (CNN, (9, 84, 8)), (NatureCNN, (1, 2, 2))])
def test_an_image_too_small_is_one_line(eyes, shape):
    with pytest.raises(ValueError, match=r'^\w+: an image of \(\d+, \d+, \d+\) is too small for its kernels and strides$') as error:
        eyes(shape)
    assert eyes.__name__ in str(error.value) and str(shape) in str(error.value)


@pytest.mark.parametrize('eyes', [NatureCNN, CNN])
def test_a_vector_for_eyes_is_one_line(eyes):
    with pytest.raises(ValueError, match=rf'^{eyes.__name__} sees images \(C, H, W\), not \(17,\); for vectors choose Eyes=Null or Eyes=MLP$'):
        eyes((17,))


def test_layer_norm_of_eyes_is_over_channels_and_space():
    eyes = NatureCNN((2, 44, 44), layer_norm=True)
    x = eyes.layers[0](torch.rand(5, 2, 44, 44)).double()
    mean, variance = (f(x.flatten(1)).view(5, 1, 1, 1) for f in (lambda x: x.mean(1), lambda x: x.var(1, unbiased=False)))
    assert torch.allclose(eyes.layers[1](x.float()).double(), (x - mean) / (variance + 1e-5).sqrt(), atol=1e-5)
    assert size(eyes) - size(NatureCNN((2, 44, 44))) == 2 * (32 + 64 + 64)


def test_mlp_against_plain_float64():
    torch.manual_seed(0)
    mlp, x = MLP((2, 3), 4, hidden_dim=8, depth=2, activation='tanh'), torch.randn(5, 2, 3)
    h = x.double().flatten(1)
    linears = [layer for layer in mlp.layers if isinstance(layer, nn.Linear)]
    for layer in linears[:-1]:
        h = torch.tanh(h @ layer.weight.double().T + layer.bias.double())
    h = h @ linears[-1].weight.double().T + linears[-1].bias.double()
    assert len(linears) == 3 and mlp.output_shape == (4,) and torch.allclose(mlp(x).double(), h, atol=1e-6)
    assert size(mlp) == 6 * 8 + 8 + 8 * 8 + 8 + 8 * 4 + 4


def test_mlp_variants():
    assert size(MLP((6,), 4, depth=0)) == 6 * 4 + 4, 'no hidden layer is a linear map'
    assert size(MLP((6,), 4, hidden_dim=8, layer_norm=True)) == 6 * 8 + 8 + 16 + 8 * 4 + 4
    eyes = MLP((6,), hidden_dim=8)
    assert eyes.output_shape == (8,) and eyes(torch.randn(3, 6)).min() >= 0, 'without output_dim it ends in a hidden layer, activation included'
    with pytest.raises(ValueError, match='^activation=swish: expected one of relu, tanh, elu, gelu, silu$'):
        MLP((6,), 4, activation='swish')


def test_dueling_is_value_plus_centred_advantage():
    torch.manual_seed(0)
    head, x = Dueling((6,), 5, hidden_dim=8), torch.randn(7, 6)
    q = head(x).double()
    value, advantage = head.value(x).double(), head.advantage(x).double()
    assert torch.allclose(q, value + advantage - advantage.mean(-1, keepdim=True), atol=1e-6)
    assert torch.allclose(q.mean(-1), value[:, 0], atol=1e-6), 'the mean over actions is V'
    with torch.no_grad():
        head.advantage.layers[-1].bias += 123.0
    assert torch.allclose(head(x).double(), q, atol=1e-4), 'a constant on all advantages changes nothing'
    with torch.no_grad():
        head.value.layers[-1].bias += 2.0
    assert torch.allclose(head(x).double(), q + 2, atol=1e-4)
    assert size(head) == 2 * (6 * 8 + 8) + 8 * 1 + 1 + 8 * 5 + 5 and head.output_shape == (5,)


def test_layer_norm_tanh():
    trunk = LayerNormTanh((3, 4), 50)
    x = trunk(1000 * torch.randn(6, 3, 4))
    assert trunk.output_shape == (50,) and x.shape == (6, 50)
    pre = torch.atanh(x.double())
    assert torch.allclose(pre.mean(1), torch.zeros(6).double(), atol=1e-4) and torch.allclose(pre.var(1, unbiased=False), torch.ones(6).double(), atol=1e-3)
    assert size(LayerNormTanh((39_200,), 50)) == 1_960_150  # DrQ-v2's trunk


def test_parts_without_weights():
    x = torch.randn(2, 3, 4, 5)
    assert Null((3, 4, 5))(x) is x and Null((3, 4, 5)).output_shape == (3, 4, 5)
    assert torch.equal(Flatten((3, 4, 5))(x), x.reshape(2, 60)) and Flatten((3, 4, 5)).output_shape == (60,)
