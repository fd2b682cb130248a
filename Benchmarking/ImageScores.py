"""What generated images are worth beside stored ones: by a saved classifier of ours, and FID and IS through torchmetrics.

A classifier's labels should be as varied as those of the data, and each as sure: their entropy H(y), the mean entropy of its probabilities H(y|x), and
the score of both, exp(H(E[p(y|x)]) − E[H(p(y|x))]) (Salimans et al. 2016, 1606.03498), from 1 to the number of classes. FID (1706.08500) and IS look
through the Inception network, whose weights torchmetrics fetches.
"""
from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from Agents.Build import saved_agent
from Blocks.Vision import import_torchvision
from Utils import require

NAMES = ('fid', 'is')
BATCH = 256


class ImageScores:
    """
    Args:
        shape: (C, H, W) of the images.
        images: how many are scored; 0 scores nothing.
        classifier: run folder or checkpoint of a classifier of such images.
        metrics: 'fid', 'is' or both.
        device: where they are computed.

    Raises:
        ValueError: numbers or names that are wrong, or a classifier that sees other images.
        ImportError: torchmetrics is not installed. OSError: its network's weights, or the classifier, are not there."""

    def __init__(self, shape: tuple[int, ...], images: int = 1000, classifier: str | None = None, metrics: str | list[str] | None = None,
                 device: torch.device | str = 'cpu') -> None:
        require(isinstance(images, int) and images >= 0, 'generation.images', images, '0 or more')
        names = list(metrics or ()) if metrics is None or isinstance(metrics, list) else [metrics]
        for name in names:
            require(name in NAMES, 'generation.metrics', name, 'fid, is, or [fid,is]')
        require(images >= 2 or not (names or classifier), 'generation.images', images, 'at least 2, as they are to be scored')
        self.images = images if names or classifier else 0
        self.classifier = None
        require(classifier is None or isinstance(classifier, str), 'generation.classifier', classifier, 'the folder of a run')
        if classifier:
            self.classifier = saved_agent(Path(classifier), torch.device(device))
            require(not getattr(self.classifier, 'generate', False), 'generation.classifier', classifier, 'a run that classifies, this one generates')
            sees = self.classifier.obs_spec.stacked_shape
            require(sees == tuple(shape), 'generation.classifier', classifier, f'one that sees images of {tuple(shape)}; it sees {sees}')
        self.metrics = {name: inception(name).to(device) for name in names}

    def __call__(self, drawn: Tensor, stored: Tensor | None) -> dict[str, float]:
        """drawn, stored: (N, C, H, W) uint8, generated and, if they are at hand, real → the scores by name, those of the stored ones with `_data` behind."""
        told: dict[str, float] = {}
        if self.classifier is not None:
            told |= label_scores(self.probabilities(drawn))
            told |= {} if stored is None else {f'{name}_data': value for name, value in label_scores(self.probabilities(stored)).items()}
        if 'is' in self.metrics:
            told['is'] = float(scored(self.metrics['is'], (drawn, {}))[0])
        if 'fid' in self.metrics and stored is not None:
            told['fid'] = float(scored(self.metrics['fid'], (drawn, {'real': False}), (stored, {'real': True})))
        return told

    def probabilities(self, images: Tensor) -> Tensor:
        """(N, classes) float64: what the classifier takes them for."""
        assert self.classifier is not None
        self.classifier.eval()
        classes = self.classifier.action_spec.num_actions or self.classifier.action_spec.size
        with torch.no_grad():
            parts = [self.classifier.predict(part.to(self.classifier.device), classes) for part in images.split(BATCH)]
        return torch.softmax(torch.cat(parts).double(), -1).cpu()


def scored(metric: Any, *sets: tuple[Tensor, dict[str, bool]]) -> Any:
    """What the metric makes of sets of images, each with the arguments it goes in with."""
    metric.reset()
    for images, arguments in sets:
        for part in images.split(BATCH):
            metric.update(colours(part).to(metric.device), **arguments)
    return metric.compute()


def label_scores(p: Tensor) -> dict[str, float]:
    """p: (N, classes), probabilities → classifier_score, label_entropy (of the likeliest classes) and doubt (mean entropy), in nats."""
    counts = torch.bincount(p.argmax(-1), minlength=p.shape[1])
    doubt = entropy(p).mean()
    return {'classifier_score': float((entropy(p.mean(0)) - doubt).exp()), 'label_entropy': float(entropy(counts / len(p))), 'doubt': float(doubt)}


def entropy(p: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return torch.special.entr(p.double()).sum(-1)


def colours(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 → (N, 3, H, W): the newest frame of a stack, as on a sheet."""
    channels = images.shape[1]
    return images[:, -3:] if channels % 3 == 0 else images[:, -1:].expand(-1, 3, -1, -1)


def inception(name: str) -> Any:
    """The metric of torchmetrics. Raises: ImportError, OSError."""
    import_torchvision()  # which torchmetrics imports
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.inception import InceptionScore
    except ImportError:
        raise ImportError(f'generation.metrics={name} needs torchmetrics: pip install "torchmetrics[image]"') from None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            return FrechetInceptionDistance() if name == 'fid' else InceptionScore()
        except ModuleNotFoundError:
            raise ImportError(f'generation.metrics={name} needs torch-fidelity: pip install "torchmetrics[image]"') from None
        except OSError as error:
            raise OSError(f'generation.metrics={name}: the weights of the Inception network cannot be fetched ({error}); generation.classifier=RUN needs '
                          'none') from error
