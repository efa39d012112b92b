"""Statistics of prompts that come in clusters, numpy only: intervals, sign flips, ranks, shares, Holm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Added to effects before a logarithm, in nats: effects below it can't be told from rounding.
EPSILON = 1e-4
#: Numerical agreement of two values, in nats and relative.
AGREEMENT = (1e-4, 1e-5)
LEVEL = 0.95


def agree(a: Any, b: Any) -> NDArray[np.bool_]:
    """Return where ``a`` and ``b`` are equal within numerical agreement (NaN agrees with nothing)."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    with np.errstate(invalid="ignore"):
        close = np.abs(a - b) <= AGREEMENT[0] + AGREEMENT[1] * np.maximum(np.abs(a), np.abs(b))
    return np.asarray(close, dtype=bool)


def log_ratio(effect: Any, control: Any) -> Floats:
    """Return log((effect + ε) / (control + ε)), ε = 1e-4 nat."""
    return np.asarray(
        np.log((np.asarray(effect, dtype=float) + EPSILON) / (np.asarray(control, dtype=float) + EPSILON))
    )


def divide(top: Floats, bottom: Floats) -> Floats:
    """Return ``top / bottom``, NaN where ``bottom`` is not above zero."""
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0))


def mean(values: Floats) -> Floats:
    """Return the mean over the first axis of what is finite, NaN where nothing is."""
    finite = np.isfinite(values)
    return divide(np.where(finite, values, 0.0).sum(0), finite.sum(0).astype(float))


def quantile(values: Any, q: float) -> Floats:
    """Return the linear quantile over the first axis of what is finite, NaN where nothing is."""
    array = np.asarray(values, dtype=float)
    ordered = np.sort(np.where(np.isfinite(array), array, np.nan), axis=0)  # NaN sorts last
    count = np.isfinite(ordered).sum(0)
    place = q * np.maximum(count - 1, 0)
    below = np.floor(place).astype(int)
    low = np.take_along_axis(ordered, below[None], axis=0)[0]
    high = np.take_along_axis(ordered, np.ceil(place).astype(int)[None], axis=0)[0]
    return np.asarray(low + (high - low) * (place - below))


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


DRAWS = 2000
PERMUTATIONS = 10_000


