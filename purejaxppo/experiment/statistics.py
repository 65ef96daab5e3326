"""Statistics over runs: the interquartile mean and bootstrap confidence intervals.

With fewer than about ten runs a percentile interval is too narrow: its coverage is below the nominal one.

Source: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice", arXiv:2108.13264,
sec. 4. Host-side NumPy, float64.
"""

from collections.abc import Callable

import numpy as np


def interquartile_mean(x: np.ndarray) -> np.ndarray:
    """Returns the mean [...] along the last axis without the lowest and the highest quarter of the values.

    A quarter of the number of runs is rounded down. The interquartile mean is more robust to outliers than the mean,
    and statistically more efficient than the median.

    Args:
      x: [..., runs], at least one run, none NaN.
    """
    x = np.sort(np.asarray(x, np.float64), axis=-1)
    trimmed = x.shape[-1] // 4  # runs at each end
    return x[..., trimmed : x.shape[-1] - trimmed].mean(axis=-1)


def bootstrap_interval(
    x: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the percentile bootstrap interval of a statistic over runs: its lower and upper end, each [...].

    Runs are resampled with replacement along the last axis. In each resample the same runs are taken for all leading
    indices, so a curve [points, runs] is resampled by whole runs.

    Args:
      x: [..., runs].
      statistic: [..., runs] -> [...].
      confidence: nominal coverage, in (0, 1).
      draws: number of resamples.
      seed: of the resampling.
    """
    return stratified_interval(np.asarray(x)[..., None, :], statistic, confidence, draws, seed)


def stratified_interval(
    x: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the stratified bootstrap interval of a statistic over the runs of several strata, each end [...].

    Each stratum (a task, a setting) is resampled by itself, so that every resample has all strata with equal weights.

    Args:
      x: [..., strata, runs].
      statistic: of the runs of all strata together, [..., strata * runs] -> [...].
      confidence, draws, seed: as in `bootstrap_interval`.
    """
    x = np.asarray(x, np.float64)
    strata, runs = x.shape[-2:]
    together = x.reshape(*x.shape[:-2], strata * runs)
    first = runs * np.arange(strata)[:, None]
    generator = np.random.default_rng(seed)
    # One resample at a time, since all of them at once would take `draws` times the memory.
    picks = ((first + generator.integers(0, runs, (strata, runs))).ravel() for _ in range(draws))
    values = np.stack([statistic(together[..., pick]) for pick in picks])
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high
