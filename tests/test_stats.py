"""The interquartile mean and its bootstrap interval against SciPy and by hand."""

import numpy as np
import pytest
from scipy import stats

from purejaxppo.stats import bootstrap_interval, interquartile_mean


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

    So the 95 % interval is all there is, and the 40 % interval is a single point.
    """
    assert bootstrap_interval(np.array([0.0, 1.0])) == (0.0, 1.0)
    assert bootstrap_interval(np.array([0.0, 1.0]), confidence=0.4) == (0.5, 0.5)


def test_interval_of_equal_runs_has_no_width():
    assert bootstrap_interval(np.full(5, 3.0)) == (3.0, 3.0)
    assert bootstrap_interval(np.array([3.0])) == (3.0, 3.0)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_interval_is_scipys(confidence):
    """Up to the noise of other random draws."""
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
    """Of 200 samples of 30 runs, the 80 % interval holds the truth in about 80 %: more than 3 in 4 or so."""
    x = np.random.default_rng(1).normal(size=(200, 30))
    intervals = [bootstrap_interval(row, draws=200) for row in x]
    narrow = [bootstrap_interval(row, confidence=0.5, draws=200) for row in x]
    assert 0.87 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.99
    assert 0.38 <= np.mean([low <= 0 <= high for low, high in narrow]) <= 0.6


def test_interval_of_curves():
    """Whole runs are resampled: each point's interval is that of the point alone, with the same draws."""
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
