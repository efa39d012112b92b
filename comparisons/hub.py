"""The hub: the layer whose ablation changes the output most, and whether it is one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.comparisons import verdict as rule
from xatlas.comparisons.figures import hub as hub_figure
from xatlas.comparisons.measures import hub as hub_measures, readings, settings, summary
from xatlas.comparisons.measures.hub import COMPONENTS, prefix
from xatlas.stats import DRAWS

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


class Hub(Comparison):
    """The layer with the largest family-macro-averaged KL, per component, and how sure that is.

    ``hub (model, component)`` with P(rank 1), the margin to the best of all other layers and its interval;
    a tie when that interval contains 0. ``effect``, ``control (model, component, layer)`` in nats, and
    ``p_effect``: max-T sign flips of log((effect + ε) / (control + ε)) over all layers at once.
    ``depth_difference (model, model_other)`` compares the ``joint`` hubs of two models, never interpolated.
    The p-value of a finding is the larger of ``p_effect`` at the hub and the share of bootstrap draws in
    which another layer leads. ``sensitivity``, ``sensitivity_mlp`` and ``sensitivity_operator (model, setting)``
    hold the hub under other settings: ``hub.sensitivity.csv`` lists them, with commands for what was not run.
    """

    name = "hub"
    version = 2
    summary = "Which layer matters most, with P(rank 1), margin and ties; and is it at the same depth?"

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Layer ablation with its defaults."""
        return (Requirement("layer_ablation"),)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the dataset described above."""
        found = [readings.read(tree, model, "layer_ablation") for model in readings.models(tree)]
        mains = [each[0] for each in found]
        layers = [hub_measures.layers(main) for main in mains]
        variables = {
            name: (("model", "component", "layer"), summary.stack([one[name] for one in layers]), *words)
            for name, words in hub_measures.LAYER_WORDS.items()
        }
        variables |= hub_measures.hubs(mains)
        variables |= hub_measures.differences(mains)
        for component in reversed(COMPONENTS):
            estimate, words = hub_measures.layer_of(component), ("layer", f"{component} hub")
            rows, coords = settings.sensitivity(found, estimate, *words, prefix(component))
            variables |= rows
        coords |= {"component": list(COMPONENTS), "model_other": [main.model for main in mains]}
        absent = {"margin": "a model of one layer has no runner-up"}
        absent["effect"] = "padding of models with fewer layers, or a layer without that component"
        return summary.assemble(self, found, variables, coords, absent)

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw effects over the layers with bands and controls, and P(rank 1) below."""
        return hub_figure.draw(dataset)

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """State each model's ``joint`` hub, each pair's difference in depth, then the MLP and operator hubs."""
        each = range(dataset.sizes["model"])
        hubs = [_hub_finding(dataset, i, "joint") for i in each]
        verdicts = [finding.verdict for finding in hubs if finding]
        pairs = [_pair_finding(dataset, i, j, verdicts) for i, j in itertools.combinations(each, 2)]
        parts = [_hub_finding(dataset, i, component) for i in each for component in ("mlp", "operator")]
        return [finding for finding in (*hubs, *pairs, *parts) if finding]

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per model and component."""
        rows: list[dict[str, str | float]] = []
        for i, model in enumerate(map(str, dataset["model"].values)):
            for component in reversed(COMPONENTS):
                one, finding = dataset.isel(model=i).sel(component=component), _hub_finding(dataset, i, component)
                if finding is None or math.isnan(float(one["hub"])):
                    continue
                at = one.isel(layer=int(one["hub"]))
                row: dict[str, str | float] = {"model": model, "component": component}
                row["hub"] = f"{int(one['hub'])} ({at['operator_type'].item()})"
                row["depth"] = _interval(one, "hub_depth")
                row["effect (nats)"] = _interval(at, "effect")
                row["control"] = summary.number(float(at["control"]))
                row["P(rank 1)"] = summary.chance(float(at["p_rank1"]))
                row["margin (nats)"] = _interval(one, "margin")
                row["ties with"] = str(one["tied"].item()) or "none"
                row["verdict"] = finding.verdict
                same = dataset[prefix(component)].values[i] == float(one["hub"])
                row["sensitivity"] = summary.sensitivity_note(dataset, i, same, prefix(component))
                rows.append(row)
        return rows


def _interval(dataset: xr.Dataset, name: str) -> str:
    return summary.interval(*summary.triple(dataset, name))


def _hub_finding(dataset: xr.Dataset, index: int, component: str) -> Finding | None:
    """Judge one component's hub; None for a model that has nothing but ``joint`` to rank."""
    one = dataset.isel(model=index).sel(component=component)
    model, nan = str(one["model"].item()), math.nan
    if math.isnan(float(one["hub"])):
        nothing = Finding(f"{model} has no joint effect to rank.", nan, nan, nan, nan, nan, "undecided", model)
        return nothing if component == "joint" else None
    hub = int(one["hub"])
    at = one.isel(layer=hub)
    tie, rank = bool(one["tie"]), float(at["p_rank1"])
    p = float(np.max([float(at["p_effect"]), (1 + DRAWS * (1 - rank)) / (1 + DRAWS)]))
    alone = math.isnan(float(one["runner_up"]))  # the only layer there is wins nothing
    verdict = rule.verdict(
        float(at["over_control_low"]) > 1 and p <= rule.ALPHA and not tie and not alone,
        all(value == hub for value, _, _ in rule.kinds(dataset, index, prefix(component))),
        against=float(at["over_control_high"]) < 1,
    )
    ending = f"; it ties with layer {one['tied'].item()}" if tie else ""
    named = {"joint": "hub", "mlp": "MLP hub"}.get(component, f"{component} hub")
    sentence = (
        f"The {named} of {model} is layer {hub} (depth {float(one['hub_depth']):.2f}, "
        f"{at['operator_type'].item()}): {_interval(at, 'effect')} nats, control "
        f"{summary.number(float(at['control']))}, P(rank 1) {summary.chance(rank)}{ending}."
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
    verdict = rule.verdict(low > grid or high < -grid, both, against=-grid <= low <= high <= grid)
    names = [str(dataset["model"].values[k]) for k in (i, j)]
    sentence = f"Depth of the hub of {names[0]} minus that of {names[1]}: {summary.interval(value, low, high)}."
    return Finding(sentence, value, low, high, 0.0, float(one["depth_difference_p"]), verdict)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [Hub]