class Clusters:
    """How prompts hang together: templates within families.

    A family of one template is one cluster: it never varies in the bootstrap and has one sign in the flips,
    since its prompts are not independent and nothing tells how much another wording would differ.
    Resampling draws T - 1 of a family's T templates with replacement (Rao and Wu 1988), which makes the
    variance of a family's mean unbiased even for the four or five templates of a small suite; drawing T
    of T would understate it by 1 / T.

    Parameters
    ----------
    families, templates : sequence of str
        One each per prompt; an empty or missing template makes the prompt its own cluster.
    draws : int
        Bootstrap draws.
    seed : int
        Seed of the draws and flips. The same prompts give the same draws, so differences are paired.

    Raises
    ------
    ValueError
        There are not as many families as templates.
    """

    def __init__(self, families: Sequence[Any], templates: Sequence[Any], *, draws: int = DRAWS, seed: int = 0) -> None:
        if len(families) != len(templates):
            raise ValueError(f"{len(families)} families but {len(templates)} templates")
        self.draws, self.seed = draws, seed
        self.families = tuple(sorted({str(family) for family in families}))
        members = _cluster_members(families, templates)
        names = sorted(members)
        self.size = len(names)
        #: (cluster, prompt), 1 where the prompt belongs to the cluster
        self._member = np.zeros((len(names), len(families)))
        for row, name in enumerate(names):
            self._member[row, members[name]] = 1
        owner = np.array([name[0] for name in names])
        self._rows = [np.flatnonzero(owner == family) for family in self.families]
        rng = np.random.default_rng(seed)
        self._counts = [_rao_wu(len(rows), draws, rng) for rows in self._rows]
        #: Families of several clusters.
        self.varying = frozenset(f for f, rows in zip(self.families, self._rows, strict=True) if len(rows) > 1)
        #: Whether any family can be resampled; without, there are no intervals.
        self.resamples = bool(self.varying)

    def _sums(self, values: Any) -> tuple[Floats, Floats, tuple[int, ...]]:
        """Return sums and counts per cluster ``(cluster, item)`` and the shape of the items."""
        array = np.asarray(values, dtype=float)
        flat = array.reshape(len(array), -1)
        finite = np.isfinite(flat)
        return self._member @ np.where(finite, flat, 0.0), self._member @ finite, array.shape[1:]

    def family_means(self, values: Any) -> Floats:
        """Return means ``(family, *items)`` of values ``(prompt, *items)``."""
        sums, counts, shape = self._sums(values)
        means = [divide(sums[rows].sum(0), counts[rows].sum(0)) for rows in self._rows]
        return np.array(means).reshape(len(means), *shape)

    def macro(self, values: Any) -> Floats:
        """Return the mean over families ``(*items)`` of values ``(prompt, *items)``."""
        return mean(self.family_means(values))

    def family_draws(self, values: Any, family: str) -> Floats:
        """Return bootstrap means ``(draw, *items)`` of one family, of values ``(prompt, *items)``.

        Raises
        ------
        ValueError
            There is no such family.
        """
        sums, counts, shape = self._sums(values)
        drawn = self._family(sums, counts, self.families.index(family))
        return drawn.reshape(self.draws, *shape)

    def macro_draws(self, values: Any) -> Floats:
        """Return bootstrap family-macro averages ``(draw, *items)`` of values ``(prompt, *items)``."""
        sums, counts, shape = self._sums(values)
        drawn = np.full((self.draws, sums.shape[1]), np.nan)
        size = self._member.sum(1)
        whole = (counts == size[:, None]).all(0)
        if whole.any():  # nothing absent, as a rule: the same weights serve all items
            drawn[:, whole] = self._weights(size) @ sums[:, whole]
        partly = ~whole & counts.any(0)
        if partly.any():
            families = [self._family(sums[:, partly], counts[:, partly], i) for i in range(len(self.families))]
            present = [np.isfinite(family[0]) for family in families]
            total = sum(np.where(there, family, 0.0) for there, family in zip(present, families, strict=True))
            drawn[:, partly] = total / np.sum(present, axis=0)
        return drawn.reshape(self.draws, *shape)

    def _weights(self, size: Floats) -> Floats:
        """Return each draw's weight of the sum over every cluster ``(draw, cluster)``."""
        weights = np.empty((self.draws, self.size))
        for rows, counts in zip(self._rows, self._counts, strict=True):
            weights[:, rows] = counts / (counts @ size[rows])[:, None] / len(self.families)
        return weights

    def _family(self, sums: Floats, counts: Floats, index: int) -> Floats:
        rows, weights = self._rows[index], self._counts[index]
        point = divide(sums[rows].sum(0), counts[rows].sum(0))
        drawn = divide(weights @ sums[rows], weights @ counts[rows])
        # a draw that met absent values only takes the family's mean: families must not come and go
        return np.where(np.isfinite(drawn), drawn, point)

    def parts(self, values: Any) -> Floats:
        """Return what each cluster adds to the family-macro average: ``(cluster, *items)``, summing to it.

        NaN for items without any value.
        """
        sums, counts, shape = self._sums(values)
        share = np.full(sums.shape, np.nan)
        for rows in self._rows:
            share[rows] = divide(sums[rows], np.broadcast_to(counts[rows].sum(0), sums[rows].shape))
        families = sum(np.isfinite(share[rows]).any(0).astype(float) for rows in self._rows)
        share = divide(np.nan_to_num(share), np.broadcast_to(families, share.shape))
        return share.reshape(self.size, *shape)

    def interval(self, draws: Floats) -> tuple[Floats, Floats]:
        """Return the 95 % interval over the first axis; NaN where nothing can be resampled."""
        low, high = quantile(draws, (1 - LEVEL) / 2), quantile(draws, (1 + LEVEL) / 2)
        return (low, high) if self.resamples else (low * np.nan, high * np.nan)

    def max_t(
        self,
        values: Any,
        *,
        permutations: int = PERMUTATIONS,
        alternative: Literal["greater", "two-sided"] = "greater",
    ) -> Floats:
        """Test family-macro means against 0, over all items at once, by flipping signs per template.

        The statistic is the mean over its spread under flips (which flips leave unchanged); each item is
        compared with the largest statistic of all items, so that p-values are adjusted for their number
        (Westfall and Young 1993). All flips are enumerated when there are no more than ``permutations``.

        Parameters
        ----------
        values : array (prompt, *items)
            Usually :func:`log_ratio` of effect and control.
        permutations : int
            Most flips that are tried.
        alternative : {"greater", "two-sided"}
            Whether means below 0 count against 0, too.

        Returns
        -------
        array (*items)
            p-values; NaN for items without any value.
        """
        share = self.parts(values)
        shape, share = share.shape[1:], share.reshape(self.size, -1)
        if not np.isfinite(share).any():
            return np.full(shape, np.nan)
        spread = np.sqrt((share**2).sum(0))
        scaled = np.divide(share, spread, out=np.zeros_like(share), where=spread > 0)
        p = _sign_flips(np.nan_to_num(scaled), permutations, self.seed, alternative == "two-sided")
        return np.where(np.isfinite(spread), p, np.nan).reshape(shape)


def _cluster_members(families: Sequence[Any], templates: Sequence[Any]) -> dict[tuple[str, str], list[int]]:
    members: dict[tuple[str, str], list[int]] = {}
    for index, (family, template) in enumerate(zip(families, templates, strict=True)):
        key = f"t:{template}" if template not in (None, "") else f"p:{index:09d}"
        members.setdefault((str(family), key), []).append(index)
    return members


def _rao_wu(size: int, draws: int, rng: np.random.Generator) -> Floats:
    if size == 1:
        return np.ones((draws, 1))
    return rng.multinomial(size - 1, np.full(size, 1 / size), size=draws).astype(float)


def _sign_flips(scaled: Floats, permutations: int, seed: int, two_sided: bool) -> Floats:
    clusters, items = scaled.shape
    observed = scaled.sum(0)
    if two_sided:
        observed = np.abs(observed)
    signs, exact = _signs(clusters, permutations, seed)
    total, reached = len(signs), np.zeros(items)
    for start in range(0, total, 2000):
        flipped = signs[start : start + 2000] @ scaled
        largest = (np.abs(flipped) if two_sided else flipped).max(1, initial=-np.inf)
        # sorted search: as many maxima lie at or above the observed value as don't lie below it
        reached += len(largest) - np.searchsorted(np.sort(largest), observed - 1e-9)
    return np.asarray(reached / total if exact else (1 + reached) / (1 + total))


@lru_cache(maxsize=8)
def _signs(clusters: int, permutations: int, seed: int) -> tuple[Floats, bool]:
    """Return signs ``(flip, cluster)``, and whether they are all there are."""
    exact = clusters <= 20 and 2**clusters <= permutations
    if exact:
        bits = np.arange(2**clusters)[:, None] >> np.arange(clusters) & 1
    else:
        bits = np.random.default_rng(seed).integers(0, 2, size=(permutations, clusters))
    signs: Floats = 2.0 * bits.astype(np.float64) - 1.0
    return signs, exact
