import copy

import pytest
import torch
from torch import nn

from Blocks.Architectures import Linear as module
from Blocks.Architectures.Linear import Linear

HAS_OPERATOR = hasattr(torch.ops.mkldnn, '_linear_pointwise')


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.skipif(not HAS_OPERATOR, reason='torch without oneDNN'))])
def onednn(request, monkeypatch):
    """Either product, on whatever machine this runs."""
    monkeypatch.setattr(module, 'mkl_is_slow', lambda: request.param)
    return request.param


def result(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *[p.grad for p in layer.parameters()]]


@pytest.mark.parametrize('rows', [1, 37, 256])  # 1: below what is worth the way
def test_values_and_gradients_are_those_of_float64(onednn, rows):
    torch.manual_seed(rows)
    layer, x = Linear(300, 120), torch.randn(rows, 300)
    exact = nn.Linear(300, 120).double()
    exact.load_state_dict(layer.state_dict())
    for ours, theirs in zip(result(layer, x), result(exact, x.double())):
        assert torch.allclose(ours.double(), theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    with torch.no_grad():
        without = layer(x)
    assert torch.equal(without, result(layer, x)[0])


@pytest.mark.parametrize('frozen', ['weight', 'bias', 'x'])
def test_only_what_asks_gets_a_gradient(onednn, frozen):
    layer, x = Linear(300, 120), torch.randn(64, 300, requires_grad=frozen != 'x')
    if frozen != 'x':
        getattr(layer, frozen).requires_grad_(False)
    layer(x).sum().backward()
    got = {'weight': layer.weight.grad, 'bias': layer.bias.grad, 'x': x.grad}
    assert {name for name, gradient in got.items() if gradient is None} == {frozen}


def test_gradients_of_gradients(onednn):
    torch.manual_seed(0)
    layer, x = Linear(300, 120), torch.randn(64, 300)
    twin = nn.Linear(300, 120)
    twin.load_state_dict(layer.state_dict())
    penalties = []
    for one in (layer, twin):
        z = x.clone().requires_grad_()
        slope, = torch.autograd.grad(one(z).square().sum(), z, create_graph=True)
        slope.square().sum().backward()
        penalties.append(one.weight.grad)
    assert torch.allclose(*penalties, rtol=1e-4, atol=1e-2)


def test_it_is_a_linear_layer_in_every_other_respect(onednn):
    layer = Linear(300, 120)
    x = torch.randn(64, 300)
    assert isinstance(layer, nn.Linear) and list(layer.state_dict()) == ['weight', 'bias']
    assert torch.equal(copy.deepcopy(layer)(x), layer(x)) and layer(x[None]).shape == (1, 64, 120)
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
