"""CURL (Laskin et al. 2020, 2004.04136): the representation of one view of an observation tells which of a batch's other views shows the same."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import Parallel
from Blocks.Auxiliary.Auxiliary import Auxiliary
from Datasets.Replay import Batch


class CURL(Auxiliary):
    """Cross-entropy of q W kᵀ to the diagonal: q of one view by the encoder, k of another by its momentum copy.

    Without temperature or predictor, as published. Vectors: both views are the observation itself, as A2LS has it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.bilinear = nn.Parameter(torch.rand(self.latent_dim, self.latent_dim))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        query, key = self.encode(self.see(batch.obs)), self.target(self.see(batch.obs))
        logits = query @ self.bilinear @ Parallel.joined(key).T  # among the keys of all processes
        labels = torch.arange(len(logits), device=logits.device) + Parallel.rank * len(logits)
        return F.cross_entropy(logits.float(), labels), {'accuracy': (logits.argmax(1) == labels).float().mean()}
