"""Statistics of prompts that come in clusters, numpy only: bootstrap, t intervals, ranks, shares, Holm."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Nodes and weights of Gauss-Legendre integration.
_gauss = cache(np.polynomial.legendre.leggauss)
#: Numerical agreement of two values, in nats and relative.
AGREEMENT = (1e-4, 1e-5)
#: What tells variants of one wording apart, at the end of a template's name.
_VARIANT = re.compile(r"-\d+$")
LEVEL = 0.95
DRAWS, PERMUTATIONS = 2000, 10_000


def agree(a: Any, b: Any) -> NDArray[np.bool_]:
    """Return where ``a`` and ``b`` are equal within numerical agreement (NaN agrees with nothing)."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(a - b) <= AGREEMENT[0] + AGREEMENT[1] * np.maximum(np.abs(a), np.abs(b)))


def divide(top: Floats, bottom: Floats) -> Floats:
    """Return ``top / bottom``, NaN where ``bottom`` is not above zero."""
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0))


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


def _beyond(angle: Floats, df: Floats) -> Floats:
    """Return the integral of cos^(df-1) θ from ``angle`` to π / 2.

    That is Student's density with t = √df tan θ; it is integrated over what it decays within.
    """
    nodes, weights = _gauss(60)
    half = ((np.minimum(np.pi / 2, angle + 12.0 / np.sqrt(np.maximum(df, 1.0))) - angle) / 2)[..., None]
    power = (df[..., None] - 1) * np.log(np.maximum(np.cos(angle[..., None] + half * (nodes + 1)), 1e-300))
    return np.asarray((np.exp(power) * weights * half).sum(-1))


def t_tail(t: Any, df: Any) -> Floats:
    """Return P(|T| ≥ |t|) of Student's t with ``df`` ≥ 1 degrees of freedom, need not be whole; NaN for NaN."""
    t, df = np.broadcast_arrays(np.abs(np.asarray(t, dtype=float)), np.asarray(df, dtype=float))
    found = _beyond(np.arctan2(t, np.sqrt(df)), df) / _beyond(np.zeros(t.shape), df)
    return np.where(np.isfinite(df), found, np.nan)


def t_quantile(df: Any, level: float = LEVEL) -> Floats:
    """Return the half-width, in standard errors, of a two-sided t interval; NaN where ``df`` is."""
    each, inverse = np.unique(np.asarray(df, dtype=float), return_inverse=True)
    t = np.full(each.shape, NormalDist().inv_cdf((1 + level) / 2))  # as it is for many degrees of freedom
    whole = _beyond(np.zeros(each.shape), each)
    for _ in range(6):  # Newton's steps of log P over log t, which is nearly straight
        angle = np.arctan2(t, np.sqrt(each))
        tail = _beyond(angle, each) / whole
        density = np.cos(angle) ** (each - 1) * np.sqrt(each) / (each + t**2) / whole
        t *= np.exp(np.log(tail / (1 - level)) * tail / (t * density))
    return np.asarray(np.where(np.isfinite(each), t, np.nan)[inverse].reshape(np.shape(df)))


def wilson(passed: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Return the Wilson interval of a share (Wilson 1927); NaN when nothing was tried."""
    if total == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (passed + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * math.sqrt(passed * (total - passed) / total + z * z / 4)
    return centre - half if passed else 0.0, centre + half if passed < total else 1.0  # rounding aside


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided McNemar p-value from the tests that one of two models passed alone."""
    total = only_first + only_second
    tail: int = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, tail / float(2 ** max(total - 1, 0)) if total else 1.0)


def holm(p: Sequence[float], contrasts: Sequence[str] | None = None) -> list[float]:
    """Return p-values adjusted by Holm's step-down method (Holm 1979), in the order given; NaN stays.

    Those with one name in ``contrasts`` are of the three differences between three numbers: where one is not zero,
    at most one of the others is, so that they count once from there on (Shaffer 1986).
    """
    named = contrasts or [""] * len(p)
    known = sorted((value, index) for index, value in enumerate(p) if not math.isnan(value))
    adjusted, largest = [math.nan] * len(p), 0.0
    for rank, (value, index) in enumerate(known):
        before = {named[i] for _, i in known[:rank]} - {""}
        left = [named[i] for _, i in known[rank:]]
        count = sum(name not in before for name in left) + len(before.intersection(left))
        largest = max(largest, min(1.0, count * value))
        adjusted[index] = largest
    return adjusted


def probability_first(draws: Floats) -> Floats:
    """Return P(rank 1) per item of draws ``(draw, item)``, NaN for an item that is absent from every draw.

    Items within numerical agreement of the largest share the first rank: each of k counts 1 / k.
    """
    finite = np.isfinite(draws)
    top = np.where(finite, draws, -np.inf).max(1, keepdims=True, initial=-np.inf)
    shared = finite & agree(draws, top)
    held = shared.any(1)
    part = shared[held] / shared[held].sum(1, keepdims=True)
    return np.where(finite.any(0), part.mean(0) if held.any() else np.nan, np.nan)


