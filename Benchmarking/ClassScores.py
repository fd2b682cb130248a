"""What of each class was right, from labels and logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CHUNK_NUMBERS = 4_000_000  # logits held as float64 at once: 32 MB


@dataclass(frozen=True)
class Scores:
    """Counts of every class, (K,) int64 each, and what follows from them, (K,) float64. Where a quotient is 0/0 it is 0, as is usual."""

    samples: np.ndarray
    predicted: np.ndarray
    right: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        return _quotient(self.right, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        return _quotient(self.right, self.samples)

    @property
    def f1(self) -> np.ndarray:
        return _quotient(2 * self.right, self.samples + self.predicted)

    @property
    def present(self) -> np.ndarray:
        """(K,) bool: classes with samples or predictions; means over classes are over these."""
        return self.samples + self.predicted > 0

    @property
    def accuracy(self) -> float:
        """Of all samples."""
        return float(self.right.sum() / self.samples.sum())


def predictions(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest logit of each sample, and how sure that is.

    Args:
        logits: (N, K) float, finite.

    Returns:
        The class (N,) int64, of equal logits the first; and (1 − p) / p (N,) float64 of its softmax probability p, which still tells certain
        predictions apart where p is rounded to 1.
    """
    predicted, others = np.empty(len(logits), np.int64), np.empty(len(logits))
    rows = max(1, CHUNK_NUMBERS // logits.shape[1])
    for start in range(0, len(logits), rows):
        chunk = logits[start : start + rows].astype(np.float64)
        best = chunk.argmax(1)[:, None]
        odds = np.exp(chunk - np.take_along_axis(chunk, best, 1))
        np.put_along_axis(odds, best, 0, 1)
        predicted[start : start + rows], others[start : start + rows] = best[:, 0], odds.sum(1)
    return predicted, others


def count(labels: np.ndarray, predicted: np.ndarray, classes: int) -> Scores:
    """Counts samples, predictions and right predictions per class.

    Args:
        labels: (N,) int64, 0 to `classes` − 1.
        predicted: likewise.
        classes: how many there are.
    """
    right = labels[labels == predicted]
    return Scores(*(np.bincount(values, minlength=classes) for values in (labels, predicted, right)))


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Samples by true class (row) and predicted class (column).

    Args:
        labels: (N,) int64, 0 to `classes` − 1.
        predicted: likewise.
        classes: how many there are.

    Returns:
        (classes, classes) int64
    """
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def checked(labels: Any, logits: Any, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    labels, logits = np.asarray(labels), np.asarray(logits)
    number = len(classes)
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'labels of shape {labels.shape} and type {labels.dtype}: expected (N,) integers, N of 1 or more')
    if logits.shape != (len(labels), number) or not number or not np.issubdtype(logits.dtype, np.floating):
        raise ValueError(f'logits of shape {logits.shape} and type {logits.dtype}: expected ({len(labels)} labels, {number} classes) float')
    if not np.isfinite(logits).all():
        wrong = np.flatnonzero(~np.isfinite(logits).all(1))
        raise ValueError(f'logits of {len(wrong)} of {len(labels)} samples hold NaN or infinity (first: sample {wrong[0]}): expected finite numbers')
    if labels.min() < 0 or labels.max() >= number:
        raise ValueError(f'labels from {labels.min()} to {labels.max()}: expected 0 to {number - 1}, as there are {number} classes')
    return labels.astype(np.int64), logits


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)
