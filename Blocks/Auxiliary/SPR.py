"""SPR (Schwarzer et al. 2021, 2007.05929): a transition model rolls the encoder's features forward; each step predicts what the momentum copy sees."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Blocks.Architectures import MLP
from Blocks.Auxiliary.Auxiliary import Auxiliary
from Datasets.Replay import Batch
from Utils import require


def renormalise(x: Tensor) -> Tensor:
    """Each sample's smallest element becomes 0 and its largest 1; one that is constant becomes 0."""
    flat = x.flatten(1)
    low, high = flat.min(1, keepdim=True).values, flat.max(1, keepdim=True).values
    return ((flat - low) / (high - low + 1e-5)).view_as(x)


class ConvTransition(nn.Module):
    """Features (B, C, H, W) and actions (B, A), as planes → the features after: convolution, ReLU, batch norm, convolution, ReLU."""

    def __init__(self, channels: int, action_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels + action_dim, channels, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(channels),
                                    nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        planes = action[:, :, None, None].expand(-1, -1, *features.shape[-2:]).to(features.dtype)
        return self.layers(torch.cat([features, planes], 1))


class VectorTransition(nn.Module):
    """The same for features (B, D)."""

    def __init__(self, width: int, action_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.layers = MLP((width + action_dim,), width, hidden_dim)

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        return self.layers(torch.cat([features, action.to(features.dtype)], 1))


class SPR(Auxiliary):
    """Mean over `horizon` steps of 2 − 2 cos(prediction, target), steps beyond an episode's end left out.

    The published agent projects with its Q head's first layers; here projection and predictor are the loss's own, so that any agent may have it.

    Args:
        projection_dim, hidden_dim: of the projection, and of the transition between vectors."""

    needs_horizon = 1

    def __init__(self, projection_dim: int = 256, hidden_dim: int = 256, **settings: Any) -> None:
        super().__init__(**settings)
        for key, width in (('projection_dim', projection_dim), ('hidden_dim', hidden_dim)):
            require(width >= 1, f'aux.{self.name}.{key}', width, '1 or more')
        shape = self.parts.encoder.feature_shape
        self.transition = ConvTransition(shape[0], self.action_dim) if len(shape) == 3 else VectorTransition(shape[0], self.action_dim, hidden_dim)
        self.projection = nn.Linear(self.latent_dim, projection_dim)
        self.target_projection = self.momentum('projection')
        self.predictor = nn.Linear(projection_dim, projection_dim)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        sequence, encoder = batch.sequence, self.parts.encoder
        assert sequence is not None
        actions, there = self.actions(sequence.action), sequence.obs_mask
        features = self.scaled(encoder.features(self.see(sequence.obs[:, 0])))
        losses = []
        for step in range(self.horizon):
            features = self.scaled(self.transition(features, actions[:, step]))
            prediction = self.predictor(self.projection(self.latent(encoder, features)))
            with torch.no_grad():
                seen = self.scaled(self.target_encoder.features(self.see(sequence.obs[:, step + 1])))
                target = self.target_projection(self.latent(self.target_encoder, seen, self.target_squeeze))
            losses.append(2 - 2 * F.cosine_similarity(prediction.float(), target.float()))
        each = torch.stack(losses, 1) * there[:, 1:]
        return each.sum() / there[:, 1:].sum().clamp(min=1), {'last_step': each[:, -1].sum() / there[:, -1].sum().clamp(min=1)}

    def scaled(self, features: Tensor) -> Tensor:
        return renormalise(features) if features.dim() == 4 else features

    def latent(self, encoder: Any, features: Tensor, squeeze: nn.Module | None = None) -> Tensor:
        """What the rest of the encoder makes of features."""
        latent = encoder.project(features).flatten(1)
        squeeze = squeeze or self.squeeze
        return latent if squeeze is None else squeeze(latent)
