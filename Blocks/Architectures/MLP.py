"""Fully connected parts."""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from Blocks.Architectures.Linear import Linear

ACTIVATIONS = {'relu': nn.ReLU, 'tanh': nn.Tanh, 'elu': nn.ELU, 'gelu': nn.GELU, 'silu': nn.SiLU}


class MLP(nn.Module):
    """`depth` hidden layers and a linear output: (B, *input_shape) → (B, output_dim).

    Args:
        output_dim: None ends in the last hidden layer, as eyes do.
        layer_norm: normalise after every hidden linear.

    Raises:
        ValueError: an unknown activation."""

    redrawn = True

    def __init__(self, input_shape: tuple[int, ...], output_dim: int | None = None, hidden_dim: int = 512, depth: int = 1, activation: str = 'relu',
                 layer_norm: bool = False) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f'activation={activation}: expected one of {", ".join(ACTIVATIONS)}')
        width, layers = math.prod(input_shape), []  # type: int, list[nn.Module]
        for _ in range(depth):
            layers += [Linear(width, hidden_dim), *([nn.LayerNorm(hidden_dim)] if layer_norm else []), ACTIVATIONS[activation]()]
            width = hidden_dim
        if output_dim is not None:
            layers.append(Linear(width, output_dim))
            width = output_dim
        self.layers = nn.Sequential(*layers)
        self.output_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


class DenseMLP(nn.Module):
    """Each hidden layer sees the input and all layers before it, x ← [x, ReLU(W x)]: (B, D) → (B, D + depth · hidden_dim). After OFENet (2003.01629)."""

    redrawn = True

    def __init__(self, input_shape: tuple[int, ...], hidden_dim: int = 40, depth: int = 1) -> None:
        super().__init__()
        width, layers = math.prod(input_shape), []
        for _ in range(depth):
            layers.append(Linear(width, hidden_dim))
            width += hidden_dim
        self.layers = nn.ModuleList(layers)
        self.output_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(x))], -1)
        return x


class Dueling(nn.Module):
    """Q = V + A − mean A (Wang et al. 2016, eq. 9), hidden layers of its own for each: (B, *input_shape) → (B, output_dim actions)."""

    redrawn = True

    def __init__(self, input_shape: tuple[int, ...], output_dim: int, hidden_dim: int = 512, depth: int = 1, layer_norm: bool = False) -> None:
        super().__init__()
        self.value = MLP(input_shape, 1, hidden_dim, depth, layer_norm=layer_norm)
        self.advantage = MLP(input_shape, output_dim, hidden_dim, depth, layer_norm=layer_norm)
        self.output_shape = (output_dim,)

    def forward(self, x: Tensor) -> Tensor:
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(-1, keepdim=True)


class LinearNorm(nn.Module):
    """Linear, LayerNorm: (B, *input_shape) → (B, output_dim). SAC-AE's and CURL's projection; their papers put a tanh behind it, their code does not."""

    redrawn = True

    def __init__(self, input_shape: tuple[int, ...], output_dim: int = 50) -> None:
        super().__init__()
        self.layers = nn.Sequential(Linear(math.prod(input_shape), output_dim), nn.LayerNorm(output_dim))
        self.output_shape = (output_dim,)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


class LinearReLU(nn.Module):
    """Linear, ReLU: the hidden layer behind the convolutions of Nature DQN and of PPO on Atari. (B, *input_shape) → (B, output_dim)."""

    redrawn = True

    def __init__(self, input_shape: tuple[int, ...], output_dim: int = 512) -> None:
        super().__init__()
        self.linear = Linear(math.prod(input_shape), output_dim)
        self.output_shape = (output_dim,)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x.flatten(1)))


class TwoLinearReLU(LinearReLU):
    """A layer of `first` before it: 256 and 448 wide between eyes and heads in Burda et al. 2018 (1810.12894)."""

    def __init__(self, input_shape: tuple[int, ...], output_dim: int = 448, first: int = 256) -> None:
        super().__init__((first,), output_dim)
        self.first = Linear(math.prod(input_shape), first)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.relu(self.first(x.flatten(1))))


class ResidualReLU(nn.Module):
    """x + ReLU(W x), W drawn small (orthogonal, gain 0.1): what policy and values of 1810.12894 each put on the features they share. (B, D) → (B, D)."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        width = math.prod(input_shape)
        self.linear = Linear(width, width)
        nn.init.orthogonal_(self.linear.weight, 0.1)
        nn.init.zeros_(self.linear.bias)
        self.output_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return x + torch.relu(self.linear(x))


class SquareNorm(LinearNorm):
    """LinearNorm that keeps the width."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__(input_shape, math.prod(input_shape))


class LayerNormTanh(nn.Module):
    """Linear, LayerNorm, tanh: the bottleneck between pixels and heads of SAC-AE and DrQ-v2. (B, *input_shape) → (B, output_dim)."""

    redrawn = True

    def __init__(self, input_shape: tuple[int, ...], output_dim: int = 50) -> None:
        super().__init__()
        self.layers = nn.Sequential(Linear(math.prod(input_shape), output_dim), nn.LayerNorm(output_dim), nn.Tanh())
        self.output_shape = (output_dim,)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))
