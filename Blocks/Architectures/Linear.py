"""torch's linear layer, with another matrix product where torch's own choice leaves half of the machine unused."""
from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTHWHILE = 1 << 20  # multiplications below which the way around costs more than it saves


class Linear(nn.Linear):
    """nn.Linear. On AMD CPUs torch's float32 product (MKL) does without AVX-512; oneDNN, which torch brings for convolutions, takes half the time."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2 and x.shape[0] * self.weight.numel() >= WORTHWHILE and x.dtype == self.weight.dtype == torch.float32 \
                and x.device.type == 'cpu' and self.bias is not None and not torch.compiler.is_compiling() \
                and not torch.is_autocast_enabled('cpu') and mkl_is_slow():
            return OneDNN.apply(x, self.weight, self.bias) if torch.is_grad_enabled() else product(x, self.weight, self.bias)
        return super().forward(x)


class OneDNN(torch.autograd.Function):
    """x Wᵀ + b with oneDNN, and the same for its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        times = F.linear if torch.is_grad_enabled() else product  # oneDNN's has no derivative of its own
        needs = ctx.needs_input_grad
        return (times(gradient, weight.t()) if needs[0] else None, times(gradient.t(), x.t()) if needs[1] else None,
                gradient.sum(0) if needs[2] else None)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')


@cache
def mkl_is_slow() -> bool:
    """Whether this is an AMD CPU with AVX-512, and torch has the operator."""
    capabilities = torch.cpu.get_capabilities()
    return 'AMD' in str(capabilities.get('cpu_name')) and bool(capabilities.get('avx512_f')) and hasattr(torch.ops.mkldnn, '_linear_pointwise')