def dealt(sizes: Sequence[int], statistic: Callable[[Any], float], draws: int, seed: int = 0) -> tuple[Floats, float]:
    """Return a statistic when templates are dealt out to families of these sizes at random, and its least p.

    ``statistic`` is called with an order of all templates; the first family gets the first of them.
    """
    rng = np.random.default_rng(seed)
    found = np.array([statistic(rng.permutation(sum(sizes))) for _ in range(draws)])
    alike = math.prod(math.factorial(list(sizes).count(size)) for size in set(sizes))  # families may change places
    ways = math.factorial(sum(sizes)) // math.prod(map(math.factorial, sizes)) // alike
    return found, max(1 / (1 + draws) if draws else 0.0, float(1 / ways))


def correlate_ranks(a: Floats, b: Floats) -> Floats:
    """Return Spearman's rank correlation over the last axis; NaN where one side is constant or absent."""
    x, y = (ranks - ranks.mean(-1, keepdims=True) for ranks in (_ranks(a), _ranks(b)))
    return divide((x * y).sum(-1), np.sqrt((x**2).sum(-1) * (y**2).sum(-1)))


def _ranks(values: Any) -> Floats:
    """Return mid-ranks over the last axis: a value's rank is how many are smaller, plus half its equals."""
    values = np.asarray(values, dtype=float)
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return np.where(np.isfinite(values), below + (equal - 1) / 2.0, np.nan)


@lru_cache(maxsize=8)
def orders(rows: tuple[int, ...], count: int, seed: int) -> NDArray[np.int16]:
    """Return random orders of ``count`` things ``(*rows, count)``."""
    every = np.broadcast_to(np.arange(count, dtype=np.int16), (*rows, count))
    return np.random.default_rng(seed).permuted(every, axis=-1)


