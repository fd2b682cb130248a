"""The set that is always there: scikit-learn's 1,797 handwritten digits, of 8×8 pixels with 17 grey levels (UCI, Alpaydin and Kaynak 1998)."""
from __future__ import annotations

import hashlib

import numpy as np

from Datasets.Labelled.Readers import Arrays, Found

SIDE = 28  # pixels, those of MNIST
TEST = 5  # one in so many of each digit is for testing
SEED = 'digits 1'


def open_digits(train: bool, image_size: int | None) -> Found:
    """One part of a stratified 80/20 split; images (1, 28, 28). The same on every machine."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = split(digits.target, train)
    return Found(Arrays(enlarged(digits.images[rows].astype(np.int64))[:, None], image_size), digits.target[rows], [str(digit) for digit in range(10)])


def split(labels: np.ndarray, train: bool) -> np.ndarray:
    """Ascending indices of the samples for training or for testing: the fifth of each class that comes first by hash, which no version of numpy changes."""
    test: list[int] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label).tolist()
        rows.sort(key=lambda row: hashlib.sha256(f'{SEED} {row}'.encode()).digest())
        test += rows[:round(len(rows) / TEST)]
    chosen = np.zeros(len(labels), bool)
    chosen[test] = True
    return np.flatnonzero(chosen != train)


def enlarged(images: np.ndarray) -> np.ndarray:
    """Bilinear, in whole numbers, so that rounding is the same everywhere.

    Args:
        images: (N, 8, 8) int64, 0–16.

    Returns:
        (N, 28, 28) uint8, 0–255.
    """
    weights = np.zeros((SIDE, 8), np.int64)  # pixel i lies at (2i + 1)/7 − 1/2 = (4i − 5)/14 of the small image; edges go on as they are
    for row in range(SIDE):
        low, part = divmod(4 * row - 5, 14)
        weights[row, min(max(low, 0), 7)] += 14 - part
        weights[row, min(max(low + 1, 0), 7)] += part
    scaled = weights @ images @ weights.T  # of 16 · 14 · 14
    return ((2 * 255 * scaled + 3136) // (2 * 3136)).astype(np.uint8)
