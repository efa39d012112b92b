"""What is computed about steering: effects per kind of direction, over layers, doses and both scales."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.measures import summary
from xatlas.comparisons.measures.ranking import leader
from xatlas.errors import XatlasError
from xatlas.stats import EPSILON, Floats, quantile

if TYPE_CHECKING:
    from xatlas.comparisons.measures.readings import Reading

#: ``matched``: random with the stream's covariance; ``family``: the prompt's own family's direction; ``off_task``:
#: other families' directions.
KINDS = ("random", "matched", "family", "off_task", "shuffled")
#: Kinds of which several are drawn, so that they make a band.
BANDS = ("random", "matched")
SCALES = ("absolute", "relative")


def common_doses(mains: Sequence[Reading]) -> list[float]:
    """Return the magnitudes of strength that all results hold, smallest first.

    Raises
    ------
    XatlasError
        There is none.
    """
    held = [{round(abs(float(s)), 9) for s in main.dataset["strength"].values} for main in mains]
    doses = sorted(set.intersection(*held))
    if not doses:
        raise XatlasError("the models were steered at different strengths: measure them with the same ones.")
    return doses


def nearest(doses: Sequence[float], wanted: float) -> int:
    """Return which dose is nearest to ``wanted``, as a ratio."""
    return int(np.argmin([abs(math.log(dose / wanted)) for dose in doses]))


def by_kind(main: Reading, variable: str, strengths: Floats) -> Floats:
    """Return ``(prompt, kind, layer, scale)`` of a variable, averaged over ``strengths`` and a kind's directions."""
    data = main.dataset
    array = data[variable].sel(strength=strengths, scale=list(SCALES))
    array = array.transpose("prompt", "direction", "layer", "scale", "strength")
    values = np.asarray(array.values, dtype=float).mean(-1)  # (prompt, direction, layer, scale)
    kinds = data["direction_kind"].values.astype(str)
    own = data["family"].values.astype(str)[:, None] == data["direction_family"].values.astype(str)[None, :]
    chosen = {
        **{kind: np.broadcast_to(kinds == kind, own.shape) for kind in BANDS},
        "family": own & (kinds == "family"),
        "off_task": ~own & (kinds == "family"),
        "shuffled": np.broadcast_to(kinds == "shuffled", own.shape),
    }
    return np.stack([_mean_of(values, chosen[kind]) for kind in KINDS], axis=1)


def _mean_of(values: Floats, chosen: Any) -> Floats:
    """Return the mean over each prompt's chosen directions ``(prompt, layer, scale)``, NaN without any."""
    total = np.einsum("pdls,pd->pls", np.where(chosen[..., None, None], values, 0.0), chosen.astype(float))
    count = chosen.sum(1)[:, None, None].astype(float)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def signed(main: Reading, dose: float) -> Floats:
    """Return the strengths of this magnitude that were measured."""
    strengths = np.asarray(main.dataset["strength"].values, dtype=float)
    return np.asarray(strengths[np.isclose(np.abs(strengths), dose)])


def profiles(mains: Sequence[Reading], doses: Sequence[float], dose: int) -> dict[str, Any]:
    """Return ``effect (model, kind, scale, dose, layer)``, the random bands and the logit change."""
    shape = (len(KINDS), len(SCALES), len(doses))
    stacked: dict[str, list[Floats]] = {}
    for main in mains:
        n_layers = main.dataset.sizes["layer"]
        found = np.full((3, *shape, n_layers), np.nan)
        band = np.full((len(BANDS), 2, *shape[1:], n_layers), np.nan)
        for d, size in enumerate(doses):
            values = by_kind(main, "kl", signed(main, size)).transpose(0, 1, 3, 2)  # (prompt, kind, scale, layer)
            found[:, :, :, d] = _with_ends(main, values)
            for b, kind in enumerate(BANDS):
                band[b, :, :, d] = _band(main, kind, signed(main, size))
        forward = np.array([s for s in signed(main, doses[dose]) if s > 0])
        logits = np.full((3, len(KINDS), len(SCALES), n_layers), np.nan)
        if len(forward):
            logits = _with_ends(main, by_kind(main, "delta_logit_diff", forward).transpose(0, 1, 3, 2))
        norm = np.asarray(main.dataset["median_norm"].values, dtype=float)
        for name, array in (("effect", found), ("band", band), ("logits", logits), ("norm", norm)):
            stacked.setdefault(name, []).append(array)
    arrays = {name: summary.stack(each) for name, each in stacked.items()}
    effect, logits = (np.moveaxis(arrays[name], 1, 0) for name in ("effect", "logits"))
    dims = ("model", "kind", "scale", "dose", "layer")
    variables = summary.with_interval(
        "effect", dims, effect[0], (effect[1], effect[2]), "nats", "KL(clean || steered), both signs"
    )
    for (b, kind), (e, end) in itertools.product(enumerate(BANDS), enumerate(("low", "high"))):
        long_name = f"{end}er end of the 95 % range over {kind} directions"
        variables[f"{kind}_{end}"] = (("model", "scale", "dose", "layer"), arrays["band"][:, b, e], "nats", long_name)
    words = ("logits", "change of target minus foil, towards the direction, at the dose shown")
    ends = (logits[1], logits[2])
    variables |= summary.with_interval("delta_logit_diff", ("model", "kind", "scale", "layer"), logits[0], ends, *words)
    median = (("model", "layer"), arrays["norm"], "1", "median norm of the stream at the readout position")
    return variables | {"median_norm": median}