def _frames(labels: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return families and clusters: templates ``frame-1`` and ``frame-2`` are one where there are other frames."""
    stems = {label: _VARIANT.sub("", label[1]) for label in labels if label[1].startswith("t:")}
    frames: dict[str, set[str]] = {}
    for (family, _), stem in stems.items():
        frames.setdefault(family, set()).add(stem)
    variants = Counter((family, stem) for (family, _), stem in stems.items())
    # a frame with one variant keeps its name: so small suites, and what was drawn for them, stay as they are
    return [
        (label[0], stems[label])
        if label in stems and len(frames[label[0]]) > 1 and variants[label[0], stems[label]] > 1
        else label
        for label in labels
    ]


class Clusters:
    """How prompts hang together: templates within families, one label each per prompt.

    Variants of one wording, whose names differ by ``-NUMBER`` at the end (``frame-1``, ``frame-2``), are one cluster
    where the family has at least two wordings: they are no more independent than prompts of one template.
    A prompt without a template is its own cluster. A family of one template never varies: nothing tells how much
    another wording would differ. Resampling draws T - 1 of a family's T templates with replacement (Rao and Wu 1988),
    which makes the variance of a family's mean unbiased even for the four or five templates of a small suite; drawing T
    of T would understate it by 1 / T. The same prompts and seed give the same draws, so that differences are paired.
    """

    def __init__(self, families: Sequence[Any], templates: Sequence[Any], *, draws: int = DRAWS, seed: int = 0) -> None:
        self.draws, self.seed = draws, seed
        pairs = enumerate(zip(families, templates, strict=True))
        labels = _frames(
            [(str(f), f"p:{i:09d}" if template in (None, "") else f"t:{template}") for i, (f, template) in pairs]
        )
        names = sorted(set(labels))
        self.names = tuple(f"{family}|{template}" for family, template in names)
        self.size = len(names)
        self.families = tuple(sorted({family for family, _ in names}))
        self.member = np.zeros((len(names), len(labels)))  # (cluster, prompt), 1 where the prompt belongs to it
        self.member[[names.index(label) for label in labels], np.arange(len(labels))] = 1
        self._family = np.array([self.families.index(family) for family, _ in names], dtype=int)  # (cluster,)
        self._of_family = (self._family == np.arange(len(self.families))[:, None]).astype(float)  # (family, cluster)
        self.rows = list(map(np.flatnonzero, self._of_family))
        rng = np.random.default_rng(seed)
        sizes = map(len, self.rows)
        drawn = [rng.multinomial(max(size - 1, 1), np.full(size, 1 / size), size=draws) for size in sizes]
        self._counts = [counts.astype(float) for counts in drawn]  # (draw, cluster of the family)
        #: Families of several clusters.
        self.varying = frozenset(f for f, rows in zip(self.families, self.rows, strict=True) if len(rows) > 1)
        #: Whether any family can be resampled; without, there are no intervals.
        self.resamples = bool(self.varying)

    def _sums(self, values: Any) -> tuple[Floats, Floats, tuple[int, ...]]:
        """Return sums and counts per cluster ``(cluster, item)`` and the shape of the items."""
        array = np.asarray(values, dtype=float)
        flat = array.reshape(len(array), -1)
        finite = np.isfinite(flat)
        return self.member @ np.where(finite, flat, 0.0), self.member @ finite, array.shape[1:]

    def family_means(self, values: Any) -> Floats:
        """Return means ``(family, *items)`` of values ``(prompt, *items)``."""
        sums, counts, shape = self._sums(values)
        return divide(self._of_family @ sums, self._of_family @ counts).reshape(len(self.rows), *shape)

    def macro(self, values: Any) -> Floats:
        """Return the mean over families ``(*items)`` of values ``(prompt, *items)``."""
        means = self.family_means(values)
        return divide(np.nan_to_num(means).sum(0), np.isfinite(means).sum(0))

    def family_draws(self, values: Any, family: str) -> Floats:
        """Return bootstrap means ``(draw, *items)`` of one family, of values ``(prompt, *items)``."""
        sums, counts, shape = self._sums(values)
        return self._draw(sums, counts, self.families.index(family)).reshape(self.draws, *shape)

    def _draw(self, sums: Floats, counts: Floats, family: int) -> Floats:
        rows, weights = self.rows[family], self._counts[family]
        drawn = divide(weights @ sums[rows], weights @ counts[rows])
        # a draw that met absent values only takes the family's mean: families must not come and go
        return np.where(np.isfinite(drawn), drawn, divide(sums[rows].sum(0), counts[rows].sum(0)))

    def macro_draws(self, values: Any) -> Floats:
        """Return bootstrap family-macro averages ``(draw, *items)`` of values ``(prompt, *items)``."""
        sums, counts, shape = self._sums(values)
        drawn = np.full((self.draws, sums.shape[1]), np.nan)
        size = self.member.sum(1)
        whole = (counts == size[:, None]).all(0)
        if whole.any():  # nothing absent, as a rule: the same weights serve all items
            each = [n / (n @ size[rows])[:, None] for rows, n in zip(self.rows, self._counts, strict=True)]
            drawn[:, whole] = np.hstack(each) / len(self.families) @ sums[:, whole]
        partly = ~whole & counts.any(0)
        if partly.any():
            families = [self._draw(sums[:, partly], counts[:, partly], i) for i in range(len(self.families))]
            present = sum(np.isfinite(family[0]).astype(int) for family in families)
            drawn[:, partly] = sum(np.nan_to_num(family) for family in families) / present
        return drawn.reshape(self.draws, *shape)

    def parts(self, values: Any) -> Floats:
        """Return ``(cluster, *items)``, which sums to the family-macro average; NaN for items without any value."""
        sums, counts, shape = self._sums(values)
        total = self._of_family @ counts
        share = np.nan_to_num(divide(sums, total[self._family]))
        return divide(share, np.broadcast_to((total > 0).sum(0), share.shape)).reshape(self.size, *shape)

    def weights(self, values: Any) -> Floats:
        """Return the weights ``(prompt, *items)`` of values in the macro means that ``linear`` returns."""
        finite = np.isfinite(np.asarray(values, dtype=float))
        _, counts, _ = self._sums(values)
        kept, of = self._kept(counts), self._family[self.member.argmax(0)]  # (family, item), (prompt)
        each = divide(kept.astype(float), self._of_family @ counts)[of] / kept.sum(0)
        return np.where(finite, each.reshape(finite.shape), 0.0)

    def _kept(self, counts: Floats) -> NDArray[np.bool_]:
        """Tell which families an item's mean is of ``(family, item)``: those of several clusters, else any."""
        size = self._of_family @ (counts > 0)
        kept: NDArray[np.bool_] = np.where((size > 1).any(0), size > 1, size > 0)
        return kept

    def linear(self, values: Any) -> tuple[Floats, Floats]:
        """Return macro means ``(*items)`` and how each cluster moves its family's mean ``(cluster, *items)``.

        Families with values in one cluster only tell nothing about other wordings: they are left out (of the means,
        too), unless no family has more; then all deviations are NaN. The variance of the mean of family f with T_f
        clusters is Σ deviation² / (T_f (T_f - 1)).
        """
        sums, counts, shape = self._sums(values)
        present = counts > 0
        size = self._of_family @ present  # (family, item)
        total, count = self._of_family @ sums, self._of_family @ counts
        kept = self._kept(counts)
        macro = divide(np.where(kept, divide(total, count), 0.0).sum(0), kept.sum(0).astype(float))
        here = self._family
        weight = size[here] * divide(counts, count[here])
        moved = weight * (divide(sums, counts) - divide(total, count)[here])
        moved = np.where(present & kept[here] & (size > 1)[here], moved, np.nan)
        return macro.reshape(shape), moved.reshape(self.size, *shape)
