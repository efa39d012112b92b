"""Numbers with intervals and p-values: means, ratios and shares over templates; what is chosen by looking; layer types.

Values are xarray arrays with a dimension ``prompt``; all other dimensions are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.findings.claims import ALPHA, UNKNOWN, Bounds, Evidence
from xatlas.stats import (
    LEVEL,
    Clusters,
    Floats,
    divide,
    orders,
    t_quantile,
    t_tail,
)

if TYPE_CHECKING:
    import xarray as xr

#: How much two numbers may differ and count as equal; of ratios, between which two values their quotient may lie.
Margin = float | tuple[float, float]
#: The values of the dimension that holds a number and its interval.
BOUND = ("value", "low", "high")
#: Ways of halving the templates that cross-fitted numbers are averaged over.
SPLITS = 10
#: Permuted labels that are held at once.
AT_ONCE = 2_000_000


def within(value: float, error: float, freedom: float, margin: Margin) -> dict[str, Any]:
    """Return what evidence says of a number's lying within a margin: two one-sided tests, and the 90 % interval.

    The number is on the scale of inference; a margin of two ends is one of ratios.
    """
    low, high = np.log(margin) if isinstance(margin, tuple) else (-margin, margin)
    near = bool(low <= value <= high)
    half = float(t_quantile(freedom, 1 - 2 * ALPHA)) * error
    if not math.isfinite(half):
        return {"near": near, "margin": margin}
    tails = []
    for gap in (value - low, high - value):
        tail = float(t_tail(gap / error if error else 1e6, freedom)) / 2
        tails.append(tail if gap > 0 else 1 - tail)
    equal = bool(low <= value - half and value + half <= high)
    return {"near": near, "equal_p": max(tails), "equal": equal, "margin": margin}


def spread(moved: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Return standard errors and degrees of freedom ``(...)`` of ``moved (cluster, ...)``; see :class:`Statistic`."""
    flat = moved.reshape(len(moved), -1)
    families = [str(name).split("|")[0] for name in clusters]
    own = (np.array(families) == np.unique(families)[:, None]).astype(float)  # (family, cluster)
    size = own @ np.isfinite(flat)
    each = np.nan_to_num(divide(own @ np.nan_to_num(flat) ** 2, np.where(size > 1, size * (size - 1), 0.0)))
    variance, count = each.sum(0), (size > 1).sum(0)
    fourth = np.nan_to_num(divide(each**2, size - 1)).sum(0)
    freedom = np.where(fourth > 0, divide(variance**2, fourth), 1e6)  # nothing varies: the error is 0
    error, freedom = divide(np.sqrt(variance), count), np.where(count > 0, freedom, np.nan)
    return error.reshape(moved.shape[1:]), freedom.reshape(moved.shape[1:])


def _over_all(moved: xr.DataArray, there: xr.DataArray) -> xr.DataArray:
    """Return how templates move a macro mean of some of them, as moves of a mean of all that are there."""
    import xarray as xr

    have = moved.notnull()
    if bool((have == there).all()):
        return moved.fillna(0.0)
    families = [str(name).split("|")[0] for name in moved["cluster"].values]
    member = xr.DataArray(np.equal.outer(np.unique(families), families).astype(float), dims=("family", "cluster"))
    own, every = (xr.dot(member, each.astype(float), dim="cluster") for each in (have, there))
    share = (every / own.where(own > 0)).fillna(0.0) * (every > 1).sum("family") / (own > 1).sum("family")
    times: xr.DataArray = xr.dot(member, share, dim="family").assign_coords(cluster=moved["cluster"])
    return moved.fillna(0.0) * times