def _with_ends(main: Reading, values: Floats) -> Floats:
    """Return family-macro average, lower and upper end ``(3, ...)`` of values ``(prompt, ...)``."""
    low, high = main.clusters.interval(main.clusters.macro_draws(values))
    return np.stack([main.clusters.macro(values), low, high])


def _band(main: Reading, kind: str, strengths: Floats) -> Floats:
    """Return the ends ``(2, scale, layer)`` of the range over a kind's directions' family-macro averages."""
    data = main.dataset
    chosen = data["kl"].isel(direction=np.flatnonzero(data["direction_kind"].values.astype(str) == kind))
    if not chosen.sizes["direction"]:
        return np.full((2, len(SCALES), data.sizes["layer"]), np.nan)
    array = chosen.sel(strength=strengths, scale=list(SCALES)).transpose(
        "prompt", "direction", "scale", "layer", "strength"
    )
    means = main.clusters.macro(np.asarray(array.values, dtype=float).mean(-1))  # (direction, scale, layer)
    return np.stack([quantile(means, 0.025), quantile(means, 0.975)])


def ratios(mains: Sequence[Reading], doses: Sequence[float]) -> dict[str, Any]:
    """Return ``early_over_late (model, kind, scale, dose)`` and its p-value."""
    shape = (len(mains), len(KINDS), len(SCALES), len(doses))
    numbers = np.full((4, *shape), np.nan)
    for m, main in enumerate(mains):
        clusters = main.clusters
        for d, size in enumerate(doses):
            values = by_kind(main, "kl", signed(main, size)).transpose(0, 1, 3, 2)  # (prompt, kind, scale, layer)
            ends = clusters.interval(_ratio(clusters.macro_draws(values)))
            numbers[:3, m, :, :, d] = np.stack([_ratio(clusters.macro(values)), *ends])
            early, late = summary.halves(values)
            logs = np.log((early + EPSILON) / (late + EPSILON))  # (prompt, kind, scale)
            for place in np.ndindex(logs.shape[1:]):
                p = clusters.max_t(logs[(slice(None), *place)], alternative="two-sided")
                numbers[(3, m, *place, d)] = float(p)
    dims = ("model", "kind", "scale", "dose")
    words = ("1", "mean effect of the first half of the layers over the second")
    found = summary.with_interval("early_over_late", dims, numbers[0], (numbers[1], numbers[2]), *words)
    found["early_over_late_p"] = (dims, numbers[3], "1", "sign-flip p-value against 1")
    return found


def _ratio(values: Floats) -> Floats:
    early, late = summary.halves(values)
    return np.asarray(np.divide(early, late, out=np.full(np.shape(early), np.nan), where=late > 0))


def peaks(mains: Sequence[Reading], dose: float) -> dict[str, Any]:
    """Return where a family's own direction exceeds random ones most, at relative strength."""
    curves: list[Floats] = []
    single = np.full((3, len(mains)), np.nan)
    for m, main in enumerate(mains):
        clusters = main.clusters
        logs = np.log(by_kind(main, "kl", signed(main, dose))[..., SCALES.index("relative")] + EPSILON)
        ratio, control = (logs[:, KINDS.index(kind)] - logs[:, 0] for kind in ("family", "shuffled"))
        against = ratio - control
        test = np.where(np.isfinite(against), against, ratio)  # without shuffled labels, against random ones alone
        p = clusters.max_t(test)
        curves.append(np.stack([*np.exp(_with_ends(main, ratio)), np.exp(clusters.macro(control)), p]))
        first = leader(clusters, clusters.macro(ratio), clusters.macro_draws(ratio))
        if first:
            single[:, m] = first.index, first.probability, first.tie
    arrays = np.moveaxis(summary.stack(curves), 1, 0)  # (5, model, layer)
    dims = ("model", "layer")
    words = ("1", "effect of the family's own direction over random ones, relative strength")
    found = summary.with_interval("family_over_random", dims, arrays[0], (arrays[1], arrays[2]), *words)
    found["shuffled_over_random"] = (dims, arrays[3], "1", "the same ratio with shuffled family labels")
    found["family_p"] = (dims, arrays[4], "1", "max-T p-value against directions with shuffled labels")
    told = ("layer with the largest ratio", "P(rank 1) of that layer", "1 where another layer ties with it")
    for name, array, word in zip(("peak", "peak_p_rank1", "peak_tie"), single, told, strict=True):
        found[name] = (("model",), array, "layer" if name == "peak" else "1", word)
    return found
