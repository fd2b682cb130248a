"""Means and interquartile means over seeds and tasks, with bootstrap confidence intervals. Pure functions of their arguments."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

CHUNK_NUMBERS = 4_000_000  # resampled scores held at once: 32 MB


class Interval(NamedTuple):
    """A statistic and its confidence interval at every point. (P,) float64 each."""

    point: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over tasks of the mean over runs; tasks weigh the same however many runs they have.

    Args:
        scores: per task (..., runs, P).

    Returns:
        (..., P)
    """
    return np.mean([task.mean(-2) for task in scores], axis=0)


def iqm(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Interquartile mean of all runs of all tasks: a quarter of them (rounded down) is left out at either end.

    A task with more runs weighs more. Source: 'Deep RL at the Edge of the Statistical Precipice' (2108.13264) §4.3.

    Args:
        scores: per task (..., runs, P).

    Returns:
        (..., P)
    """
    pooled = np.sort(np.concatenate(scores, axis=-2), axis=-2)
    runs = pooled.shape[-2]
    return pooled[..., runs // 4 : runs - runs // 4, :].mean(-2)


STATISTICS: dict[str, Callable[[Sequence[np.ndarray]], np.ndarray]] = {'mean': mean, 'iqm': iqm}


def interval(scores: Sequence[np.ndarray], statistic: str = 'mean', *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """A statistic over runs and tasks with its percentile bootstrap interval, stratified: runs are drawn with replacement within each task.

    Args:
        scores: one array per task, (runs of that task, P) or (runs,), finite; P points (of a learning curve) are treated alike, from the same draws.
        statistic: 'mean' or 'iqm'.
        confidence: of the interval, between 0 and 1.
        resamples: bootstrap draws.
        seed: of the draws; the same arguments give the same interval.

    Returns:
        Point and bounds, (P,) each. With one run per task the bounds are the point: there is nothing to resample.

    Raises:
        ValueError: an unknown statistic, no task, a task without runs, tasks that differ in P, or a score that is not finite.
    """
    if statistic not in STATISTICS:
        raise ValueError(f'statistic={statistic!r}: expected one of {", ".join(STATISTICS)}')
    tasks = [np.asarray(task, np.float64) for task in scores]
    tasks = [task[:, None] if task.ndim == 1 else task for task in tasks]
    if not tasks or any(task.ndim != 2 or not len(task) or task.shape[1] != tasks[0].shape[1] for task in tasks):
        raise ValueError(f'scores of shapes {[task.shape for task in tasks]}: expected (runs, P) per task with one P and at least one run each')
    if not all(np.isfinite(task).all() for task in tasks):
        raise ValueError('scores hold NaN or infinity: leave those runs or points out')
    function = STATISTICS[statistic]
    point = function(tasks)
    if all(len(task) == 1 for task in tasks):
        return Interval(point, point.copy(), point.copy())

    generator = np.random.default_rng(seed)
    draws = [generator.integers(len(task), size=(resamples, len(task))) for task in tasks]
    width = max(1, CHUNK_NUMBERS // (resamples * sum(map(len, tasks))))
    tail = 50 * (1 - confidence)
    bounds = []
    for start in range(0, point.shape[-1], width):
        resampled = [task[:, start : start + width][draw] for task, draw in zip(tasks, draws, strict=True)]  # (resamples, runs, width) each
        bounds.append(np.percentile(function(resampled), [tail, 100 - tail], axis=0))
    low, high = np.concatenate(bounds, axis=1)
    return Interval(point, low, high)