@dataclass(frozen=True, eq=False)
class Statistic:
    """A number per item, and how each template moves it: intervals for few clusters, paired between models.

    ``point (*dims)`` and ``moved (cluster, *dims)`` are on the scale of inference, the logarithm where ``log``:
    means of what is positive, and ratios of means. With residuals r of the delta method,
    V = Σ v_f, v_f = Σ r² / (T_f (T_f - 1) F²) over F families of T_f templates, and df = V² / Σ (v_f² / (T_f - 1))
    (Satterthwaite 1946).
    """

    point: xr.DataArray
    moved: xr.DataArray
    log: bool
    control: Statistic | None = None
    words: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _spread(self) -> tuple[xr.DataArray, xr.DataArray]:
        """Return the standard error and the degrees of freedom."""
        moved = self.moved.transpose("cluster", ...)
        error, known = spread(moved.values, moved["cluster"].values.tolist())
        return self.point.copy(data=error), self.point.copy(data=known)

    def freedom(self) -> float:
        """Return the degrees of freedom of one number."""
        return float(self._spread[1])

    def half(self, level: float = LEVEL) -> xr.DataArray:
        """Return half the width of the interval, on the scale of inference."""
        error, freedom = self._spread
        return error * error.copy(data=t_quantile(freedom.values, level))

    def bounds(self, level: float = LEVEL) -> xr.DataArray:
        """Return ``(*dims, bound)``: value, lower and upper end of the interval."""
        half, value = self.half(level).values, self.point.values
        ends = np.stack([value, value - half, value + half], axis=-1)
        found = self.point.expand_dims(bound=list(BOUND), axis=-1)
        return found.copy(data=np.exp(ends) if self.log else ends)

    def p(self, null: float = 0.0) -> xr.DataArray:
        """Return the two-sided p-value against ``null``, on the scale of inference."""
        error, freedom = self._spread
        gap = abs(self.point - null)
        t = (gap / error.where(error > 0)).where(error > 0, np.where(gap > 0, np.inf, 0.0))
        return gap.copy(data=t_tail(np.minimum(t.values, 1e6), freedom.values)).where(gap.notnull() & error.notnull())

    def within(self, margin: Margin) -> dict[str, Any]:
        """Return what evidence says of one number's lying within the margin."""
        return within(float(self.point), float(self._spread[0]), self.freedom(), margin)

    def __sub__(self, other: Statistic) -> Statistic:
        """Return the difference (of logarithms: the ratio), paired over the templates that both have."""
        import xarray as xr

        own, others = xr.align(self.moved, other.moved, join="outer")
        known = np.isfinite(self._spread[0]) & np.isfinite(other._spread[0])  # one without an interval has none
        there = own.notnull() | others.notnull()
        moved = (_over_all(own, there) - _over_all(others, there)).where(there & known)
        gap = self.point - other.point
        alike = np.isclose(self.point, gap.copy(data=other.point.broadcast_like(gap)), rtol=1e-9, atol=1e-12)
        control = self.control - other.control if self.control is not None and other.control is not None else None
        return Statistic(gap.where(~alike, 0.0), moved, self.log, control)  # rounding is no difference

    def isel(self, places: Mapping[Hashable, Any]) -> Statistic:
        """Return the numbers at some places."""
        control = self.control.isel(places) if self.control is not None else None
        point, moved = (each.isel(places, drop=True) for each in (self.point, self.moved))
        return replace(self, point=point, moved=moved, control=control)

    def against(self, control: Statistic) -> Statistic:
        """Return the same with its control, which is as uncertain: their difference has to clear 0, too."""
        return replace(self, control=control)

    def evidence(self, *, two_sided: bool = True, margin: Margin | None = None) -> Evidence:
        """Return what speaks for the claim that one number differs from 0 (a ratio: from 1), or is larger.

        With a control the difference from it has to lie on the same side, and the larger p-value counts. What lies on
        the other side of its control is refuted; without a direction, where its own interval has one.
        """
        value, low, high = self.bounds().values.tolist()
        tests = [self, *([self - self.control] if self.control is not None else [])]
        sides = [side(*bounds_of(each)[1:], 1.0 if self.log else 0.0) for each in tests]
        claimed = [each * sides[0] for each in sides] if two_sided else sides
        points = float(self.point)
        p = max(float(each.p()) for each in tests)
        if not two_sided and points < 0:  # of the claim, one side of the interval is tested all the same
            p = max(p, 1 - p / 2)
        known = math.isfinite(points)
        return Evidence(
            number=(value, low, high),
            p=p,
            against=("1" if self.log else "0") + (" and the control" if self.control is not None else ""),
            side=min(claimed),
            answer=(int(np.sign(points)) if known else None),
            control=bounds_of(self.control),
            own=claimed[0] if self.control is not None else None,
            **(self.within(margin) if margin is not None else {}),
            blocked="" if math.isfinite(low) or not known else "too few templates",
            words=self.words,
            statistic=self,
        )


