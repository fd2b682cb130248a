"""Barlow Twins (Zbontar et al. 2021, 2103.03230): over a batch, the features of two views correlate each with itself and not with the others."""
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import Parallel
from Blocks.Auxiliary.Auxiliary import Auxiliary, spread
from Datasets.Replay import Batch
from Utils import require


class BarlowTwins(Auxiliary):
    """Σᵢ (Cᵢᵢ − 1)² + λ Σᵢ≠ⱼ Cᵢⱼ², C the correlation of the two views' projections. No momentum copy takes part.

    Args:
        projection_dim: of the projector's three layers.
        redundancy: λ."""

    vector_views = 'AmplitudeNoise'
    needs_samples = 2

    def __init__(self, projection_dim: int = 512, redundancy: float = 0.0051, **settings: Any) -> None:
        super().__init__(**settings)
        require(projection_dim >= 1, f'aux.{self.name}.projection_dim', projection_dim, '1 or more')
        require(0 <= redundancy < math.inf, f'aux.{self.name}.redundancy', redundancy, '0 or more')
        self.redundancy = redundancy
        width, layers = self.latent_dim, []  # type: int, list[nn.Module]
        for _ in range(2):
            layers += [nn.Linear(width, projection_dim, bias=False), nn.BatchNorm1d(projection_dim), nn.ReLU()]
            width = projection_dim
        self.projector = nn.Sequential(*layers, nn.Linear(width, projection_dim, bias=False))
        self.normalise = nn.BatchNorm1d(projection_dim, affine=False)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        one, two = (self.normalise(self.projector(self.encode(self.see(batch.obs))).float()) for _ in range(2))
        with torch.autocast(one.device.type, enabled=False):
            correlation = Parallel.mean(one.T @ two / len(one))  # over the batches of all processes
        diagonal = correlation.diagonal()
        on, off = (diagonal - 1).square().sum(), correlation.square().sum() - diagonal.square().sum()
        return on + self.redundancy * off, {'diagonal': diagonal.mean(), 'spread': spread(one)}
