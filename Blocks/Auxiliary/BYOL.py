"""BYOL (Grill et al. 2020, 2006.07733): the representation of one view predicts that of another by the momentum copy."""
from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from Blocks.Auxiliary.Auxiliary import Auxiliary, spread
from Datasets.Replay import Batch
from Utils import require


def projector(width: int, hidden_dim: int, output_dim: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear."""
    return nn.Sequential(nn.Linear(width, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, output_dim))


class BYOL(Auxiliary):
    """2 − 2 cos(prediction of view 1, target of view 2) and the other way round; 0 to 8.

    Args:
        projection_dim, hidden_dim: of projector and predictor."""

    vector_views = 'AmplitudeNoise'
    needs_samples = 2

    def __init__(self, projection_dim: int = 256, hidden_dim: int = 512, **settings: Any) -> None:
        super().__init__(**settings)
        for key, size in (('projection_dim', projection_dim), ('hidden_dim', hidden_dim)):
            require(size >= 1, f'aux.{self.name}.{key}', size, '1 or more')
        self.projector = projector(self.latent_dim, hidden_dim, projection_dim)
        self.target_projector = self.momentum('projector')
        self.predictor = projector(projection_dim, hidden_dim, projection_dim)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        one, two = self.see(batch.obs), self.see(batch.obs)
        projected, other = self.projector(self.encode(one)), self.projector(self.encode(two))
        return self.distance(projected, two) + self.distance(other, one), {'spread': spread(projected)}

    def distance(self, projected: Tensor, other: Tensor) -> Tensor:
        prediction, target = self.predictor(projected), self.target_projector(self.target(other))
        return (2 - 2 * F.cosine_similarity(prediction.float(), target.float())).mean()
