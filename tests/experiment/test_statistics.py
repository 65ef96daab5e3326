"""The interquartile mean and its bootstrap interval against SciPy and by hand."""

import numpy as np
import pytest
from scipy import stats

from purejaxppo.experiment.statistics import bootstrap_interval, interquartile_mean, stratified_interval


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0], 5.0),
        ([1.0, 3.0], 2.0),
        ([9.0, 1.0, 2.0], 4.0),  # a quarter of three is none
        ([100.0, 1.0, 2.0, -100.0], 1.5),
        ([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 1000.0], 4.5),  # 3, 4, 5, 6
        ([0.0, 1.0, 2.0, 3.0, 100.0], 2.0),  # one is cut off at each end
    ],
)
def test_interquartile_mean_by_hand(values, expected):
    assert interquartile_mean(np.array(values)) == expected


@pytest.mark.parametrize("runs", range(1, 13))
def test_interquartile_mean_is_the_trimmed_mean(runs):
    x = np.random.default_rng(runs).normal(size=(5, runs))
    np.testing.assert_allclose(interquartile_mean(x), stats.trim_mean(x, 0.25, axis=-1), rtol=1e-12)
    assert interquartile_mean(x).shape == (5,)


def test_interquartile_mean_counts_in_float64_and_leaves_its_argument():
    x = np.array([3.0, 1.0, 2.0], np.float32)
    assert interquartile_mean(x).dtype == np.float64
    np.testing.assert_array_equal(x, [3.0, 1.0, 2.0])


def test_interval_of_two_runs():
    """Resampled, two runs are 0 0, 0 1, 1 0 or 1 1: 0 and 1 in a quarter of the draws each, 1/2 in half of them.

    So the 95 % interval is [0, 1], and the 40 % interval is a single point.
    """
    assert bootstrap_interval(np.array([0.0, 1.0])) == (0.0, 1.0)
    assert bootstrap_interval(np.array([0.0, 1.0]), confidence=0.4) == (0.5, 0.5)


