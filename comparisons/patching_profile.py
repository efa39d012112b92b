"""At which depth the subject's information has reached the readout, and through which operators."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.comparisons import verdict as rule
from xatlas.comparisons.figures import patching as patching_figure
from xatlas.comparisons.measures import arrival, patching as patching_measures, readings, summary
from xatlas.comparisons.measures.patching import SITES
from xatlas.vocabulary import PATCH_MODES, POSITION_CLASSES

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


#: Largest mean distance from 1 of the last layer's stream at the readout: bfloat16 rounds by half of it.
_GAP = 0.02


class PatchingProfile(Comparison):
    """Where the answer moves with a patch: stream, operators and MLPs, by layer and position.

    ``recovery (model, site, position, mode, layer)``: family-macro, beside its control. By construction the stream
    recovers everything at the differing tokens before the first layer, and at the readout behind the last; what
    is found is where one takes over from the other. ``arrival (model, mode)``: depth of the first layer from which on
    the stream at the readout recovers half of the answer or more; its control is 1, the depth at which it
    does so whatever the model does. ``departure``: from which on the subject's stream recovers less than half.
    ``mover``: the layer whose operator's output at the readout, alone, recovers most. ``carried (model, channel,
    mode)``: recovery of the mean layer of each operator type, and of the mean MLP. Patches of single layers need
    not add up to 1. Two models are compared on the prompts that both answer.
    """

    name = "patching_profile"
    version = 2
    summary = "At which depth has the subject's information reached the readout, and through which operators?"
    default = False

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Activation patching with its defaults."""
        return (Requirement("activation_patching"),)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the dataset described above."""
        found = [readings.find(tree, model, "activation_patching") for model in readings.models(tree)]
        mains = [each[0] for each in found]
        for main in mains:
            patching_measures.check(main)
        variables = patching_measures.profiles(mains)
        variables |= arrival.arrivals(mains)
        variables |= patching_measures.movers(mains)
        variables |= patching_measures.carried(mains)
        variables |= arrival.differences(mains)
        counts = [main.dataset.sizes["prompt"] for main in mains]
        dropped = [len(_dropped(main.dataset)) for main in mains]
        variables["prompts"] = (("model",), counts, "1", "pairs that were patched")
        variables["dropped"] = (("model",), dropped, "1", "prompts left out")
        coords = {"site": list(SITES), "position": list(POSITION_CLASSES), "mode": list(PATCH_MODES)}
        coords |= {"channel": patching_measures.channels(mains), "model_other": [main.model for main in mains]}
        absent = {
            "recovery": "padding of models with fewer layers, a site that a layer lacks, a position without tokens",
            "arrival": "the readout's stream never recovers half",
            "attention_over_others": "a model with one operator type",
            "arrival_difference": "a model and itself, or no prompt that both answer",
        }
        return summary.assemble(self, found, variables, coords, absent, "pairs patched both ways")

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw the handover from subject to readout, and layer × position maps of stream, operators and MLPs."""
        return patching_figure.draw(dataset)

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """State each model's arrival and mover, attention against other operators, and each pair's difference."""
        found: list[Finding] = []
        for i in range(dataset.sizes["model"]):
            found += [_arrival_finding(dataset, i), _mover_finding(dataset, i), *_type_findings(dataset, i)]
        pairs = itertools.combinations(range(dataset.sizes["model"]), 2)
        return found + [_pair_finding(dataset, i, j) for i, j in pairs]

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per model."""
        rows: list[dict[str, str | float]] = []
        for i, model in enumerate(map(str, dataset["model"].values)):
            one = dataset.isel(model=i)
            arrives, mover = _arrival_finding(dataset, i), _mover_finding(dataset, i)
            denoise = one.sel(mode="denoise")
            at = float(denoise["mover"])
            row: dict[str, str | float] = {"model": model, "pairs": int(one["prompts"]), "dropped": int(one["dropped"])}
            row["at the readout from depth"] = summary.interval(*summary.triple(denoise, "arrival"))
            row["noise"] = summary.interval(*summary.triple(one.sel(mode="noise"), "arrival"))
            row["gone from the subject"] = summary.interval(*summary.triple(denoise, "departure"))
            row["verdict"] = arrives.verdict
            row["strongest operator"] = "–" if math.isnan(at) else f"{int(at)} ({_type(one, int(at))})"
            row["recovers"] = summary.interval(mover.value, mover.low, mover.high)
            row["control"] = summary.number(mover.control)
            row["it is"] = mover.verdict
            for channel in map(str, dataset["channel"].values):
                cell = summary.triple(denoise.sel(channel=channel), "carried")
                row[f"per {'MLP' if channel == 'mlp' else f'{channel} layer'}"] = summary.interval(*cell)
            rows.append(row)
        return rows


def _dropped(dataset: xr.Dataset) -> dict[str, str]:
    """Return prompt → why the probe left it out."""
    from xatlas.schema import notes

    return notes(dataset, "dropped")


def _type(one: xr.Dataset, layer: int) -> str:
    return str(one["operator_type"].values[layer])


def _overlap(one: xr.Dataset, name: str) -> bool:
    """Tell whether the intervals of both modes have a number in common."""
    ends = [summary.triple(one.sel(mode=mode), name)[1:] for mode in PATCH_MODES]
    return bool(ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1])


def _arrival_finding(dataset: xr.Dataset, index: int) -> Finding:
    one = dataset.isel(model=index)
    model, p = str(one["model"].item()), float(one["arrival_p"])
    value, low, high = summary.triple(one.sel(mode="denoise"), "arrival")
    if math.isnan(value):
        told = f"The subject's information never reaches the readout of {model}."
        return Finding(told, value, value, value, 1.0, p, "undecided", model)
    noise = summary.triple(one.sel(mode="noise"), "arrival")
    clears = high < 1 and p <= rule.ALPHA and _in_order(one)
    verdict = rule.verdict(clears, _overlap(one, "arrival"), against=value == 1 and math.isfinite(high))
    stream = one["recovery"].sel(site="resid_post", position="last", mode="denoise").values
    layer = round(value * (_layers(one) - 1))
    before = f"{summary.number(float(stream[layer - 1]))} a layer before" if layer else "no layer before"
    sentence = (
        f"In {model} the subject's information has reached the readout by depth {summary.interval(value, low, high)} "
        f"(layer {layer}, {_type(one, layer)}): its stream recovers {summary.number(float(stream[layer]))} there, "
        f"{before}; in the last layer it must. Noising says {summary.interval(*noise)}."
    )
    return Finding(sentence, value, low, high, 1.0, p, verdict, model)


def _in_order(one: xr.Dataset) -> bool:
    """Tell whether there is more than one layer, and the last is what it must be: else layers are mislabelled."""
    return _layers(one) > 1 and float(one["last_layer_gap"]) < _GAP


def _layers(one: xr.Dataset) -> int:
    return int((one["operator_type"].values != "").sum())


def _mover_finding(dataset: xr.Dataset, index: int) -> Finding:
    one = dataset.isel(model=index)
    model, denoise = str(one["model"].item()), one.sel(mode="denoise")
    nan, at = math.nan, float(denoise["mover"])
    if math.isnan(at):
        return Finding(f"{model} has no operator to patch.", nan, nan, nan, nan, nan, "undecided", model)
    here = denoise.sel(site="operator_out", position="last").isel(layer=int(at))
    value, low, high = summary.triple(here, "recovery")
    control = float(here["control"])
    rank, p = float(denoise["mover_p_rank1"]), float(denoise["mover_p"])
    clears = low > float(here["control_high"]) and p <= rule.ALPHA and not float(denoise["mover_tie"])
    verdict = rule.verdict(
        clears and _in_order(one), float(one.sel(mode="noise")["mover"]) == at, against=high < control
    )
    sentence = (
        f"The operator that moves most of it to the readout of {model} is layer {int(at)}'s ({_type(one, int(at))}): "
        f"alone it recovers {summary.interval(value, low, high)}, control {summary.number(control)}, "
        f"P(rank 1) {summary.chance(rank)}."
    )
    return Finding(sentence, value, low, high, control, p, verdict, model)


def _type_findings(dataset: xr.Dataset, index: int) -> list[Finding]:
    """Say through which operator type it moves, for a model that has attention and others."""
    one = dataset.isel(model=index)
    value, low, high = summary.triple(one.sel(mode="denoise"), "attention_over_others")
    if math.isnan(value):
        return []
    model, p = str(one["model"].item()), float(one["attention_over_others_p"])
    control = float(one.sel(mode="denoise")["attention_over_others_control"])
    main = rule.side(low, high, 0, control)
    noise = rule.side(*summary.triple(one.sel(mode="noise"), "attention_over_others")[1:], 0)
    verdict = rule.verdict(main != 0 and p <= rule.ALPHA and _in_order(one), noise == main)
    what = {1: "more than", -1: "less than", 0: "no more and no less, as far as can be told, than"}[main]
    sentence = (
        f"In {model} an attention layer moves {what} another layer to the readout: difference in recovery "
        f"{summary.interval(value, low, high)}, control {summary.number(control)}."
    )
    return [Finding(sentence, value, low, high, control, p, verdict, model)]


def _pair_finding(dataset: xr.Dataset, i: int, j: int) -> Finding:
    """Say whether two models differ in depth of arrival: by more than half a layer of the shallower one."""
    one = dataset.isel(model=i, model_other=j)
    value, low, high = summary.triple(one, "arrival_difference")
    names = [str(dataset["model"].values[k]) for k in (i, j)]
    grid = 0.5 / max(min(_layers(dataset.isel(model=k)) for k in (i, j)) - 1, 1)
    both = all(_arrival_finding(dataset, k).verdict == "supported" for k in (i, j))
    verdict = rule.verdict(low > grid or high < -grid, both, against=-grid <= low <= high <= grid)
    count = int(one["arrival_difference_prompts"])
    sentence = (
        f"Depth at which it reaches the readout of {names[0]} minus that of {names[1]}: "
        f"{summary.interval(value, low, high)}, on {count} prompts that both answer."
    )
    return Finding(sentence, value, low, high, 0.0, float(one["arrival_difference_p"]), verdict)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [PatchingProfile]
