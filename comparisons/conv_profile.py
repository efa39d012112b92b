"""Which factor and which tap carries each convolution, over depth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.comparisons import verdict as rule
from xatlas.comparisons.figures import conv as conv_figure
from xatlas.comparisons.measures import conv as conv_measures, readings, summary
from xatlas.comparisons.measures.conv import PARTS

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


class ConvProfile(Comparison):
    """Effects of the factors (gate, carrier, signal) and of the kernel's taps of every conv layer.

    ``factor_effect (model, layer, factor)`` at ablation ``mean`` and ``tap_effect (model, layer, tap)``, KL at
    the readout position, with their controls. ``factor_carrier`` and ``tap_carrier (model, layer)`` name the
    one with the largest effect, with P(rank 1), empty for a layer without convolution or with a tie.
    ``factor_over_others`` and ``tap_over_others (model, layer)``: effect of the model's leading factor or tap,
    ``…_lead (model)``, over the geometric mean of the others; findings tell the layer where that is largest,
    against the model's mean conv layer. Controls are the same ratios of the controls' effects.
    """

    name = "conv_profile"
    version = 2
    summary = "Which factor and which tap carries each conv layer, over depth?"
    default = False

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Conv factors and conv taps with their defaults."""
        return (Requirement("conv_factors"), Requirement("conv_taps"))

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the dataset described above."""
        models = readings.models(tree)
        factors = [readings.read(tree, model, "conv_factors") for model in models]
        taps = [readings.find(tree, model, "conv_taps")[0] for model in models]
        mains = {"factor": [each[0] for each in factors], "tap": taps}
        variables: dict[str, Any] = {}
        coords: dict[str, Any] = {}
        for part in PARTS:
            found, labels = conv_measures.variables(part, mains[part])
            variables |= found
            coords[part] = labels
        reason = "padding, a layer without a convolution, or a kernel without that tap"
        absent = {f"{part}_effect": reason for part in PARTS}
        absent |= {f"{part}_peak": "a model without conv layers" for part in PARTS}
        return summary.assemble(self, factors, variables, coords, absent)

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw factors and taps over the layers of each model that has convolutions."""
        return conv_figure.draw(dataset)

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """State per model in which conv layer its leading factor, and its leading tap, outweighs the others most."""
        found = [_finding(dataset, i, part) for i in range(dataset.sizes["model"]) for part in PARTS]
        stated = [finding for finding in found if finding]
        nan = math.nan
        none = Finding("No model here has conv layers.", nan, nan, nan, nan, nan, "undecided")
        return stated or [none]

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per conv layer; one for a model without any."""
        rows: list[dict[str, str | float]] = []
        for i, model in enumerate(map(str, dataset["model"].values)):
            one = dataset.isel(model=i)
            layers = [at for at in range(dataset.sizes["layer"]) if _carried(one, at)]
            rows += [_row(one, model, at) for at in layers] or [_row(one, model, -1)]
        return rows


def _carried(one: xr.Dataset, layer: int) -> bool:
    return bool(np.isfinite(one["factor_effect"].values[layer]).any())


def _row(one: xr.Dataset, model: str, layer: int) -> dict[str, str | float]:
    """Return a layer's row, or dashes for a model without conv layers (layer -1)."""
    row: dict[str, str | float] = {"model": model, "layer": "–" if layer < 0 else str(layer)}
    for part in PARTS:
        if layer < 0:
            row |= {part: "–", f"P({part} first)": "–", f"KL, {part}": "–", f"control, {part}": "–"}
            continue
        at = one.isel(layer=layer)
        first = int(np.nanargmax(at[f"{part}_effect"].values))
        tie = " (tie)" if not str(at[f"{part}_carrier"].item()) else ""
        best = at.isel({part: first})
        row[part] = f"{best[part].item()}{tie}"
        row[f"P({part} first)"] = summary.number(float(at[f"{part}_carrier_p_rank1"]))
        row[f"KL, {part}"] = summary.interval(*summary.triple(best, f"{part}_effect"))
        row[f"control, {part}"] = summary.number(float(best[f"{part}_control"]))
    return row


def _finding(dataset: xr.Dataset, index: int, part: str) -> Finding | None:
    one = dataset.isel(model=index)
    model = str(one["model"].item())
    if math.isnan(float(one[f"{part}_peak"])):
        return None
    at = one.isel(layer=int(one[f"{part}_peak"]))
    value, low, high = summary.triple(at, f"{part}_over_others")
    mean, control = float(one[f"{part}_over_others_mean"]), float(at[f"{part}_over_others_control"])
    p = float(at[f"{part}_p"])
    clears = rule.side(low, high, mean, control, 1) > 0 and p <= rule.ALPHA and not float(one[f"{part}_tie"])
    named = f"tap {one[f'{part}_lead'].item()}" if part == "tap" else f"the {one[f'{part}_lead'].item()}"
    sentence = (
        f"In {model} {named} outweighs the other {part}s most in conv layer {int(one[f'{part}_peak'])}: ratio "
        f"{summary.interval(value, low, high)}, mean conv layer {summary.number(mean)}, control "
        f"{summary.number(control)}."
    )
    agree = bool(float(one[f"{part}_kinds_agree"]))
    verdict = rule.verdict(clears, agree, against=high < max(mean, control, 1))
    return Finding(sentence, value, low, high, control, p, verdict, model)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [ConvProfile]
