"""Medians of paired ratios, and how sure they are."""

import math
import statistics
from collections.abc import Sequence


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the median that order statistics give, whatever the distribution.

    Of n values the k-th from below and from above, with the largest k that is wrong in less than 1 - confidence; with
    fewer than six values no such k exists, and it is their range.
    """
    ordered = sorted(values)
    n = len(ordered)
    below, k = 0.0, 0
    while k < n // 2:
        below += math.comb(n, k) / 2**n  # P(fewer than k + 1 of n lie below the median)
        if below > (1 - confidence) / 2:
            break
        k += 1
    k = max(k - 1, 0)
    return ordered[k], ordered[n - 1 - k]


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median and interval of the ratios of values that were measured side by side."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, high = median_interval(ratios)
    return {"median": statistics.median(ratios), "low": low, "high": high, "repetitions": len(ratios)}
