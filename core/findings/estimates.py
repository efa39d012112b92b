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
from numpy.typing import NDArray

from xatlas.findings.verdict import ALPHA, UNKNOWN, Bounds, Evidence
from xatlas.stats import LEVEL, Clusters, Floats, divide, orders, t_quantile, t_tail

if TYPE_CHECKING:
    import xarray as xr

#: How much two numbers may differ and count as equal; of ratios, between which two values their quotient may lie.
Margin = float | tuple[float, float]
#: The values of the dimension that holds a number and its interval.
BOUND = ("value", "low", "high")
#: Ways of halving the templates that cross-fitted numbers are averaged over.
SPLITS = 10
#: Why a claim is open that clears its control by less than the standard error of the control's draws.
TOO_FEW_DRAWS = "too few draws of its control"
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


def _over_all(moved: Floats, there: NDArray[np.bool_], clusters: Sequence[str]) -> Floats:
    """Return how templates move a macro mean of some of them, as moves of a mean of all that are there."""
    have = ~np.isnan(moved)
    if bool((have == there).all()):
        return np.nan_to_num(moved)
    families = [name.split("|")[0] for name in clusters]
    member = np.equal.outer(np.unique(families), families).astype(float)  # (family, cluster)
    own, every = (np.tensordot(member, each, 1) for each in (have, there))  # (family, ...)
    share = np.nan_to_num(divide(every, own)) * divide((every > 1).sum(0), (own > 1).sum(0))
    return np.nan_to_num(moved) * np.tensordot(member.T, share, 1)


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
    #: Standard error of an average over random draws ``(*dims)``, from the spread between draws of single prompts.
    drawn: xr.DataArray | None = None

    @cached_property
    def _spread(self) -> tuple[xr.DataArray, xr.DataArray]:
        """Return the standard error and the degrees of freedom."""
        moved = self.moved.transpose("cluster", ...)
        error, known = spread(moved.values, moved["cluster"].values.tolist())
        return self.point.copy(deep=False, data=error), self.point.copy(deep=False, data=known)

    def freedom(self) -> float:
        """Return the degrees of freedom of one number."""
        return float(self._spread[1])

    def half(self, level: float = LEVEL) -> xr.DataArray:
        """Return half the width of the interval, on the scale of inference."""
        error, freedom = self._spread
        return error.copy(deep=False, data=error.values * t_quantile(freedom.values, level))

    def bounds(self, level: float = LEVEL) -> xr.DataArray:
        """Return ``(*dims, bound)``: value, lower and upper end of the interval."""
        half, value = self.half(level).values, self.point.values
        ends = np.stack([value, value - half, value + half], axis=-1)
        found = self.point.expand_dims(bound=list(BOUND), axis=-1)
        return found.copy(deep=False, data=np.exp(ends) if self.log else ends)

    def p(self, null: float = 0.0) -> xr.DataArray:
        """Return the two-sided p-value against ``null``, on the scale of inference."""
        error, freedom = (each.values for each in self._spread)
        gap = np.abs(self.point.values - null)
        t = np.where(error > 0, divide(gap, error), np.where(gap > 0, np.inf, 0.0))
        found = np.where(np.isnan(gap + error), np.nan, t_tail(np.minimum(t, 1e6), freedom))
        return self.point.copy(deep=False, data=found)

    def within(self, margin: Margin) -> dict[str, Any]:
        """Return what evidence says of one number's lying within the margin."""
        return within(float(self.point), float(self._spread[0]), self.freedom(), margin)

    def __sub__(self, other: Statistic) -> Statistic:
        """Return the difference (of logarithms: the ratio), paired over the templates that both have."""
        import xarray as xr

        gap, errors = self.point - other.point, self._spread[0] + other._spread[0]
        aligned = xr.align(self.moved, other.moved, join="outer", copy=False)
        moves = [each.sel({dim: gap[dim] for dim in each.dims if dim in gap.indexes}) for each in aligned]
        own, others = (each.transpose("cluster", ...) for each in xr.broadcast(*moves))
        clusters = own["cluster"].values.tolist()
        there = own.notnull().values | others.notnull().values
        both = (_over_all(each.values, there, clusters) for each in (own, others))
        moved = np.where(there & np.isfinite(errors.values), next(both) - next(both), np.nan)
        theirs = other.point.broadcast_like(gap).transpose(*gap.dims).values
        alike = np.abs(gap.values) <= 1e-12 + 1e-9 * np.abs(theirs)  # rounding is no difference
        control = self.control - other.control if self.control is not None and other.control is not None else None
        point = gap.copy(deep=False, data=np.where(alike, 0.0, gap.values))
        luck = [each.drawn**2 for each in (self, other) if each.drawn is not None]
        drawn = sum(luck[1:], luck[0]) ** 0.5 if luck else None
        return Statistic(point, own.copy(deep=False, data=moved), self.log, control, drawn=drawn)

    def isel(self, places: Mapping[Hashable, Any]) -> Statistic:
        """Return the numbers at some places."""
        control = self.control.isel(places) if self.control is not None else None
        point, moved = (each.isel(places, drop=True) for each in (self.point, self.moved))
        drawn = self.drawn.isel(places, drop=True) if self.drawn is not None else None
        return replace(self, point=point, moved=moved, control=control, drawn=drawn)

    def side(self, *, surely: bool = True) -> int:
        """Return 1 when the interval of one number lies above 0 on the scale of inference, -1 when below, else 0.

        Surely: of a number that rests on random draws, by more than their standard error. Otherwise other draws could
        turn the verdict.
        """
        value, half = float(self.point), float(self.half())
        error = float(self.drawn) if surely and self.drawn is not None else 0.0
        return side(value - half - error, value + half + error, 0.0)

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
        sides, nearly = ([each.side(surely=surely) for each in tests] for surely in (True, False))
        claimed = [each * sides[0] for each in sides] if two_sided else sides
        few = 0 in sides and len({*nearly}) == 1 and 0 not in nearly
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
            open=TOO_FEW_DRAWS if few else "",
            log=self.log,
            words=self.words,
            statistic=self,
        )


