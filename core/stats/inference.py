"""Shares, pairs of shares, and many p-values at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from xatlas.stats.values import LEVEL


def wilson(passed: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the Wilson interval of a share (Wilson 1927); NaN when nothing was tried."""
    if total == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, scale = passed / total, 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided McNemar p-value from the tests that one of two models passed alone."""
    total = only_first + only_second
    tail: int = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, tail / float(2 ** max(total - 1, 0)) if total else 1.0)


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's step-down method (Holm 1979), in the order given; NaN stays."""
    known = sorted((value, index) for index, value in enumerate(p) if not math.isnan(value))
    adjusted, largest = [math.nan] * len(p), 0.0
    for rank, (value, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        adjusted[index] = largest
    return adjusted
