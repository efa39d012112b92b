"""The item with the largest mean, chosen by looking: how sure that is, and whether it ties."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.findings.estimates import TOO_FEW_DRAWS, Sample, Statistic, bounds_of, spread
from xatlas.findings.verdict import UNKNOWN, Bounds
from xatlas.stats import PERMUTATIONS, Floats, agree, divide, probability_first, quantile

if TYPE_CHECKING:
    import xarray as xr

#: P(rank 1) below it is a tie.
SURE = 0.95


@dataclass(frozen=True)
class Ranking:
    """Items by size, and how sure the first place is, all from the same stretched bootstrap draws."""

    order: Any  # indices, the largest first, of the items that are known
    sure: Floats  # P(rank 1) of every item
    margin: Bounds  # lead over the best of all others
    tied: Any  # indices of what may be as large, most of the time: none where P(rank 1) and margin are clear
    first: Any  # index of the first-ranked item in each draw


def ranking(sample: Sample, statistic: Statistic, draws: Floats) -> Ranking:
    """Rank the items of a statistic by ``draws (draw, item)`` of it, on the same scale.

    The first ties when the margin's 95 % interval contains 0, two agree numerically, or P(rank 1) < 0.95. The margin
    is the lead over the best of *all* others in each draw, and draws are stretched before anything is made of them: so
    no P(rank 1) says what the margin denies.
    """
    point, moved = statistic.point.values, statistic.moved.transpose("cluster", ...).values
    present = np.flatnonzero(np.isfinite(point))
    order = present[np.argsort(-point[present], kind="stable")]
    if len(order) > 1 and sample.clusters.resamples:
        gap = moved[:, order[0]] - moved[:, order[1]]
        draws = sample.stretched(draws, point, spread(gap, sample.clusters.names)[1])
    draws = np.where(np.isfinite(point), draws, np.nan)
    sure = probability_first(draws)
    draws = np.where(np.isfinite(draws), draws, -np.inf)
    first = draws.argmax(1)
    if len(order) < 2:
        return Ranking(order, sure, UNKNOWN, order[:0], first)
    best, second, rivals = order[0], order[1], order[1:12]
    with np.errstate(invalid="ignore"):  # a draw may lack both
        lead = draws[:, best] - np.delete(draws, best, axis=1).max(1)
        gaps = draws[:, [best]] - draws[:, rivals]
    value = float(point[best] - point[second])
    if not sample.clusters.resamples:
        return Ranking(order, sure, (value, math.nan, math.nan), order[:0], first)
    low, high = (float(quantile(lead, q)) for q in (0.025, 0.975))
    tied = order[:0]
    if not low > 0 or bool(agree(point[best], point[second])) or not sure[best] >= SURE:
        tied = rivals[(quantile(gaps, 0.025) <= 0) | agree(point[rivals], point[best])]
        tied = tied if tied.size else order[1:2]
    return Ranking(order, sure, (value, min(low, value), max(high, value)), tied, first)


@dataclass(frozen=True)
class Place:
    """The item with the largest mean, and how sure that is."""

    index: int
    label: Any
    runner_up: Any  # None for the only one there is
    p_rank1: float
    p: float  # of items permuted within templates
    margin: Bounds  # lead over the best of all others
    over_next: Bounds  # quotient of the two largest means, cross-fitted
    tied: tuple[Any, ...]
    draws: Floats  # index of the first-ranked item in each bootstrap draw
    ranks: Floats  # P(rank 1) of every item

    @property
    def tie(self) -> bool:
        """Whether another item may be the largest."""
        return bool(self.tied)


def largest(sample: Sample, values: xr.DataArray, dim: Hashable = "layer") -> Place | None:
    """Find the item with the largest macro mean, and what it ties with; None where nothing is known."""
    values = values.transpose("prompt", dim)
    found = ranking(sample, sample.mean(values), sample.clusters.macro_draws(values.values))
    if not len(found.order):
        return None
    best = int(found.order[0])
    labels = values[dim].values if dim in values.coords else np.arange(values.sizes[dim])
    if len(found.order) == 1:
        return Place(best, labels[best], None, 1.0, math.nan, UNKNOWN, UNKNOWN, (), found.first, found.sure)

    def top_two(means: Floats) -> Floats:
        two = np.argsort(-np.nan_to_num(means, nan=-np.inf), kind="stable")[:2]
        return np.eye(len(means))[two]

    return Place(
        index=best,
        label=labels[best],
        runner_up=labels[found.order[1]],
        p_rank1=float(found.sure[best]),
        p=sample.permuted(values, dim, lambda means: means.max(-1), PERMUTATIONS // 5),
        margin=found.margin,
        over_next=sample.cross_fit(values.values[:, np.sort(found.order)], top_two, log=True)[0],
        tied=tuple(labels[found.tied]),
        draws=found.first,
        ranks=found.sure,
    )


def over_control(p: float, over: Statistic | None, control: Statistic | None) -> dict[str, Any]:
    """Return what evidence says of an item chosen with ``p``, whose number has to exceed its control, too.

    ``over`` is the number over its control; without a control, being the largest is enough.
    """
    if over is None:
        return {"p": p, "side": 1, "own": 1}
    way = over.side()
    unsure = TOO_FEW_DRAWS if way != over.side(surely=False) else ""
    return {"p": max(p, float(over.p())), "side": way, "own": 1, "open": unsure, "control": bounds_of(control)}


def largest_over(sample: Sample, values: Floats, whole: Floats, *, log: bool = False) -> tuple[Bounds, bool]:
    """Return the largest macro mean of ``values (prompt, item)``, and whether halves of the templates choose others.

    It is the quotient over that of ``whole (prompt)``: 1 where a prompt counts.
    """

    def pick(means: Floats) -> Floats:
        return np.eye(len(means))[[int(np.nan_to_num(means[:-1], nan=-np.inf).argmax()), -1]]

    return sample.cross_fit(np.column_stack([values, whole]), pick, log=log)


def largest_ratio(
    sample: Sample, top: xr.DataArray, bottom: xr.DataArray, dim: Hashable = "layer"
) -> tuple[Bounds, bool]:
    """Return the largest ratio of macro means over ``dim``, and whether halves of the templates choose other items."""
    above, below = (each.transpose("prompt", dim).values for each in (top, bottom))
    held = np.isfinite(above).any(0)
    n = int(held.sum())

    def pick(means: Floats) -> Floats:
        item = int(np.argmax(np.nan_to_num(divide(means[:n], means[n:]), nan=-1.0)))  # a half may be empty
        return np.eye(2 * n)[[item, n + item]]

    return sample.cross_fit(np.column_stack([above[:, held], below[:, held]]), pick, log=True)