def test_interval_of_equal_runs_has_no_width():
    assert bootstrap_interval(np.full(5, 3.0)) == (3.0, 3.0)
    assert bootstrap_interval(np.array([3.0])) == (3.0, 3.0)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_interval_is_scipys(confidence):
    """They agree up to the noise of different random draws."""
    x = np.random.default_rng(0).normal(size=20)
    found = bootstrap_interval(x, confidence=confidence, draws=5000)
    expected = stats.bootstrap(
        (x,),
        interquartile_mean,
        confidence_level=confidence,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    np.testing.assert_allclose(found, (expected.low, expected.high), atol=0.04)
    assert found[0] < interquartile_mean(x) < found[1]


def test_coverage():
    """The 80 % intervals of 200 samples of 30 runs contain the true value in about 80 %, here in more than 3 of 4."""
    x = np.random.default_rng(1).normal(size=(200, 30))
    intervals = [bootstrap_interval(row, draws=200) for row in x]
    narrow = [bootstrap_interval(row, confidence=0.5, draws=200) for row in x]
    assert 0.87 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.99
    assert 0.38 <= np.mean([low <= 0 <= high for low, high in narrow]) <= 0.6


def test_interval_of_curves():
    """Whole runs are resampled: the interval at each point is that of the point by itself, with the same draws."""
    curves = np.random.default_rng(2).normal(size=(4, 6))
    low, high = bootstrap_interval(curves, draws=100)
    assert low.shape == high.shape == (4,)
    for i in range(4):
        assert bootstrap_interval(curves[i], draws=100) == (low[i], high[i])
    # Two points that move together: their difference is the same in every draw.
    low, high = bootstrap_interval(
        np.stack([curves[0], curves[0] + 1]), lambda x: x[1].mean(-1) - x[0].mean(-1), draws=50
    )
    np.testing.assert_allclose((low, high), 1.0)


def test_another_statistic_and_another_seed():
    x = np.random.default_rng(3).normal(size=11)
    assert bootstrap_interval(x) == bootstrap_interval(x)
    assert bootstrap_interval(x, seed=1, draws=50) != bootstrap_interval(x, seed=2, draws=50)
    low, high = bootstrap_interval(x, lambda x: x.max(axis=-1))
    assert high == x.max()
    assert low < high


# --- stratified -------------------------------------------------------------------------------------------------------


def mean(x):
    return x.mean(axis=-1)


@pytest.mark.parametrize("runs", [1, 2, 5, 30])
def test_one_stratum_is_the_plain_interval(runs):
    x = np.random.default_rng(runs).normal(size=(3, runs))
    for options in ({}, {"statistic": mean, "confidence": 0.5, "draws": 99, "seed": 7}):
        plain = bootstrap_interval(x, **options)
        np.testing.assert_array_equal(stratified_interval(x[:, None, :], **options), plain)
    # In the bits of one table of picks, drawn at once, as published figures were.
    picks = np.random.default_rng(0).integers(0, runs, (2000, runs))
    values = [interquartile_mean(x[0, pick]) for pick in picks]
    assert bootstrap_interval(x[0]) == tuple(np.quantile(values, [(1 - 0.95) / 2, (1 + 0.95) / 2]))


def test_stratified_interval_of_two_strata_of_two_runs():
    """It is 20 plus the heads of four fair coins: up to 0 in 1/16 of the draws, up to 1 in 5/16, up to 3 in 15/16.

    If all four runs were resampled together, a draw could contain none of the second stratum.
    """
    x = np.array([[0.0, 1.0], [10.0, 11.0]])
    assert stratified_interval(x, mean, confidence=0.8) == (21 / 4, 23 / 4)
    assert stratified_interval(x, mean, confidence=0.999) == (20 / 4, 24 / 4)
    assert bootstrap_interval(x.ravel(), mean, confidence=0.999) == (0.0, 11.0)


def test_strata_that_are_sure_of_themselves_leave_no_doubt():
    assert stratified_interval(np.array([[1.0, 1.0, 1.0], [5.0, 5.0, 5.0]]), mean) == (3.0, 3.0)
    assert stratified_interval(np.array([[1.0], [2.0], [6.0]]), mean) == (3.0, 3.0)


def test_strata_are_resampled_independently_and_each_within_itself():
    x = np.arange(12.0).reshape(3, 4)
    seen = []

    def statistic(values):
        seen.append(values.reshape(3, 4))
        return values[..., :4].mean(axis=-1) - values[..., 4:8].mean(axis=-1)

    low, high = stratified_interval(x, statistic, draws=100)
    assert low < -4 < high  # the same picks in both would hold the difference at -4
    for stratum in range(3):
        assert {float(v) for values in seen for v in values[stratum]} == set(x[stratum])


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_stratified_interval_is_scipys(confidence):
    """SciPy too resamples each of several samples by itself."""
    x = np.random.default_rng(5).normal(size=(3, 12)) * [[1.0], [2.0], [3.0]] + [[0.0], [2.0], [-1.0]]
    found = stratified_interval(x, confidence=confidence, draws=5000)
    expected = stats.bootstrap(
        tuple(x),
        lambda *strata, axis: interquartile_mean(np.concatenate(strata, axis)),
        confidence_level=confidence,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    np.testing.assert_allclose(found, (expected.low, expected.high), atol=0.04)


def test_stratified_interval_of_curves():
    """The interval at each point is that of the point by itself, with the same draws."""
    curves = np.random.default_rng(2).normal(size=(4, 3, 5))
    low, high = stratified_interval(curves, draws=100)
    assert low.shape == high.shape == (4,)
    for i in range(4):
        np.testing.assert_allclose(stratified_interval(curves[i], draws=100), (low[i], high[i]), rtol=1e-12)