def averaged(values: xr.DataArray) -> xr.DataArray:
    """Return the means over the draws of each prompt, where there are any."""
    return values.mean("draw") if "draw" in values.dims else values


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

    @cached_property
    def _names(self) -> xr.IndexVariable:
        import xarray as xr

        return xr.IndexVariable("cluster", list(self.clusters.names))  # type: ignore[no-untyped-call]

    def _means(self, values: Floats, *, log: bool) -> tuple[Floats, Floats]:
        """Return macro means ``(*items)`` and how each cluster moves them, on the scale of inference."""
        point, moved = self.clusters.linear(values)
        if log:
            positive = np.where(point > 0, point, np.nan)
            point, moved = np.log(positive), moved / positive
        return point, moved

    def _quotients(self, top: Floats, bottom: Floats, *, log: bool) -> tuple[Floats, Floats]:
        """Return the same of quotients of macro means, over the prompts that have both."""
        lacking = np.isnan(top) | np.isnan(bottom)
        sides = (self._means(np.where(lacking, np.nan, values), log=log) for values in (top, bottom))
        (above, moved), (below, moved_below) = sides
        if log:
            return above - below, moved - moved_below
        below = np.where(below > 0, below, np.nan)
        return above / below, (moved - above / below * moved_below) / below

    def _statistic(self, like: xr.DataArray, point: Floats, moved: Floats, *, log: bool) -> Statistic:
        """Return numbers with the labels of values ``(prompt, *items)``."""
        import xarray as xr

        dims = like.dims[1:]
        coords: dict[Hashable, Any] = {dim: like[dim] for dim in dims if dim in like.coords}
        clusters = {**coords, "cluster": self._names}
        return Statistic(xr.DataArray(point, coords, dims), xr.DataArray(moved, clusters, ("cluster", *dims)), log)

    def _drawn(self, moves: xr.DataArray) -> xr.DataArray | None:
        """Return the standard error of a macro mean from ``moves (prompt, draw, *items)``, drawn for each prompt."""
        if moves.sizes.get("draw", 1) == 1:
            return None
        each = moves.mean("draw").transpose("prompt", ...)
        weights = each.copy(deep=False, data=self.clusters.weights(each.values))
        variance = weights**2 * moves.var("draw", ddof=1) / moves.count("draw")
        return variance.sum("prompt").reset_coords(drop=True) ** 0.5

    def _over(self, top: xr.DataArray, bottom: xr.DataArray, *, log: bool) -> Statistic:
        import xarray as xr

        pair = xr.align(top, bottom, join="inner", copy=False)
        both = xr.broadcast(*(averaged(values) for values in pair))
        top, bottom = (values.transpose("prompt", ...) for values in both)
        found = self._statistic(top, *self._quotients(top.values, bottom.values, log=log), log=log)
        if not any("draw" in values.dims for values in pair):
            return found
        there = top.notnull() & bottom.notnull()
        above, below = (self.mean(values.where(there)).point for values in (top, bottom))
        moves = pair[0] / above - pair[1] / below if log else (pair[0] - pair[1] * above / below) / below
        return replace(found, drawn=self._drawn(moves))

    def mean(self, values: xr.DataArray, *, log: bool = False) -> Statistic:
        """Return family-macro means; with ``log`` the interval is that of the logarithm (of what is positive)."""
        each = averaged(values).transpose("prompt", ...)
        found = self._statistic(each, *self._means(each.values, log=log), log=log)
        if "draw" not in values.dims:
            return found
        return replace(found, drawn=self._drawn(values / np.exp(found.point) if log else values))

    def effects(self, values: xr.DataArray) -> xr.DataArray:
        """Return macro means ``(*dims, bound)`` of what is never negative: 0 where nothing changed in any prompt."""
        return self.mean(values, log=True).bounds().where(self.mean(values).point != 0, 0.0)

    def ratio(self, top: xr.DataArray, bottom: xr.DataArray) -> Statistic:
        """Return ratios of macro means, over the prompts that have both."""
        return self._over(top, bottom, log=True)

    def share(self, part: xr.DataArray, whole: xr.DataArray) -> Statistic:
        """Return ratios of macro means on their own scale, as is right for shares."""
        return self._over(part, whole, log=False)

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
        whole = np.ones((1, len(values)), dtype=bool)
        chosen = self.halves if self.clusters.resamples else whole
        held = np.logical_not(chosen) if self.clusters.resamples else whole
        means = self.clusters.macro(np.where(chosen.T[:, :, None], values[:, None], np.nan))  # (half, item)
        picked = np.array([pick(each) for each in means])  # (half, 2, item)

        def both(weights: Floats, counted: Any) -> Floats:  # numerator and denominator of each prompt
            sums = np.einsum("pi,hki->hkp", values, weights)
            known = np.isfinite(sums) & counted[:, None]
            return divide(np.where(known, sums, 0.0).sum(0), known.sum(0))

        plain = both(pick(self.clusters.macro(values))[None], whole)
        top, bottom = np.stack([both(picked, held), plain], axis=-1)  # (prompt, which)
        point, moved = self._quotients(top, bottom, log=log)
        error, freedom = spread(moved, self.clusters.names)
        value, half = float(point[0]), float(np.fmax.reduce(error * t_quantile(freedom)))
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
        first = np.arange(math.prod(rows)).reshape(*rows, 1) * count
        flat = np.moveaxis(parts, -1, len(rows)).reshape(first.size * count, *parts.shape[len(rows) : -1])
        most = max(1, AT_ONCE // max(first.size * count, 1))
        reached = 0
        for start in range(0, draws, most):
            order = orders((min(most, draws - start), *rows), count, self.clusters.seed + start)
            total = np.moveaxis(flat[order + first].sum(1), len(rows), -1)
            reached += int((statistic(total) >= observed * (1 - 1e-9)).sum())
        return (1 + reached) / (1 + draws)

    def stretched(self, draws: Floats, point: Any, freedom: Any) -> Floats:
        """Return bootstrap draws ``(draw, ...)`` stretched about the point by t(.975, df) / 1.96."""
        return np.asarray(point + (draws - point) * np.asarray(t_quantile(freedom)) / 1.959964)
