"""Bootstrap intervals of medians and of their ratios, for a handful of repetitions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from purejaxppo.experiment.statistics import bootstrap_interval, stratified_interval


class Interval(NamedTuple):
    """A statistic of the samples, and its 95 % percentile interval over resamples."""

    value: float
    low: float
    high: float


def median_interval(samples: Sequence[float]) -> Interval:
    """Returns the interval of the median of independent samples, which may be ratios of measured pairs."""
    values = np.asarray(samples, np.float64)
    low, high = bootstrap_interval(values, _median)
    return Interval(float(_median(values)), float(low), float(high))


def ratio_interval(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
    """Returns the interval of median(numerator) / median(denominator), for samples that are not paired."""
    above, below = len(numerator), len(denominator)
    # Strata have equal sizes: each sample is repeated up to a common one, and a resample takes as many values from
    # a stratum as were measured.
    size = math.lcm(above, below)
    strata = np.stack([np.repeat(numerator, size // above), np.repeat(denominator, size // below)])

    def ratio(x: np.ndarray) -> np.ndarray:
        return _median(x[..., :above]) / _median(x[..., size : size + below])

    low, high = stratified_interval(strata, ratio)
    value = np.median(numerator) / np.median(denominator)
    return Interval(float(value), float(low), float(high))


def _median(x: np.ndarray) -> np.ndarray:
    x, size = np.sort(x, axis=-1), x.shape[-1]
    # For so few numbers this is several times as fast as np.median.
    return (x[..., (size - 1) // 2] + x[..., size // 2]) / 2
