"""The hub: the layer whose ablation changes the output most, and whether it is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.comparisons.figures import hub as hub_figure
from xatlas.comparisons.measures import readings, summary
from xatlas.comparisons.measures.readings import Estimate, Reading
from xatlas.stats import DRAWS, Floats, log_ratio, quantile
from xatlas.stats.ranks import Winner, probability_first, winner

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

COMPONENTS = ("operator", "mlp", "joint")


class Hub(Comparison):
    """The layer with the largest family-macro-averaged KL, per component, and how sure that is.

    ``hub (model, component)`` with P(rank 1), the margin to the best of all other layers and its interval;
    a tie when that interval contains 0. ``effect``, ``control (model, component, layer)`` in nats, and
    ``p_effect``: max-T sign flips of log((effect + ε) / (control + ε)) over all layers at once.
    ``depth_difference (model, model_other)`` compares the ``joint`` hubs of two models, never interpolated.
    The p-value of a finding is the larger of ``p_effect`` at the hub and the share of bootstrap draws in
    which another layer leads.
    """

    name = "hub"
    version = 1
    summary = "Which layer matters most, with P(rank 1), margin and ties; and is it at the same depth?"

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Layer ablation with its defaults."""
        return (Requirement("layer_ablation"),)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the dataset described above."""
        found = [readings.read(tree, model, "layer_ablation") for model in readings.models(tree)]
        mains = [each[0] for each in found]
        layers = [_layers(main) for main in mains]
        variables = {
            name: (("model", "component", "layer"), summary.stack([one[name] for one in layers]), *words)
            for name, words in _LAYER_WORDS.items()
        }
        wins = [[_winner(main, c) for c in range(len(COMPONENTS))] for main in mains]
        variables |= _hubs(wins, mains)
        variables |= _differences(mains)
        rows, coords = readings.sensitivity(found, _hub_layer, "layer")
        coords |= {"component": list(COMPONENTS), "model_other": [main.model for main in mains]}
        absent = {"margin": "a model of one layer has no runner-up"}
        absent["effect"] = "padding of models with fewer layers, or a layer without that component"
        return summary.assemble(self, found, variables | rows, coords, absent)

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw effects over the layers with bands and controls, and P(rank 1) below."""
        return hub_figure.draw(dataset)

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """State each model's ``joint`` hub, then each pair's difference in depth."""
        hubs = [_hub_finding(dataset, i) for i in range(dataset.sizes["model"])]
        verdicts = [finding.verdict for finding in hubs]
        pairs = [_pair_finding(dataset, i, j, verdicts) for i in range(len(hubs)) for j in range(i + 1, len(hubs))]
        return hubs + pairs

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per model and component."""
        verdicts = {finding.model: finding.verdict for finding in self.findings(dataset) if finding.model}
        rows: list[dict[str, str | float]] = []
        for i, model in enumerate(map(str, dataset["model"].values)):
            for component in reversed(COMPONENTS):
                one = dataset.isel(model=i).sel(component=component)
                if math.isnan(float(one["hub"])):
                    continue
                at = one.isel(layer=int(one["hub"]))
                row: dict[str, str | float] = {"model": model, "component": component}
                row["hub"] = f"{int(one['hub'])} ({at['operator_type'].item()})"
                row["depth"] = _interval(one, "hub_depth")
                row["effect (nats)"] = _interval(at, "effect")
                row["control"] = summary.number(float(at["control"]))
                row["P(rank 1)"] = f"{float(at['p_rank1']):.2f}"
                row["margin (nats)"] = _interval(one, "margin")
                row["ties with"] = str(one["tied"].item()) or "none"
                row["verdict"] = verdicts[model] if component == "joint" else ""
                if component == "joint":
                    same = dataset["sensitivity"].values[i] == float(one["hub"])
                    row["sensitivity"] = summary.sensitivity_note(dataset, i, same)
                rows.append(row)
        return rows


_LAYER_WORDS = {
    "effect": ("nats", "family-macro KL(clean || ablated)"),
    "effect_low": ("nats", "lower end of the effect's 95 % interval"),
    "effect_high": ("nats", "upper end of the effect's 95 % interval"),
    "control": ("nats", "family-macro KL of a random direction of the same norm"),
    "control_low": ("nats", "lower end of the control's 95 % interval"),
    "control_high": ("nats", "upper end of the control's 95 % interval"),
    "over_control": ("1", "exp(mean over prompts of log((effect + 1e-4) / (control + 1e-4)))"),
    "over_control_low": ("1", "lower end of its 95 % interval"),
    "over_control_high": ("1", "upper end of its 95 % interval"),
    "p_rank1": ("1", "P(rank 1) over bootstrap draws; ties share"),
    "p_effect": ("1", "max-T sign-flip p-value of effect over control, all layers at once"),
}


def _layers(main: Reading) -> dict[str, Floats]:
    """Return the variables of ``_LAYER_WORDS``, each ``(component, layer)``, for one model."""
    clusters = main.clusters
    found: dict[str, Floats] = {}
    for name, variable in (("effect", "kl"), ("control", "kl_control")):
        point, draws = main.macro(variable)
        low, high = clusters.interval(draws)
        found |= {name: point.T, f"{name}_low": low.T, f"{name}_high": high.T}
    ratio = log_ratio(main.values("kl"), main.values("kl_control"))
    low, high = clusters.interval(clusters.macro_draws(ratio))
    found["over_control"] = np.exp(clusters.macro(ratio)).T
    found["over_control_low"], found["over_control_high"] = np.exp(low).T, np.exp(high).T
    draws = main.macro("kl")[1]
    each = range(len(COMPONENTS))
    found["p_rank1"] = np.array([probability_first(draws[:, :, c]) for c in each])
    found["p_effect"] = np.array([clusters.max_t(ratio[:, :, c]) for c in each])
    return found


def _winner(main: Reading, component: int) -> Winner | None:
    point, draws = main.macro("kl")
    return winner(point[:, component], draws[:, :, component], resamples=main.clusters.resamples)


def _hubs(wins: Sequence[Sequence[Winner | None]], mains: Sequence[Reading]) -> dict[str, Any]:
    """Return the variables ``(model, component)`` that describe the hubs."""
    dims, shape = ("model", "component"), (len(mains), len(COMPONENTS))
    names = ("hub", "hub_depth", "hub_depth_low", "hub_depth_high", "runner_up", "tie")
    numbers = {name: np.full(shape, np.nan) for name in (*names, "margin", "margin_low", "margin_high")}
    tied = np.full(shape, "", dtype=object)
    for i, j in np.ndindex(*shape):
        found = wins[i][j]
        if found is None:
            continue
        last = max(mains[i].dataset.sizes["layer"] - 1, 1)
        rival = found.runner_up if found.runner_up >= 0 else math.nan
        depths = (found.index / last, *(end / last for end in found.spread))
        row = (found.index, *depths, rival, found.tie, found.margin, found.margin_low, found.margin_high)
        for name, value in zip(numbers, row, strict=True):
            numbers[name][i, j] = value
        tied[i, j] = ", ".join(map(str, found.tied))
    variables = {name: (dims, array, *_HUB_WORDS[name]) for name, array in numbers.items()}
    return variables | {"tied": (dims, tied, "1", "layers that tie with the hub")}


_HUB_WORDS = {
    "hub": ("layer", "layer with the largest effect"),
    "hub_depth": ("1", "depth of the hub"),
    "hub_depth_low": ("1", "lower end of the 95 % interval of the hub's depth"),
    "hub_depth_high": ("1", "upper end of the 95 % interval of the hub's depth"),
    "runner_up": ("layer", "layer with the second largest effect"),
    "tie": ("1", "1 where the margin's interval contains 0 or two effects agree numerically"),
    "margin": ("nats", "hub's effect minus the best of all others"),
    "margin_low": ("nats", "lower end of the margin's 95 % interval"),
    "margin_high": ("nats", "upper end of the margin's 95 % interval"),
}


def _differences(mains: Sequence[Reading]) -> dict[str, Any]:
    """Return the difference in depth between the ``joint`` hubs of every two models, over paired draws."""
    dims, joint = ("model", "model_other"), COMPONENTS.index("joint")
    depths, drawn = [], []
    for main in mains:
        point, draws = main.macro("kl")
        depth = np.asarray(main.dataset["depth"].values, dtype=float)
        depths.append(depth[np.argmax(np.nan_to_num(point[:, joint], nan=-1.0))])
        drawn.append(depth[np.argmax(np.nan_to_num(draws[:, :, joint], nan=-1.0), axis=1)])
    each = np.array(drawn)[:, None] - np.array(drawn)[None]  # (model, model_other, draw)
    over, under = (each >= 0).sum(-1), (each <= 0).sum(-1)
    p = np.minimum(1.0, 2 * (1 + np.minimum(over, under)) / (1 + DRAWS))
    ends = [quantile(np.moveaxis(each, -1, 0), q) for q in (0.025, 0.975)]
    point = np.subtract.outer(depths, depths)
    words = ("1", "depth of the model's hub minus the other's")
    found = summary.with_interval("depth_difference", dims, point, (ends[0], ends[1]), *words)
    return found | {"depth_difference_p": (dims, p, "1", "two-sided bootstrap p-value")}


def _hub_layer(reading: Reading, ablation: str, scope: str, layer0: bool) -> Estimate:
    """Return the ``joint`` hub's layer under one setting, with the interval over draws."""
    point, draws = reading.macro("kl", ablation, scope)
    start, joint = (0 if layer0 else 1), COMPONENTS.index("joint")
    resamples = reading.clusters.resamples
    found = winner(point[start:, joint], draws[:, start:, joint], resamples=resamples)
    if found is None:
        return Estimate()
    return Estimate(found.index + start, found.spread[0] + start, found.spread[1] + start)


