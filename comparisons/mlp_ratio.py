"""How much more the MLP matters than the operator, and whether the operator's type changes that."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.comparisons import verdict as rule
from xatlas.comparisons.figures import mlp_ratio as mlp_ratio_figure
from xatlas.comparisons.measures import mlp as mlp_measures, readings, settings, summary
from xatlas.comparisons.measures.mlp import COMPONENTS, PARTS

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

_ONE_TYPE = "one operator type only, so conv and attention layers can't be compared"


class MlpRatio(Comparison):
    """``mlp_over_operator`` and ``conv_over_attention``, both as ratios of ablation effects.

    ``mlp_over_operator (model, layer)``: exp(mean over prompts of log((KL_mlp + ε) / (KL_operator + ε))),
    ε = 1e-4 nat. ``conv_over_attention (model, component, part)``: the same ratio of a component's effects in
    conv layers over attention layers (log effects are averaged over a type's layers), raw and within depth
    tertiles; NaN for models with one operator type. Controls are the same ratios of the controls' effects.
    Findings are about *where*: the layer where the ratio is largest, against the model's mean layer; and conv
    against attention, where a raw ratio that does not hold within tertiles is an artefact of depth. ``sensitivity``,
    ``sensitivity_mlp`` and ``sensitivity_operator (model, setting)`` hold the peak and both ratios within tertiles
    under other settings: ``mlp_ratio.sensitivity.csv`` lists them, with commands for what was not run.
    """

    name = "mlp_ratio"
    version = 2
    summary = "How much more do MLPs matter than operators, over depth and by operator type?"

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Layer ablation with its defaults."""
        return (Requirement("layer_ablation"),)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the dataset described above."""
        found = [readings.read(tree, model, "layer_ablation") for model in readings.models(tree)]
        mains = [each[0] for each in found]
        variables = mlp_measures.layer_variables(mains) | mlp_measures.type_variables(mains)
        rows, coords = settings.sensitivity(found, mlp_measures.peak, "layer", "layer with the largest ratio")
        for component in COMPONENTS:
            words = ("1", f"{component}, conv over attention within tertiles")
            more, _ = settings.sensitivity(found, mlp_measures.within(component), *words, f"sensitivity_{component}")
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


def _peak_finding(dataset: xr.Dataset, index: int) -> Finding:
    one = dataset.isel(model=index)
    model, nan = str(one["model"].item()), math.nan
    if math.isnan(float(one["peak"])):
        return Finding(f"{model} has no MLPs to compare.", nan, nan, nan, nan, nan, "undecided", model)
    at = one.isel(layer=int(one["peak"]))
    value, low, high = summary.triple(at, "mlp_over_operator")
    mean, p = float(one["mean_ratio"]), float(at["p"])
    clears = rule.side(low, high, mean, float(at["control"])) > 0 and p <= rule.ALPHA
    clears = clears and not bool(one["tie"])
    agree = all(peak == float(one["peak"]) for peak, _, _ in rule.kinds(dataset, index))
    sentence = (
        f"In {model} the MLP outweighs the operator most in layer {int(one['peak'])}: ratio "
        f"{summary.interval(value, low, high)}, mean layer {summary.number(mean)}, control "
        f"{summary.number(float(at['control']))}."
    )
    verdict = rule.verdict(clears, agree, against=high < max(mean, float(at["control"])))
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
    main = rule.side(low, high, 1, control)
    loose = rule.side(*summary.triple(raw, name)[1:], 1, float(raw[f"{name}_control"]))
    others = rule.kinds(dataset, index, f"sensitivity_{component}")
    verdict = rule.verdict(
        main != 0 and p <= rule.ALPHA,
        all(rule.side(other[1], other[2], 1) == main for other in others),
        published=loose != 0 and float(raw[f"{name}_p"]) <= rule.ALPHA,
        fails=rule.fails(low, high, loose, 1, control),
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
