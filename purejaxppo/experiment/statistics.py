"""Statistics over runs: the interquartile mean, and how sure one can be of it.

The percentile interval of few runs is narrow: below about ten, read it as a lower bound of the doubt.

Source: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice", arXiv:2108.13264,
sec. 4. Host-side NumPy, float64.
"""

from collections.abc import Callable

import numpy as np


def interquartile_mean(x: np.ndarray) -> np.ndarray:
    """Mean along the last axis of what is left when a quarter of the values (rounded down) is cut off at each end.

    Less touched by one lucky or unlucky run than the mean, and less wasteful of few runs than the median.

    Args:
      x: [..., runs], at least one run, none NaN.
    """
    x = np.sort(np.asarray(x, np.float64), axis=-1)
    cut = x.shape[-1] // 4
    return x[..., cut : x.shape[-1] - cut].mean(axis=-1)


def bootstrap_interval(
    x: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic over runs: its lower and upper end [...].

    Runs are drawn with replacement along the last axis, the same ones for all rows of one draw, so that a curve
    [points, runs] is resampled as whole runs.

    Args:
      x: [..., runs].
      statistic: [..., runs] -> [...].
    """
    return stratified_interval(np.asarray(x)[..., None, :], statistic, confidence, draws, seed)


def stratified_interval(
    x: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """As `bootstrap_interval`, of a statistic over runs of several kinds: its lower and upper end [...].

    Each stratum (a task, a setting) keeps its number of runs: they are drawn among its own, apart from the others'.

    Args:
      x: [..., strata, runs].
      statistic: of all strata's runs together, [..., strata * runs] -> [...].
    """
    x = np.asarray(x, np.float64)
    strata, runs = x.shape[-2:]
    together = x.reshape(*x.shape[:-2], strata * runs)
    first = runs * np.arange(strata)[:, None]
    generator = np.random.default_rng(seed)
    # One draw at a time: all of them at once are draws times as much memory.
    picks = ((first + generator.integers(0, runs, (strata, runs))).ravel() for _ in range(draws))
    values = np.stack([statistic(together[..., pick]) for pick in picks])
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high