def _interval(dataset: xr.Dataset, name: str) -> str:
    return summary.interval(*summary.triple(dataset, name))


def _hub_finding(dataset: xr.Dataset, index: int) -> Finding:
    one = dataset.isel(model=index).sel(component="joint")
    model, nan = str(one["model"].item()), math.nan
    if math.isnan(float(one["hub"])):
        return Finding(f"{model} has no joint effect to rank.", nan, nan, nan, nan, nan, "undecided", model)
    hub = int(one["hub"])
    at = one.isel(layer=hub)
    tie = bool(one["tie"])
    p = max(float(at["p_effect"]), (1 + DRAWS * (1 - float(at["p_rank1"]))) / (1 + DRAWS))
    alone = math.isnan(float(one["runner_up"]))  # the only layer there is wins nothing
    clears = float(at["over_control_low"]) > 1 and p <= summary.ALPHA and not tie and not alone
    verdict = summary.verdict(
        clears,
        all(value == hub for value, _, _ in summary.kinds(dataset, index)),
        against=float(at["over_control_high"]) < 1,
    )
    ending = f"; it ties with layer {one['tied'].item()}" if tie else ""
    sentence = (
        f"The hub of {model} is layer {hub} (depth {float(one['hub_depth']):.2f}, "
        f"{at['operator_type'].item()}): {_interval(at, 'effect')} nats, control "
        f"{summary.number(float(at['control']))}, P(rank 1) {float(at['p_rank1']):.2f}{ending}."
    )
    ends = (float(at["effect_low"]), float(at["effect_high"]))
    return Finding(sentence, float(at["effect"]), *ends, float(at["control"]), p, verdict, model)


def _pair_finding(dataset: xr.Dataset, i: int, j: int, verdicts: Sequence[str]) -> Finding:
    """Say whether two hubs lie at different depths: by more than half a layer of the shallower model."""
    one = dataset.isel(model=i, model_other=j)
    value, low, high = summary.triple(one, "depth_difference")
    layers = [int(np.isfinite(dataset["depth"].values[k]).sum()) for k in (i, j)]
    grid = 0.5 / max(min(layers) - 1, 1)
    both = verdicts[i] == verdicts[j] == "supported"
    verdict = summary.verdict(low > grid or high < -grid, both, against=-grid <= low <= high <= grid)
    names = [str(dataset["model"].values[k]) for k in (i, j)]
    sentence = f"Depth of the hub of {names[0]} minus that of {names[1]}: {summary.interval(value, low, high)}."
    return Finding(sentence, value, low, high, 0.0, float(one["depth_difference_p"]), verdict)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [Hub]
