import warnings

import numpy as np
import pytest
from scipy.stats import trim_mean

from Benchmarking.Statistics import interval, iqm, mean


@pytest.fixture
def scores():
    return np.random.default_rng(0).normal(size=(10, 26)) * np.arange(1, 27)  # runs × tasks


def by_task(scores):
    return [scores[:, [task]] for task in range(scores.shape[1])]


@pytest.mark.parametrize('runs', range(1, 14))
def test_iqm_is_the_25_percent_trimmed_mean(runs):
    values = np.random.default_rng(runs).normal(size=(runs, 5))
    np.testing.assert_allclose(iqm([values]), trim_mean(values, 0.25, axis=0))


def test_iqm_pools_tasks_and_mean_weighs_them_the_same(scores):
    np.testing.assert_allclose(iqm(by_task(scores)), trim_mean(scores, 0.25, axis=None))
    np.testing.assert_allclose(mean(by_task(scores)), scores.mean())
    np.testing.assert_allclose(mean([np.array([[1.0], [3.0], [5.0]]), np.array([[11.0]])]), 7.0)


@pytest.mark.parametrize('statistic', ['mean', 'iqm'])
def test_intervals_agree_with_rliable(scores, statistic):
    library, metrics = pytest.importorskip('rliable.library'), pytest.importorskip('rliable.metrics')
    function = {'mean': metrics.aggregate_mean, 'iqm': metrics.aggregate_iqm}[statistic]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        points, bounds = library.get_interval_estimates(
            {'a': scores}, lambda x: np.array([function(x)]), reps=2000, random_state=np.random.RandomState(0)
        )
    ours = interval(by_task(scores), statistic, resamples=4000)
    width = float(np.ptp(bounds['a']))
    np.testing.assert_allclose(ours.point, points['a'])
    np.testing.assert_allclose([ours.low, ours.high], bounds['a'], atol=0.06 * width)


def test_the_same_arguments_give_the_same_interval_and_points_are_independent_of_their_neighbours(scores):
    curve = interval([scores], resamples=500)
    assert all(np.array_equal(one, other) for one, other in zip(curve, interval([scores], resamples=500), strict=True))
    alone = interval([scores[:, 3]], resamples=500)
    np.testing.assert_allclose([curve.low[3], curve.high[3]], [alone.low[0], alone.high[0]])


def test_chunks_change_nothing(scores, monkeypatch):
    whole = interval([scores], 'iqm', resamples=200)
    monkeypatch.setattr('Benchmarking.Statistics.CHUNK_NUMBERS', 3000)
    np.testing.assert_array_equal(whole, interval([scores], 'iqm', resamples=200))


def test_one_run_has_no_width():
    band = interval([np.array([[1.0, 2.0]])])
    assert band.low.tolist() == band.point.tolist() == band.high.tolist() == [1.0, 2.0]


@pytest.mark.parametrize('scores', [[], [np.zeros((0, 3))], [np.zeros((2, 3)), np.zeros((2, 4))], [np.array([1.0, np.nan])]])
def test_bad_scores_are_refused(scores):
    with pytest.raises(ValueError, match='scores'):
        interval(scores)
