"""How much of the effect a few heads carry, which leads per family, and whether one index wins everywhere."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.comparisons import verdict as rule
from xatlas.comparisons.figures import head as head_figure
from xatlas.comparisons.measures import head as head_measures, readings, settings, summary
from xatlas.comparisons.measures.readings import Estimate, Reading

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


class HeadSpecialisation(Comparison):
    """Share of the five strongest heads, best head per family, and wins of one head index across layers.

    ``top_share (model)``: what the five heads with the largest family-macro KL hold of all heads' sum. Its
    control is the same share of the control's effects; its chance level shuffles layer labels independently
    in each template. ``best_layer``, ``best_head``, ``best_p_rank1``, ``best_tie (model, family)``.
    ``index_wins (model)``: in how many layers the most successful head *index* is the strongest head (layers
    whose two best heads agree numerically have no winner), with the exact chance level; ``index_wins_over_control``
    counts the same index's layers when heads rank by effect over control. Where heads were measured without controls
    both are NaN and nothing rests on them. That one index wins is called an artefact when it holds for raw effects
    only, and undecided when layers can't be told apart by shuffling their labels: layers that are all the same are one
    witness, not many. ``sensitivity`` and ``sensitivity_wins (model, setting)`` hold the share and that index's wins
    under other settings: ``head_specialisation.sensitivity.csv`` lists them, with commands for what was not run.
    """

    name = "head_specialisation"
    version = 2
    summary = "Do a few heads carry the effect, and does one head index win across layers more than by chance?"

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Head ablation with its defaults."""
        return (Requirement("head_ablation"),)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the dataset described above."""
        found = [readings.read(tree, model, "head_ablation") for model in readings.models(tree)]
        mains = [each[0] for each in found]
        families = sorted({family for main in mains for family in main.clusters.families})
        variables = head_measures.head_variables(mains) | head_measures.family_variables(mains, families)
        shares = [head_measures.model_shares(main) for main in mains]
        for name, (units, words) in head_measures.WORDS.items():
            array = np.array([one[name] for one in shares])
            variables[name] = (("model",), array, units, words)
        rows, coords = settings.sensitivity(found, _estimate, "1", "share of the five strongest heads")
        wins = head_measures.wins_of({main.model: head_measures.leading_index(main) for main in mains})
        more, _ = settings.sensitivity(found, wins, "layer", "wins of the leading index", "sensitivity_wins")
        coords |= {"family": families, "head": np.arange(max(main.dataset.sizes["head"] for main in mains))}
        absent = {"effect": "a layer without heads, or padding", "best_head": "no prompt of that family"}
        absent["top_share"] = "a model without heads"
        return summary.assemble(self, found, variables | rows | more, coords, absent)

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw a map of heads per model with the top five ringed, and the shares."""
        return head_figure.draw(dataset)

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """State, for each model with heads, the share of the top five and the wins of one index."""
        held = [i for i in range(dataset.sizes["model"]) if dataset["n_heads"].values[i] > 0]
        return [judge(dataset, i) for i in held for judge in (_share_finding, _wins_finding)]

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per model."""
        rows: list[dict[str, str | float]] = []
        for i, model in enumerate(map(str, dataset["model"].values)):
            one = dataset.isel(model=i)
            if one["n_heads"] == 0:
                rows.append({"model": model, "top 5 share": "no heads"})
                continue
            share, wins = _share_finding(dataset, i), _wins_finding(dataset, i)
            layer, head = _strongest(one)
            row: dict[str, str | float] = {"model": model, "strongest head": f"{layer}.{head}"}
            row["P(rank 1)"] = summary.number(float(one["first_p_rank1"]))
            row["tie"] = "tie" if float(one["first_tie"]) else "none"
            row["top 5 share"] = summary.interval(share.value, share.low, share.high)
            row["control"] = summary.number(float(one["top_share_control"]))
            row["chance"] = summary.number(float(one["top_share_chance"]))
            row["verdict"] = share.verdict
            row["one index wins"] = (
                f"{int(wins.value)} of {int(one['n_layers_won'])} layers (head {int(one['index'])}, "
                f"chance {wins.control:.1f}): {wins.verdict}"
            )
            row["best per family"] = _families_text(one)
            ends = zip(dataset["sensitivity_low"].values[i], dataset["sensitivity_high"].values[i], strict=True)
            same = [low <= share.high and high >= share.low for low, high in ends]
            row["sensitivity"] = summary.sensitivity_note(dataset, i, same)
            rows.append(row)
        return rows


def _estimate(reading: Reading, ablation: str, scope: str, layer0: bool) -> Estimate:
    return head_measures.share_of(reading, ablation, scope, 0 if layer0 else 1)


def _strongest(one: xr.Dataset) -> tuple[int, int]:
    effect = one["effect"].values
    layer, head = np.unravel_index(int(np.nanargmax(effect)), effect.shape)
    return int(layer), int(head)


def _families_text(one: xr.Dataset) -> str:
    """Return "family layer.head" for each family, with ~ before a head that ties with another."""
    cells = []
    for name in map(str, one["family"].values):
        best = one.sel(family=name)
        if not math.isnan(float(best["best_head"])):
            tie = "~" if float(best["best_tie"]) else ""
            cells.append(f"{name} {tie}{int(best['best_layer'])}.{int(best['best_head'])}")
    return ", ".join(cells)


def _share_finding(dataset: xr.Dataset, index: int) -> Finding:
    one = dataset.isel(model=index)
    value, low, high = summary.triple(one, "top_share")
    control = float(np.fmax(one["top_share_control"], one["top_share_chance"]))  # the first is NaN without controls
    p, model = float(one["top_share_p"]), str(one["model"].item())
    clears = low > control and p <= rule.ALPHA
    agree_kinds = all(other[1] > control for other in rule.kinds(dataset, index))
    sentence = (
        f"The five strongest of {int(one['n_heads'])} heads of {model} hold {summary.interval(value, low, high)} "
        f"of the summed effect; shuffled layers {summary.number(float(one['top_share_chance']))}"
        f"{'' if np.isnan(one['top_share_control']) else f', control {summary.number(float(one.top_share_control))}'}."
    )
    verdict = rule.verdict(clears, agree_kinds, against=high < control)
    if int(one["n_heads"]) <= head_measures.TOP:  # five of five hold everything, whatever they do
        verdict = "undecided"
    return Finding(sentence, value, low, high, control, p, verdict, model)


def _wins_finding(dataset: xr.Dataset, index: int) -> Finding:
    one = dataset.isel(model=index)
    value, low, high = summary.triple(one, "index_wins")
    chance, p, model = float(one["index_wins_chance"]), float(one["index_wins_p"]), str(one["model"].item())
    name = "index_wins_over_control"
    over_low, over_high = summary.triple(one, name)[1:]
    held = bool(one["control"].notnull().any())
    over = not held or (over_low > chance and float(one[f"{name}_p"]) <= rule.ALPHA)
    apart = float(one["layers_p"]) <= rule.ALPHA
    raw = low > chance and p <= rule.ALPHA
    verdict = rule.verdict(
        raw and over and apart,
        all(other[1] > chance for other in rule.kinds(dataset, index, "sensitivity_wins")),
        against=p > rule.ALPHA and apart and math.isfinite(high),
        published=raw and apart,
        fails=rule.fails(over_low, over_high, 1, chance),
    )
    if int(one["n_layers_won"]) == 0:  # one head a layer, or no layer with a winner: nothing to win
        verdict = "undecided"
    sentence = (
        f"In {model} head index {int(one['index'])} is the strongest head in {summary.interval(value, low, high)} "
        f"of {int(one['n_layers_won'])} layers; the luckiest index wins {chance:.1f} by chance"
        f"{f', and {float(one[name]):.0f} are its own when heads rank by effect over control' if held else ''}."
    )
    return Finding(sentence, value, low, high, chance, float(np.fmax(p, one[f"{name}_p"])), verdict, model)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [HeadSpecialisation]
