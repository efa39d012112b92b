"""Who comes first, and how sure that is: rankings of layers and heads, in numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from xatlas.stats.values import LEVEL, Floats, agree, quantile


def probability_first(draws: Floats) -> Floats:
    """Return P(rank 1) per item of draws ``(draw, item)``.

    Items within numerical agreement of the largest share the first rank: each of k counts 1 / k.
    NaN for an item that is absent from every draw.
    """
    finite = np.isfinite(draws)
    top = np.where(finite, draws, -np.inf).max(1, keepdims=True, initial=-np.inf)
    shared = finite & agree(draws, top)
    held = shared.any(1)
    part = shared[held] / shared[held].sum(1, keepdims=True)
    mean = part.mean(0) if held.any() else np.full(draws.shape[1], np.nan)
    return np.where(finite.any(0), mean, np.nan)


@dataclass(frozen=True)
class Winner:
    """The largest item, and how sure that is.

    Parameters
    ----------
    index, value, low, high : int, float, float, float
        Which item, its family-macro average and 95 % interval.
    probability : float
        P(rank 1).
    runner_up : int
        The second largest item, -1 when there is none.
    margin, margin_low, margin_high : float
        Lead over the best of all others, with its 95 % interval; NaN without a runner-up.
    tie : bool
        Whether the margin's interval contains 0 (or can't be told), or the two values agree.
    tied : tuple of int
        Items that tie with the winner, itself not included.
    spread : tuple of float
        95 % interval of the index of the first-ranked item over draws.
    """

    index: int
    value: float
    low: float
    high: float
    probability: float
    runner_up: int
    margin: float
    margin_low: float
    margin_high: float
    tie: bool
    tied: tuple[int, ...]
    spread: tuple[float, float]


def winner(point: Floats, draws: Floats, *, resamples: bool = True) -> Winner | None:
    """Find the largest of ``point (item)`` and judge it by ``draws (draw, item)``; None when all is NaN.

    The lead is taken over the best of *all* others in each draw, not over one fixed rival: a lead that
    two rivals share in eating up is no lead. Without ``resamples`` (draws that can't vary, see
    :class:`~xatlas.stats.Clusters`) there are no intervals, and nothing is told apart from a tie.
    """
    there = np.isfinite(point)
    if not there.any():
        return None
    bounds = _bounds if resamples else _unknown
    best = int(np.nanargmax(point))
    finite = np.where(np.isfinite(draws), draws, -np.inf)
    first = np.argmax(finite, axis=1)
    own = (
        best,
        float(point[best]),
        *bounds(draws[:, best]),
        float(probability_first(draws)[best]),
    )
    if there.sum() == 1:
        return Winner(*own, -1, math.nan, math.nan, math.nan, False, (), bounds(first))
    second = int(np.argmax(np.where(np.arange(len(point)) == best, -np.inf, np.where(there, point, -np.inf))))
    low, high = bounds(draws[:, best] - np.delete(finite, best, axis=1).max(1))
    tie = not low > 0 or bool(agree(point[second], point[best]))
    tied = _tied(point, draws, best) if tie else ()
    margin = float(point[best] - point[second])
    return Winner(*own, second, margin, low, high, tie, tied or (second,) * tie, bounds(first))


def _tied(point: Floats, draws: Floats, best: int) -> tuple[int, ...]:
    """Return the items whose distance to the winner has 0 in its interval, among the best dozen."""
    rivals = np.argsort(np.where(np.isfinite(point), -point, np.inf))[:12]
    rivals = np.array([i for i in sorted(rivals) if i != best and np.isfinite(point[i])], dtype=int)
    near = quantile(draws[:, [best]] - draws[:, rivals], (1 - LEVEL) / 2) <= 0
    return tuple(int(i) for i in rivals[near | agree(point[rivals], point[best])])


def _bounds(draws: Any) -> tuple[float, float]:
    return float(quantile(draws, (1 - LEVEL) / 2)), float(quantile(draws, (1 + LEVEL) / 2))


def _unknown(draws: Any) -> tuple[float, float]:
    return math.nan, math.nan


def chance_of_wins(n_layers: int, n_heads: int, wins: int) -> float:
    """Return P(one index wins in at least ``wins`` of ``n_layers``) when each layer's winner is random.

    Exact: counts the sequences in which every index wins fewer than ``wins`` times.
    """
    if wins <= 0 or n_layers == 0:
        return 1.0
    ways = [1] + [0] * n_layers  # sequences of length n over the indices taken so far
    for _ in range(n_heads):
        ways = [sum(math.comb(n, k) * ways[n - k] for k in range(min(wins - 1, n) + 1)) for n in range(n_layers + 1)]
    total: int = n_heads**n_layers
    return (total - ways[n_layers]) / total


def expected_wins(n_layers: int, n_heads: int) -> float:
    """Return how many of ``n_layers`` the luckiest of ``n_heads`` indices wins on average, by chance."""
    return sum(chance_of_wins(n_layers, n_heads, wins) for wins in range(1, n_layers + 1))


def correlate_ranks(a: Floats, b: Floats) -> Floats:
    """Return Spearman's rank correlation over the last axis; NaN where one side is constant or absent."""
    ranks = [_ranks(np.asarray(side, dtype=float)) for side in (a, b)]
    centred = [side - side.mean(-1, keepdims=True) for side in ranks]
    scale = np.sqrt((centred[0] ** 2).sum(-1) * (centred[1] ** 2).sum(-1))
    top = (centred[0] * centred[1]).sum(-1)
    ratio: Floats = np.divide(top, scale, out=np.full(np.shape(top), np.nan), where=scale > 0)
    return ratio


def _ranks(values: Floats) -> Floats:
    """Return mid-ranks over the last axis: a value's rank is how many are smaller, plus half its equals."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return np.where(np.isfinite(values), below + (equal - 1) / 2.0, np.nan)
