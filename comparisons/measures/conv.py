"""What is computed about convolutions: effects of factors and taps, who leads, and where most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.measures import summary
from xatlas.comparisons.measures.ranking import leader
from xatlas.comparisons.measures.readings import ABLATION, SCOPE
from xatlas.stats import EPSILON, Floats

if TYPE_CHECKING:
    from xatlas.comparisons.measures.readings import Reading

#: Names of the dimensions that are looked at.
PARTS = ("factor", "tap")


def variables(part: str, mains: Sequence[Reading]) -> tuple[dict[str, Any], list[Any]]:
    """Return all variables about one part, and the labels of its dimension."""
    labels = _labels(part, mains)
    each = [_one(part, main, labels) for main in mains]
    arrays = {name: summary.stack([one[name] for one in each]) for name in _WORDS}
    dims = ("model", "layer", part)
    ends = (arrays["effect_low"], arrays["effect_high"])
    words = ("nats", f"KL when the {part} is taken away")
    found = summary.with_interval(f"{part}_effect", dims, arrays["effect"], ends, *words)
    found[f"{part}_control"] = (dims, arrays["control"], "nats", "KL of a random change of equal norm")
    ends = (arrays["ratio_low"], arrays["ratio_high"])
    words = ("1", f"effect of the model's leading {part} over the others'")
    found |= summary.with_interval(f"{part}_over_others", dims[:2], arrays["ratio"], ends, *words)
    for name, called in (("ratio_control", "over_others_control"), ("p", "p"), ("p_rank1", "carrier_p_rank1")):
        found[f"{part}_{called}"] = (dims[:2], arrays[name], "1", _WORDS[name])
    layers = max(len(one["p"]) for one in each)
    carriers = np.full((len(mains), layers), "", dtype=object)
    for row, one in zip(carriers, each, strict=True):
        row[: len(one["carrier"])] = one["carrier"]
    found[f"{part}_carrier"] = (dims[:2], carriers, "1", f"{part} with the largest effect; empty where several tie")
    leads = np.array([one["lead"] for one in each], dtype=object)
    found[f"{part}_lead"] = (("model",), leads, "1", f"{part} with the largest effect over all conv layers")
    for name, word in _SINGLE.items():
        values = np.array([one[name] for one in each], dtype=float)
        found[f"{part}_{name}"] = (("model",), values, "layer" if name == "peak" else "1", word)
    return found, labels


_WORDS = {
    "effect": "",
    "effect_low": "",
    "effect_high": "",
    "control": "",
    "ratio": "",
    "ratio_low": "",
    "ratio_high": "",
    "ratio_control": "the same ratio of the controls' effects",
    "p": "max-T p-value: larger than in the model's mean conv layer",
    "p_rank1": "P(rank 1) of the one with the largest effect",
}
_SINGLE = {
    "over_others_mean": "geometric mean of the ratio over conv layers",
    "peak": "conv layer with the largest ratio",
    "tie": "1 where another conv layer's ratio can't be told from the peak's",
    "kinds_agree": "1 where every other ablation kind that holds all of them has the same peak",
}


def _labels(part: str, mains: Sequence[Reading]) -> list[Any]:
    """Return the labels of all models: factors in their order, taps from the oldest to the current token."""
    found = dict.fromkeys(label for main in mains for label in main.dataset[part].values.tolist())
    return sorted(found) if part == "tap" else list(found)


def _values(part: str, main: Reading, variable: str, labels: Sequence[Any], ablation: str = ABLATION) -> Floats:
    """Return ``(prompt, layer, label)`` of one variable."""
    chosen = main.dataset[variable].sel(scope=SCOPE).reindex({part: labels})
    if "ablation" in chosen.dims:
        chosen = chosen.sel(ablation=ablation)
    if "draw" in chosen.dims:
        chosen = chosen.mean("draw", skipna=False)
    return np.asarray(chosen.transpose("prompt", "layer", part).values, dtype=float)


def _one(part: str, main: Reading, labels: Sequence[Any]) -> dict[str, Any]:
    """Return everything about one model, layers without a convolution NaN."""
    clusters = main.clusters
    effect, control = (_values(part, main, name, labels) for name in ("kl", "kl_control"))
    draws, point = clusters.macro_draws(effect), clusters.macro(effect)
    low, high = clusters.interval(draws)
    found: dict[str, Any] = {"effect": point, "effect_low": low, "effect_high": high}
    found["control"] = clusters.macro(control)
    n_layers = effect.shape[1]
    found["carrier"], found["p_rank1"] = [""] * n_layers, np.full(n_layers, np.nan)
    for layer in range(n_layers):
        first = leader(clusters, point[layer], draws[:, layer])
        if first:
            found["carrier"][layer] = "" if first.tie else str(labels[first.index])
            found["p_rank1"][layer] = first.probability
    return found | _lead(part, main, labels, effect, control)


def _lead(part: str, main: Reading, labels: Sequence[Any], effect: Floats, control: Floats) -> dict[str, Any]:
    """Return who leads over all conv layers, and where it leads most."""
    clusters, nowhere = main.clusters, np.full(effect.shape[1], np.nan)
    overall = clusters.macro(_mean(np.log(effect + EPSILON), 1))  # (label,)
    if not np.isfinite(overall).any():
        single = {"over_others_mean": math.nan, "peak": math.nan, "tie": math.nan, "kinds_agree": math.nan}
        ratios = dict.fromkeys(("ratio", "ratio_low", "ratio_high", "ratio_control", "p"), nowhere)
        return {"lead": "", **single, **ratios}
    lead = int(np.nanargmax(overall))
    ratio, chance = _over_others(effect, lead), _over_others(control, lead)
    draws, mean = clusters.macro_draws(ratio), _mean(ratio, 1)
    low, high = clusters.interval(draws)
    first = leader(clusters, clusters.macro(ratio), draws)
    peak = first.index if first else math.nan
    return {
        "lead": str(labels[lead]),
        "ratio": np.exp(clusters.macro(ratio)),
        "ratio_low": np.exp(low),
        "ratio_high": np.exp(high),
        "ratio_control": np.exp(clusters.macro(chance)),
        "p": clusters.max_t(ratio - mean[:, None]),
        "over_others_mean": float(np.exp(clusters.macro(mean))),
        "peak": peak,
        "tie": float(first.tie) if first else math.nan,
        "kinds_agree": float(_kinds_agree(part, main, labels, lead, peak)),
    }


def _kinds_agree(part: str, main: Reading, labels: Sequence[Any], lead: int, peak: float) -> bool:
    """Tell whether other ablation kinds have the same peak; ``one`` has no signal, and zero is algebra."""
    if "ablation" not in main.dataset.dims:
        return True
    for kind in sorted(main.ablations - {ABLATION, "one", "zero"}):
        ratio = main.clusters.macro(_over_others(_values(part, main, "kl", labels, kind), lead))
        if np.isfinite(ratio).any() and int(np.nanargmax(ratio)) != peak:
            return False
    return True


def _over_others(values: Floats, lead: int) -> Floats:
    """Return the log of one label's effect over the geometric mean of the others' ``(prompt, layer)``."""
    logs = np.log(values + EPSILON)
    return logs[..., lead] - _mean(np.delete(logs, lead, axis=-1), -1)


def _mean(values: Floats, axis: int) -> Floats:
    """Return the mean of what is there; NaN where nothing is."""
    there = np.isfinite(values)
    total, count = np.where(there, values, 0.0).sum(axis), there.sum(axis)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
