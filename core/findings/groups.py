"""Two groups compared: halves of the layers; profiles; layers of two types, depth aside; seeds of architectures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xatlas.findings.estimates import Margin, Sample, side, within
from xatlas.findings.verdict import Evidence
from xatlas.stats import PERMUTATIONS, Floats, correlate_ranks, orders, quantile, t_quantile

if TYPE_CHECKING:
    import xarray as xr

#: Random orders that a correlation is compared against.
ORDERS = PERMUTATIONS // 5


def halves(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return means over the first and the second half of the layers, an odd middle one left out; NaN for one layer."""
    half = values.sizes["layer"] // 2
    second = values.isel(layer=slice(values.sizes["layer"] - half, None))
    return values.isel(layer=slice(half)).mean("layer"), second.mean("layer")


def rank_correlation(
    sample: Sample,
    curves: Sequence[Floats],
    draws: Sequence[Floats],
    freedom: float,
    against: str,
    at: Callable[[Floats], Floats] = lambda values: values,
) -> Evidence | None:
    """Return Spearman's correlation of two models' numbers ``(n)``, beside the first's in random order: the control.

    ``draws (draw, n)`` are bootstrap draws of them, ``against`` says what stands in random order, and ``at`` makes what
    is correlated. None where nothing varies.
    """
    value = float(correlate_ranks(*map(at, curves)))
    if math.isnan(value):
        return None
    mixed = np.random.default_rng(0).permuted(np.tile(curves[0], (ORDERS, 1)), axis=1)
    chance = correlate_ranks(at(mixed), at(curves[1])[None])
    drawn = sample.stretched(correlate_ranks(*map(at, draws)), value, freedom)
    low, high = (float(np.clip(quantile(drawn, q), -1, 1)) for q in (0.025, 0.975))
    gap = drawn - np.random.default_rng(1).choice(chance, drawn.shape)  # both are uncertain
    return Evidence(
        number=(value, min(low, value), max(high, value)),
        p=(1 + int((chance >= value - 1e-12).sum())) / (1 + ORDERS),
        against=against,
        side=side(float(quantile(gap, 0.025)), float(quantile(gap, 0.975)), 0.0),
        answer=int(np.sign(value)),
        control=(float(chance.mean()), float(quantile(chance, 0.025)), float(quantile(chance, 0.975))),
    )


def layer_types(effects: Floats, types: Sequence[str], depth: Floats, pair: tuple[str, str]) -> Evidence:
    """Test whether the log effects of layers of one type exceed those of another, depth aside.

    Log effects ``(layer)`` are regressed on type and on depth, linear and quadratic; residuals of the model without
    type are permuted (Freedman and Lane 1983), and t values of type compared. The number is the exponential of the
    coefficient; its interval is that of the regression. The claim needs five layers of each type, and has to
    hold without layer 0, too.
    """
    full = _one_type(effects, types, depth, pair)
    later = _one_type(effects[1:], types[1:], depth[1:], pair)
    if full.side and not full.blocked and (later.side, later.answer) != (full.side, full.answer):
        return replace(full, side=0, blocked="not so without layer 0")
    return full


def _one_type(effects: Floats, types: Sequence[str], depth: Floats, pair: tuple[str, str]) -> Evidence:
    kinds, known = np.asarray(types), np.isfinite(effects)
    chosen = known & np.isin(kinds, pair)
    counts = [int((chosen & (kinds == each)).sum()) for each in pair]
    if not min(counts):
        return Evidence(blocked="one operator type only")
    y = effects[chosen]
    kind = (kinds[chosen] == pair[0]).astype(float)
    x = np.asarray(depth, dtype=float)[chosen]
    reduced = np.column_stack([np.ones(len(y)), x, x**2])
    reduced_hat = reduced @ np.linalg.pinv(reduced)
    own = kind - reduced_hat @ kind  # type, with depth taken out
    freedom = len(y) - 4
    size = float(own @ own)
    if freedom < 1 or size < 1e-9:
        return Evidence(blocked="too few layers")

    def fitted(each: Floats) -> tuple[Floats, Floats]:
        """Return coefficients and their standard errors for residuals ``(draw, layer)`` of the model without type."""
        each = each - each @ reduced_hat
        coefficient = each @ own / size
        left = (each**2).sum(-1) - coefficient**2 * size
        return coefficient, np.sqrt(np.maximum(left, 1e-300) / freedom / size)

    residual = y - reduced_hat @ y
    coefficient, error = (float(each[0]) for each in fitted(residual[None]))
    shuffled, errors = fitted(residual[orders((PERMUTATIONS,), len(y), 0)])
    reached = (np.abs(shuffled / errors) >= abs(coefficient / error) * (1 - 1e-9)).sum()
    half = float(t_quantile(freedom)) * error
    low, high = coefficient - half, coefficient + half
    enough = min(counts) >= 5
    value, below, above = np.exp([coefficient, low, high]).tolist()
    return Evidence(
        number=(value, below, above),
        p=(1 + int(reached)) / (1 + PERMUTATIONS),
        against="types dealt out to layers anew",
        side=abs(side(low, high, 0.0)),
        answer=int(np.sign(coefficient)),
        control=(1.0, math.nan, math.nan),
        blocked="" if enough else "too few layers",
    )


def welch(first: Sequence[float], second: Sequence[float], *, log: bool, margin: Margin | None = None) -> Evidence:
    """Compare the numbers of two architectures' training seeds.

    All ways of dealing the seeds out to the two are enumerated for the p-value of the difference in means; the interval
    is Welch's. With ``log`` the numbers are logarithms, and what is shown is a ratio.
    """
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    together = np.concatenate([one, two])
    chosen = np.array(list(itertools.combinations(range(len(together)), len(one))))
    sums = together[chosen].sum(1)
    gaps = sums / len(one) - (together.sum() - sums) / len(two)
    gap = float(one.mean() - two.mean())
    p = float((np.abs(gaps) >= abs(gap) * (1 - 1e-9)).mean())
    parts = [each.var(ddof=1) / len(each) if len(each) > 1 else math.nan for each in (one, two)]
    error = math.sqrt(sum(parts)) if np.isfinite(parts).all() else math.nan
    fourth = sum(part**2 / (len(each) - 1) for part, each in zip(parts, (one, two), strict=True) if len(each) > 1)
    freedom = sum(parts) ** 2 / fourth if fourth else 1e6 if error == 0 else math.nan  # nothing varies
    half = float(t_quantile(freedom)) * error
    ends = (gap, gap - half, gap + half)
    value, low, high = (math.exp(each) if log else each for each in ends)
    return Evidence(
        number=(value, low, high),
        p=p,
        against="seeds dealt out to architectures anew",
        side=abs(side(low, high, 1.0 if log else 0.0)),
        answer=int(np.sign(gap)),
        control=(1.0 if log else 0.0, math.nan, math.nan),
        log=log,
        **(within(gap, error, freedom, margin) if margin is not None else {}),
        least_p=float((np.abs(gaps) >= np.abs(gaps).max() * (1 - 1e-9)).mean()),
    )