def bounds_of(statistic: Statistic | None) -> Bounds:
    """Return value, lower and upper end of one number; unknown without any."""
    if statistic is None:
        return UNKNOWN
    value, low, high = statistic.bounds().values.tolist()
    return value, low, high


def side(low: float, high: float, mark: float) -> int:
    """Return 1 when the interval lies above the mark, -1 when below, else 0."""
    return 1 if low > mark else -1 if high < mark else 0


class Sample:
    """Prompts in templates in families, and the statistics over them.

    The arrays given have a dimension ``prompt`` in this order; what else they have is kept. A ``brief`` sample leaves
    out what a number under another setting does without: permutations (their p is NaN).
    """

    def __init__(self, families: Sequence[Any], templates: Sequence[Any], seed: int = 0) -> None:
        self.clusters = Clusters(families, templates, seed=seed)
        self.brief = False

    def briefly(self) -> Sample:
        """Return the same sample, brief."""
        found = copy(self)
        found.brief = True
        return found

    def mean(self, values: xr.DataArray, *, log: bool = False) -> Statistic:
        """Return family-macro means; with ``log`` the interval is that of the logarithm (of what is positive)."""
        import xarray as xr

        values = values.transpose("prompt", ...)
        point, moved = self.clusters.linear(values.values)
        if log:
            positive = np.where(point > 0, point, np.nan)
            point, moved = np.log(positive), moved / positive
        dims = values.dims[1:]
        coords: dict[Hashable, Any] = {dim: values[dim] for dim in dims if dim in values.coords}
        clusters = {**coords, "cluster": list(self.clusters.names)}
        return Statistic(xr.DataArray(point, coords, dims), xr.DataArray(moved, clusters, ("cluster", *dims)), log)

    def effects(self, values: xr.DataArray) -> xr.DataArray:
        """Return macro means ``(*dims, bound)`` of what is never negative: 0 where nothing changed in any prompt."""
        return self.mean(values, log=True).bounds().where(self.mean(values).point != 0, 0.0)

    def ratio(self, top: xr.DataArray, bottom: xr.DataArray) -> Statistic:
        """Return ratios of macro means, over the prompts that have both."""
        both = top.notnull() & bottom.notnull()
        above, below = (self.mean(values.where(both), log=True) for values in (top, bottom))
        return Statistic(above.point - below.point, above.moved - below.moved, True)

    def share(self, part: xr.DataArray, whole: xr.DataArray) -> Statistic:
        """Return ratios of macro means on their own scale, as is right for shares."""
        both = part.notnull() & whole.notnull()
        top, bottom = (self.mean(values.where(both)) for values in (part, whole))
        positive = bottom.point.where(bottom.point > 0)
        share = top.point / positive
        return Statistic(share, (top.moved - share * bottom.moved) / positive, False)

    @cached_property
    def halves(self) -> Floats:
        """Prompts ``(half, prompt)`` of halves of each family's templates, followed each by the other half."""
        rng = np.random.default_rng(self.clusters.seed)
        found = []
        for _ in range(SPLITS):
            first = np.zeros(self.clusters.size, dtype=bool)
            for rows in self.clusters.rows:
                order = rng.permutation(rows)
                extra = int(rng.integers(2)) if len(rows) % 2 else 0
                first[order[: len(rows) // 2 + extra]] = True
            found += [first @ self.clusters.member > 0, ~first @ self.clusters.member > 0]
        return np.array(found)

    def cross_fit(self, values: Floats, pick: Callable[[Floats], Floats], *, log: bool) -> tuple[Bounds, bool]:
        """Return a quotient of what was chosen by looking, and whether halves of the templates choose differently.

        ``pick`` maps macro means ``(item)`` of ``values (prompt, item)`` to the weights ``(2, item)`` of numerator and
        denominator. Each prompt counts with what the halves without it chose, averaged over ways of halving; the
        quotient is that of macro means, as of any two numbers, and where all halves choose alike it is that of what
        they chose. The interval is no narrower than that of what all templates choose: one text that makes an item the
        second largest is in no half that measures it. It describes: the verdict needs a test.
        """
        import xarray as xr

        whole = np.ones((1, len(values)), dtype=bool)
        chosen = self.halves if self.clusters.resamples else whole
        held = np.logical_not(chosen) if self.clusters.resamples else whole
        means = self.clusters.macro(np.where(chosen.T[:, :, None], values[:, None], np.nan))  # (half, item)
        picked = np.array([pick(each) for each in means])  # (half, 2, item)

        def quotient(weights: Floats, counted: Any) -> Statistic:
            sums = np.einsum("pi,hki->hkp", values, weights)
            known = np.isfinite(sums) & counted[:, None]
            both = divide(np.where(known, sums, 0.0).sum(0), known.sum(0))
            top, bottom = (xr.DataArray(each, dims="prompt") for each in both)
            return self.ratio(top, bottom) if log else self.share(top, bottom)

        found, plain = quotient(picked, held), quotient(pick(self.clusters.macro(values))[None], whole)
        value, half = float(found.point), float(np.fmax(found.half(), plain.half()))
        bounds = (value, value - half, value + half)
        value, low, high = (math.exp(each) for each in bounds) if log else bounds
        return (value, low, high), bool((picked != picked[:1]).any())

    def permuted(
        self,
        values: xr.DataArray,
        dim: Hashable,
        statistic: Callable[[Floats], Floats],
        draws: int,
        each: Sequence[Hashable] = (),
    ) -> float:
        """Return how often ``statistic`` is as large when the labels of ``dim`` are permuted in each template.

        ``statistic`` maps macro means ``(draw, *each, ..., dim)`` to ``(draw)``. Labels of ``each`` are permuted by
        themselves; along other dimensions values move together.
        """
        if self.brief:
            return math.nan
        array = values.transpose("prompt", *each, ..., dim)
        parts = self.clusters.parts(array.values)  # (cluster, *each, ..., dim)
        parts = parts[..., np.isfinite(parts).all(tuple(range(parts.ndim - 1)))]
        observed = float(statistic(parts.sum(0)[None])[0])
        rows, count = parts.shape[: 1 + len(each)], parts.shape[-1]
        together = (1,) * (parts.ndim - len(rows) - 1)
        most = max(1, AT_ONCE // max(math.prod(rows) * count, 1))
        reached = 0
        for start in range(0, draws, most):
            order = orders((min(most, draws - start), *rows), count, self.clusters.seed + start)
            order = order.reshape(*order.shape[:-1], *together, count)
            total = np.take_along_axis(parts[None], order, axis=-1).sum(1)
            reached += int((statistic(total) >= observed * (1 - 1e-9)).sum())
        return (1 + reached) / (1 + draws)

    def stretched(self, draws: Floats, point: Any, freedom: Any) -> Floats:
        """Return bootstrap draws ``(draw, ...)`` stretched about the point by t(.975, df) / 1.96."""
        return np.asarray(point + (draws - point) * np.asarray(t_quantile(freedom)) / 1.959964)
