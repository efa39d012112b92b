"""Is it the MLP or the operator that matters, and does the operator's type change that?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.comparisons import mlp_ratio_figure, readings, summary
from xatlas.comparisons.readings import ABLATION, SCOPE, Estimate, Reading
from xatlas.ranks import winner
from xatlas.stats import EPSILON, Floats

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

COMPONENTS = ("mlp", "operator")
#: ``raw`` takes all layers; ``within`` is the mean over the depth tertiles that hold both operator types.
PARTS = ("raw", "within", "tertile 1", "tertile 2", "tertile 3")
_ONE_TYPE = "one operator type only, so conv and attention layers can't be compared"


class MlpRatio(Comparison):
    """``mlp_over_operator`` and ``conv_over_attention``, both as ratios of ablation effects.

    ``mlp_over_operator (model, layer)``: exp(mean over prompts of log((KL_mlp + ε) / (KL_operator + ε))),
    ε = 1e-4 nat. ``conv_over_attention (model, component, part)``: the same ratio of a component's effects in
    conv layers over attention layers (log effects are averaged over a type's layers), raw and within depth
    tertiles; NaN for models with one operator type. Controls are the same ratios of the controls' effects.
    Findings are about *where*: the layer where the ratio is largest, against the model's mean layer; and conv
    against attention, where a raw ratio that does not hold within tertiles is an artefact of depth.
    """

    name = "mlp_ratio"
    version = 1
    summary = "How much more do MLPs matter than operators, over depth and by operator type?"

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Layer ablation with its defaults."""
        return (Requirement("layer_ablation"),)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the dataset described above."""
        found = [readings.read(tree, model, "layer_ablation") for model in readings.models(tree)]
        mains = [each[0] for each in found]
        variables = _layer_variables(mains) | _type_variables(mains)
        rows, coords = readings.sensitivity(found, _peak, "layer")
        for component in COMPONENTS:
            more, _ = readings.sensitivity(found, _within(component), "1", f"sensitivity_{component}")
            rows |= more
        coords |= {"component": list(COMPONENTS), "part": list(PARTS)}
        absent = {"conv_over_attention": _ONE_TYPE, "mlp_over_operator": "padding, or a layer without an MLP"}
        return summary.assemble(self, found, variables | rows, coords, absent)

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw the ratio over depth, and conv over attention."""
        return mlp_ratio_figure.draw(dataset)

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """State where MLPs outweigh operators most, then conv against attention layers per component."""
        each = range(dataset.sizes["model"])
        peaks = [_peak_finding(dataset, i) for i in each]
        types = [_type_finding(dataset, i, component) for i in each for component in COMPONENTS]
        return peaks + [finding for finding in types if finding]

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per model."""
        rows: list[dict[str, str | float]] = []
        for i, model in enumerate(map(str, dataset["model"].values)):
            one, finding = dataset.isel(model=i), _peak_finding(dataset, i)
            row: dict[str, str | float] = {"model": model}
            row["MLP / operator, mean layer"] = summary.interval(*summary.triple(one, "mean_ratio"))
            row["control"] = summary.number(float(one["mean_ratio_control"]))
            row["largest in layer"] = "–" if math.isnan(float(one["peak"])) else f"{int(one['peak'])}"
            row["there"] = summary.interval(finding.value, finding.low, finding.high)
            row["P(rank 1)"] = summary.number(float(one["peak_p_rank1"]))
            row["ties with"] = str(one["tied"].item()) or "none"
            row["verdict"] = finding.verdict
            for component in COMPONENTS:
                types, judged = one.sel(component=component), _type_finding(dataset, i, component)
                cells = (summary.interval(*summary.triple(types.sel(part=p), "conv_over_attention")) for p in PARTS[:2])
                text = ", within tertiles ".join(cells)
                row[f"conv / attention, {component}"] = f"{text}: {judged.verdict}" if judged else "–"
            same = dataset["sensitivity"].values[i] == float(one["peak"])
            row["sensitivity"] = summary.sensitivity_note(dataset, i, same)
            rows.append(row)
        return rows


def _logs(main: Reading, variable: str, component: str, ablation: str = ABLATION, scope: str = SCOPE) -> Floats:
    """Return log(effect + ε) ``(prompt, layer)`` of one component."""
    place = main.dataset["component"].values.tolist().index(component)
    return np.log(main.values(variable, ablation, scope)[..., place] + EPSILON)


def _log_ratio(main: Reading, variable: str, ablation: str = ABLATION, scope: str = SCOPE) -> Floats:
    mlp, operator = (_logs(main, variable, component, ablation, scope) for component in COMPONENTS)
    return mlp - operator


def _layer_variables(mains: Sequence[Reading]) -> dict[str, Any]:
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
    first = winner(clusters.macro(ratio), clusters.macro_draws(ratio), resamples=clusters.resamples)
    single["peak"] = first.index if first else math.nan
    single["peak_p_rank1"] = first.probability if first else math.nan
    single["tie"] = float(first.tie) if first else math.nan
    return curves, single, ", ".join(map(str, first.tied)) if first else ""


def _mean_layer(ratio: Floats) -> Floats:
    """Return the mean over layers ``(prompt)``, over those that have an MLP."""
    there = np.isfinite(ratio)
    total = np.where(there, ratio, 0.0).sum(1)
    return np.divide(total, there.sum(1), out=np.full(len(ratio), np.nan), where=there.any(1))


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
        return conv.mean(1) - attention.mean(1)

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
    return type_ratios(logs, data["operator_type"].values, data["depth"].values, start)


def _type_variables(mains: Sequence[Reading]) -> dict[str, Any]:
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


def _peak(reading: Reading, ablation: str, scope: str, layer0: bool) -> Estimate:
    """Return the layer with the largest ratio under one setting, with the interval over draws."""
    start, clusters = (0 if layer0 else 1), reading.clusters
    ratio = _log_ratio(reading, "kl", ablation, scope)[:, start:]
    first = winner(clusters.macro(ratio), clusters.macro_draws(ratio), resamples=clusters.resamples)
    if first is None:
        return Estimate()
    return Estimate(*(float(layer + start) for layer in (first.index, *first.spread)))


def _within(component: str) -> Any:
    def estimate(reading: Reading, ablation: str, scope: str, layer0: bool) -> Estimate:
        values = _types(reading, "kl", component, ablation, scope, 0 if layer0 else 1)[:, 1]
        ends = reading.clusters.interval(reading.clusters.macro_draws(values))
        return Estimate(*(float(np.exp(each)) for each in (reading.clusters.macro(values), *ends)))

    return estimate


def _peak_finding(dataset: xr.Dataset, index: int) -> Finding:
    one = dataset.isel(model=index)
    model, nan = str(one["model"].item()), math.nan
    if math.isnan(float(one["peak"])):
        return Finding(f"{model} has no MLPs to compare.", nan, nan, nan, nan, nan, "undecided", model)
    at = one.isel(layer=int(one["peak"]))
    value, low, high = summary.triple(at, "mlp_over_operator")
    mean, p = float(one["mean_ratio"]), float(at["p"])
    clears = summary.side(low, high, mean, float(at["control"])) > 0 and p <= summary.ALPHA
    clears = clears and not bool(one["tie"])
    agree = all(peak == float(one["peak"]) for peak, _, _ in summary.kinds(dataset, index))
    sentence = (
        f"In {model} the MLP outweighs the operator most in layer {int(one['peak'])}: ratio "
        f"{summary.interval(value, low, high)}, mean layer {summary.number(mean)}, control "
        f"{summary.number(float(at['control']))}."
    )
    verdict = summary.verdict(clears, agree, against=high < max(mean, float(at["control"])))
    return Finding(sentence, value, low, high, float(at["control"]), p, verdict, model)


def _type_finding(dataset: xr.Dataset, index: int, component: str) -> Finding | None:
    """Judge conv against attention within depth tertiles; None for a model of one operator type."""
    one = dataset.isel(model=index).sel(component=component)
    raw, own = (one.sel(part=part) for part in PARTS[:2])
    name = "conv_over_attention"
    value, low, high = summary.triple(own, name)
    if math.isnan(float(raw[name])):
        return None
    control, p = float(own[f"{name}_control"]), float(own[f"{name}_p"])
    main = summary.side(low, high, 1, control)
    loose = summary.side(*summary.triple(raw, name)[1:], 1, float(raw[f"{name}_control"]))
    others = summary.kinds(dataset, index, f"sensitivity_{component}")
    verdict = summary.verdict(
        main != 0 and p <= summary.ALPHA,
        all(summary.side(other[1], other[2], 1) == main for other in others),
        published=loose != 0 and float(raw[f"{name}_p"]) <= summary.ALPHA and not math.isnan(value),
    )
    model = str(one["model"].item())
    sentence = (
        f"In {model} the {component} effects of conv layers over attention layers are "
        f"{summary.interval(value, low, high)} within depth tertiles (raw "
        f"{summary.interval(*summary.triple(raw, name))}), control {summary.number(control)}."
    )
    return Finding(sentence, value, low, high, control, p, verdict, model)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [MlpRatio]
