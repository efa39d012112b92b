"""Statistics for per-prompt values: bootstrap and sign flips over templates within families.

Prompts that share a template are not independent, so everything here resamples or flips whole templates
within families and averages families with equal weight. NaN and infinite values count as absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from xatlas.stats.values import LEVEL, Floats, divide, mean, quantile

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
