"""Bootstrap intervals of medians and of their ratios: what a handful of repetitions can tell."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 4000
LEVEL = 0.95


class Interval(NamedTuple):
    """A statistic of the sample, and the quantiles of it over resamples between which it lies with 95 %."""

    value: float
    low: float
    high: float


def median_interval(samples: Sequence[float], seed: int = 0) -> Interval:
    """Of the median of independent samples; of paired ratios, where pairs were measured.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", sec. 13.3 (percentile interval).
    """
    return _interval(float(np.median(samples)), _medians(samples, np.random.default_rng(seed)))


def ratio_interval(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0) -> Interval:
    """Of median(numerator) / median(denominator), the two having been measured apart."""
    generator = np.random.default_rng(seed)
    resampled = _medians(numerator, generator) / _medians(denominator, generator)
    return _interval(float(np.median(numerator) / np.median(denominator)), resampled)


def _medians(samples: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    values = np.asarray(samples, np.float64)
    return np.median(generator.choice(values, (RESAMPLES, len(values))), axis=1)


def _interval(value: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
