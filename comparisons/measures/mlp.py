"""What is computed about MLPs and operators: ratios per layer, and per operator type."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xatlas.comparisons.measures import summary
from xatlas.comparisons.measures.ranking import leader
from xatlas.comparisons.measures.readings import ABLATION, SCOPE, Estimate, Reading
from xatlas.stats import EPSILON, Floats

COMPONENTS = ("mlp", "operator")
#: ``raw`` takes all layers; ``within`` is the mean over the depth tertiles that hold both operator types.
PARTS = ("raw", "within", "tertile 1", "tertile 2", "tertile 3")


def _logs(main: Reading, variable: str, component: str, ablation: str = ABLATION, scope: str = SCOPE) -> Floats:
    """Return log(effect + ε) ``(prompt, layer)`` of one component."""
    place = main.dataset["component"].values.tolist().index(component)
    return np.log(main.values(variable, ablation, scope)[..., place] + EPSILON)


def _log_ratio(main: Reading, variable: str, ablation: str = ABLATION, scope: str = SCOPE) -> Floats:
    mlp, operator = (_logs(main, variable, component, ablation, scope) for component in COMPONENTS)
    return mlp - operator


def layer_variables(mains: Sequence[Reading]) -> dict[str, Any]:
    """Return ``mlp_over_operator`` and its peak for every model."""
    curves: dict[str, list[Floats]] = {}
    single: dict[str, list[float]] = {}
    tied = []
    for main in mains:
        found, one, ties = _layers(main)
        tied.append(ties)
        for name, array in found.items():
            curves.setdefault(name, []).append(array)
        for name, value in one.items():
            single.setdefault(name, []).append(value)
    words = ("1", "effect of ablating the MLP over the operator's")
    stacked = {name: summary.stack(arrays) for name, arrays in curves.items()}
    dims, arrays = ("model", "layer"), {name: np.array(values) for name, values in single.items()}
    variables: dict[str, Any] = {}
    for name, own in (("mlp_over_operator", words), ("control", ("1", "the same ratio of the controls' effects"))):
        ends = (stacked[f"{name}_low"], stacked[f"{name}_high"])
        variables |= summary.with_interval(name, dims, stacked[name], ends, *own)
    variables["p"] = (dims, stacked["p"], "1", "max-T p-value: larger than in the model's mean layer")
    ends = (arrays.pop("mean_ratio_low"), arrays.pop("mean_ratio_high"))
    words = ("1", "geometric mean of the ratio over layers")
    variables |= summary.with_interval("mean_ratio", ("model",), arrays.pop("mean_ratio"), ends, *words)
    for name, array in arrays.items():
        variables[name] = (("model",), array, "layer" if name == "peak" else "1", _WORDS[name])
    return variables | {"tied": (("model",), np.array(tied, dtype=object), "1", "layers that tie with the peak")}


_WORDS = {
    "mean_ratio_control": "geometric mean of the control's ratio over layers",
    "peak": "layer with the largest ratio",
    "peak_p_rank1": "P(rank 1) of that layer",
    "tie": "1 where another layer's ratio can't be told from the peak's",
}


def _layers(main: Reading) -> tuple[dict[str, Floats], dict[str, float], str]:
    clusters, ratio = main.clusters, _log_ratio(main, "kl")
    curves: dict[str, Floats] = {}
    single: dict[str, float] = {}
    for name, values in (("mlp_over_operator", ratio), ("control", _log_ratio(main, "kl_control"))):
        draws = clusters.macro_draws(values)
        low, high = clusters.interval(draws)
        curves |= {name: np.exp(clusters.macro(values))}
        curves |= {f"{name}_low": np.exp(low), f"{name}_high": np.exp(high)}
    mean = _mean_layer(ratio)
    curves["p"] = clusters.max_t(ratio - mean[:, None])
    low, high = clusters.interval(clusters.macro_draws(mean))
    single["mean_ratio"] = float(np.exp(clusters.macro(mean)))
    single["mean_ratio_low"], single["mean_ratio_high"] = float(np.exp(low)), float(np.exp(high))
    control = clusters.macro(_mean_layer(_log_ratio(main, "kl_control")))
    single["mean_ratio_control"] = float(np.exp(control))
    first = leader(clusters, clusters.macro(ratio), clusters.macro_draws(ratio))
    single["peak"] = first.index if first else math.nan
    single["peak_p_rank1"] = first.probability if first else math.nan
    single["tie"] = float(first.tie) if first else math.nan
    return curves, single, ", ".join(map(str, first.tied)) if first else ""


def _mean_layer(ratio: Floats) -> Floats:
    """Return the mean over layers ``(prompt)``, over those that have an MLP."""
    there = np.isfinite(ratio)
    total = np.where(there, ratio, 0.0).sum(1)
    return np.asarray(np.divide(total, there.sum(1), out=np.full(len(ratio), np.nan), where=there.any(1)))


def type_ratios(logs: Floats, types: Sequence[str], depth: Floats, start: int = 0) -> Floats:
    """Return log ratios of conv over attention layers ``(prompt, part)`` from log effects ``(prompt, layer)``.

    Parts are ``PARTS``; NaN where one of the two types is missing.
    """
    tertile = np.minimum((np.asarray(depth) * 3).astype(int), 2)
    kinds, late = np.asarray(types), np.arange(len(types)) >= start
    found = np.full((len(logs), len(PARTS)), np.nan)

    def contrast(chosen: Any) -> Floats:
        conv, attention = (logs[:, chosen & (kinds == kind)] for kind in ("conv", "attention"))
        if not conv.shape[1] or not attention.shape[1]:
            return np.full(len(logs), np.nan)
        return np.asarray(conv.mean(1) - attention.mean(1))

    found[:, 0] = contrast(late)
    for third in range(3):
        found[:, 2 + third] = contrast(late & (tertile == third))
    held = [third for third in range(2, 5) if np.isfinite(found[:, third]).any()]
    if held:
        found[:, 1] = found[:, held].mean(1)
    return found


def _types(
    main: Reading, variable: str, component: str, ablation: str = ABLATION, scope: str = SCOPE, start: int = 0
) -> Floats:
    logs = _logs(main, variable, component, ablation, scope)
    data = main.dataset
    return type_ratios(logs, data["operator_type"].values.tolist(), data["depth"].values, start)


def type_variables(mains: Sequence[Reading]) -> dict[str, Any]:
    """Return ``conv_over_attention (model, component, part)`` with its control and p-values."""
    dims, shape = ("model", "component", "part"), (len(mains), len(COMPONENTS), len(PARTS))
    numbers = np.full((6, *shape), np.nan)
    p = np.full(shape, np.nan)
    for i, main in enumerate(mains):
        clusters = main.clusters
        for j, component in enumerate(COMPONENTS):
            effect, control = (_types(main, variable, component) for variable in ("kl", "kl_control"))
            for k, values in enumerate((effect, control)):
                ends = clusters.interval(clusters.macro_draws(values))
                numbers[3 * k : 3 * k + 3, i, j] = np.exp([clusters.macro(values), *ends])
            for part in range(len(PARTS)):
                tests = (effect[:, part], effect[:, part] - control[:, part])
                p[i, j, part] = max(float(clusters.max_t(each, alternative="two-sided")) for each in tests)
    words = ("1", "effect in conv layers over attention layers")
    name = "conv_over_attention"
    found = summary.with_interval(name, dims, numbers[0], (numbers[1], numbers[2]), *words)
    words = ("1", "the same ratio of the controls' effects")
    found |= summary.with_interval(f"{name}_control", dims, numbers[3], (numbers[4], numbers[5]), *words)
    found[f"{name}_p"] = (dims, p, "1", "sign-flip p-value against 1 and the control, the larger")
    return found


def peak(reading: Reading, ablation: str, scope: str, layer0: bool) -> Estimate:
    """Return the layer with the largest ratio under one setting, with the interval over draws."""
    start, clusters = (0 if layer0 else 1), reading.clusters
    ratio = _log_ratio(reading, "kl", ablation, scope)[:, start:]
    first = leader(clusters, clusters.macro(ratio), clusters.macro_draws(ratio))
    if first is None:
        return Estimate()
    return Estimate(*(float(layer + start) for layer in (first.index, *first.spread)))


def within(component: str) -> Callable[[Reading, str, str, bool], Estimate]:
    """Return the function that estimates conv over attention within tertiles under one setting."""

    def estimate(reading: Reading, ablation: str, scope: str, layer0: bool) -> Estimate:
        values = _types(reading, "kl", component, ablation, scope, 0 if layer0 else 1)[:, 1]
        ends = reading.clusters.interval(reading.clusters.macro_draws(values))
        return Estimate(*(float(np.exp(each)) for each in (reading.clusters.macro(values), *ends)))

    return estimate
