"""The item with the largest mean, chosen by looking: how sure that is, and whether it ties."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.findings.claims import Bounds
from xatlas.findings.estimates import Sample, Statistic, bounds_of, spread
from xatlas.stats import PERMUTATIONS, Floats, agree, divide, probability_first, quantile

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Place:
    """The item with the largest mean, and how sure that is."""

    index: int
    label: Any
    runner_up: Any  # None for the only one there is
    p_rank1: float
    p: float  # of items permuted within templates
    margin: Bounds  # lead over the best of all others
    spread: tuple[Any, Any]  # labels within the 95 % interval of the first-ranked
    over_next: Bounds  # quotient of the two largest means, cross-fitted
    tied: tuple[Any, ...]
    draws: Floats  # index of the first-ranked item in each bootstrap draw

    @property
    def tie(self) -> bool:
        """Whether another item may be the largest."""
        return bool(self.tied)


def largest(sample: Sample, values: xr.DataArray, dim: Hashable = "layer") -> Place | None:
    """Find the item with the largest macro mean; None where nothing is known.

    It ties when the margin's 95 % interval contains 0, two means agree numerically, or P(rank 1) < 0.95.
    The lead is taken over the best of *all* others in each draw.
    """
    values = values.transpose("prompt", dim)
    statistic = sample.mean(values)
    point = statistic.point.values
    present = np.flatnonzero(np.isfinite(point))
    places = present.tolist()
    if not places:
        return None
    labels = values[dim].values if dim in values.coords else np.arange(values.sizes[dim])
    order = present[np.argsort(-point[present], kind="stable")]
    best = int(order[0])
    raw = sample.clusters.macro_draws(values.values)[:, present]
    draws = np.where(np.isfinite(raw), raw, -np.inf)
    ranked = probability_first(raw)[places.index(best)]
    first = present[draws.argmax(1)]
    if len(present) == 1:
        alone = (math.nan, math.nan, math.nan)
        return Place(best, labels[best], None, 1.0, math.nan, alone, (labels[best],) * 2, alone, (), first)
    second = int(order[1])
    own = places.index(best)
    lead = draws[:, own] - np.delete(draws, own, axis=1).max(1)
    value = float(point[best] - point[second])
    moved = statistic.moved.values
    lead = sample.stretched(lead, value, spread(moved[:, best] - moved[:, second], sample.clusters.names)[1])
    low, high = (float(quantile(lead, q)) for q in (0.025, 0.975))
    if not sample.clusters.resamples:
        low, high = math.nan, math.nan
    tie = not low > 0 or bool(agree(point[best], point[second])) or not ranked >= 0.95
    rivals = order[1:12]
    near = quantile(draws[:, [own]] - draws[:, np.searchsorted(present, rivals)], 0.025) <= 0
    rivals = rivals[near | agree(point[rivals], point[best])]
    tied = tuple(labels[rivals] if rivals.size else labels[[second]]) if tie and sample.clusters.resamples else ()

    def top_two(means: Floats) -> Floats:
        ranked = np.argsort(-np.nan_to_num(means, nan=-np.inf), kind="stable")
        return np.eye(len(means))[ranked[:2]]

    return Place(
        index=best,
        label=labels[best],
        runner_up=labels[second],
        p_rank1=float(ranked),
        p=sample.permuted(values, dim, lambda means: means.max(-1), PERMUTATIONS // 5),
        margin=(value, min(low, value), max(high, value)) if math.isfinite(low) else (value, low, high),
        spread=(labels[int(np.quantile(first, 0.025))], labels[int(np.quantile(first, 0.975))]),
        over_next=sample.cross_fit(values.values[:, present], top_two, log=True),
        tied=tied,
        draws=first,
    )


def largest_ratio(
    sample: Sample, top: xr.DataArray, bottom: xr.DataArray, at: Statistic, dim: Hashable = "layer"
) -> tuple[Bounds, bool]:
    """Return the largest ratio of macro means over ``dim``, and whether it is cross-fitted.

    It is where halves of the templates choose another item; else it is ``at``, the ratio of the item chosen.
    """
    above, below = (each.transpose("prompt", dim).values for each in (top, bottom))
    held = np.isfinite(above).any(0)
    n, chosen = int(held.sum()), set()

    def pick(means: Floats) -> Floats:
        item = int(np.argmax(np.nan_to_num(divide(means[:n], means[n:]), nan=-1.0)))  # a half may be empty
        chosen.add(item)
        return np.eye(2 * n)[[item, n + item]]

    crossed = sample.cross_fit(np.column_stack([above[:, held], below[:, held]]), pick, log=True)
    return (crossed, True) if len(chosen) > 1 else (bounds_of(at), False)
