"""How much more the MLP matters than the operator, and whether the operator's type changes that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, XatlasError, hookimpl
from xatlas.comparisons.figures import mlp_ratio as figure
from xatlas.findings import RATIO_MARGIN, Claim, ClaimComparison, Effects, Estimates, Evidence, Statistic, layer_types
from xatlas.findings.places import Ranking, largest_ratio, over_control, ranking
from xatlas.findings.verdict import ALPHA
from xatlas.stats import PERMUTATIONS, divide
from xatlas.text import interval

if TYPE_CHECKING:
    import xarray as xr

LABELS = {"types_mlp": "MLPs {types}", "types_operator": "operators {types}", "types_ratio": "ratio {types}"}


def _of_types(name: str, text: str, short: str) -> Claim:
    return Claim(
        name,
        "Do layers of one operator type differ from those of another, depth aside?",
        f"In {{model}} {text}, depth aside",
        label=LABELS[name].format(types="by type"),
        short=short,
        unit="layer type",
        contrast="type",
    )


class MlpRatio(ClaimComparison):
    """``mlp_over_operator``, and effects of layers of one operator type over those of another.

    ``mlp_over_operator (model, layer, bound)`` is the family-macro mean KL of the MLP over that of the operator;
    ``mlp_over_operator_control`` the same of the controls; ``p_rank1 (model, layer)``. Claims about a network: that
    MLPs matter more than operators over all layers, or less; and that the ratio is the largest in one layer, against
    pairs of effects permuted over layers within templates, each layer's scaled to the same sum. Claims about layer
    types are tested over layers, never over prompts: log effects of the MLPs, of the operators, and the log ratio, on
    type with depth taken out. Of more than two types the two with most layers are compared (``types (model)``), or
    those that are named. Models of one type have no such rows.
    """

    name = "mlp_ratio"
    version = 3
    summary = "How much more do MLPs matter than operators, over depth and by operator type?"
    requires = (Requirement("layer_ablation"),)

    @dataclass(frozen=True)
    class Parameters:
        """What is compared.

        Parameters
        ----------
        types : tuple[str, ...]
            Two operator types, e.g. ssm,attention; without them, the two with most layers.
        """

        types: tuple[str, ...] = ()

        def __post_init__(self) -> None:
            if self.types and len(set(self.types)) != 2:
                fault = f"mlp_ratio.types = {','.join(self.types)} does not fit"
                raise XatlasError(f"{fault}: it takes two operator types, e.g. ssm,attention.")

    claims = (
        Claim(
            "mlp_over_operator",
            "Do MLPs matter more than operators, or less, over all layers?",
            "In {model} MLPs matter {number} times as much as operators over all layers (control {control})",
            label="MLP / operator",
            short="{which} matter more",
            margin=RATIO_MARGIN,
            pair="the ratio of MLPs to operators",
        ),
        Claim(
            "peak",
            "In which layer is the ratio of MLP to operator the largest?",
            "In {model} the ratio of MLP to operator is the largest in layer {layer} (depth {depth}, {type}): {number} "
            "(control {control}), P(rank 1) {sure}{ties}",
            label="largest ratio",
            short="the ratio of MLP to operator is the largest in layer {layer}",
        ),
        _of_types(
            "types_mlp",
            "MLPs of {one} layers matter {number} times as much as those of {other} layers",
            "MLPs of {more} layers matter more than those of {less} layers",
        ),
        _of_types(
            "types_operator",
            "operators of {one} layers matter {number} times as much as those of {other} layers",
            "operators of {more} layers matter more than those of {less} layers",
        ),
        _of_types(
            "types_ratio",
            "MLP over operator is {number} times as large in {one} layers as in {other} layers",
            "MLP over operator is larger in {more} layers than in {less} layers",
        ),
    )
    narrow = True
    curves = ("mlp_over_operator",)
    variables: ClassVar = {
        "mlp_over_operator": Variable(("layer", "bound"), "1", "effect of ablating the MLP over the operator's"),
        "mlp_over_operator_control": Variable(("layer", "bound"), "1", "the same ratio of the controls' effects"),
        "p_rank1": Variable(("layer",), "1", "P(rank 1) of the ratio over bootstrap draws"),
        "types": Variable((), "1", "operator types that are compared"),
    }
    absent: ClassVar = {"mlp_over_operator": "padding, or a layer without an MLP"}
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return the ratio over all layers, the layer with the largest, and ratios of layer types."""
        (one,) = effects
        mlp, operator = parts(one["kl"])
        if not mlp.notnull().any():
            return self._types(one)
        overall = one.sample.ratio(mlp.mean("layer"), operator.mean("layer"))
        if one.control is not None:
            overall = overall.against(one.sample.ratio(*(each.mean("layer") for each in parts(one.control))))
        which = "MLPs" if float(overall.point) > 0 else "operators"
        overall = replace(overall, words={"which": which})
        return {"mlp_over_operator": overall, "peak": _peak(one, mlp, operator), **self._types(one)}

    def operator_types(self, kl: xr.DataArray) -> tuple[str, str] | None:
        """Return the two operator types whose layers are compared; None where there is one only."""
        named = self.parameters.types
        return named or operator_types(list(map(str, kl["operator_type"].values)))

    def _types(self, one: Effects) -> dict[str, Evidence]:
        """Return what speaks for differences between layers of two operator types."""
        kl = one["kl"]
        types, pair = list(map(str, kl["operator_type"].values)), self.operator_types(kl)
        if pair is None:
            return {}
        logs = {name: one.sample.mean(kl.sel(component=name), log=True).point.values for name in ("mlp", "operator")}
        compared = {f"types_{name}": each for name, each in logs.items()}
        found = {}
        for name, values in (compared | {"types_ratio": logs["mlp"] - logs["operator"]}).items():
            evidence = layer_types(values, types, kl["depth"].values, pair)
            more, less = pair if evidence.number[0] > 1 else pair[::-1]
            words = {**evidence.words, "one": pair[0], "other": pair[1], "more": more, "less": less}
            if np.isfinite(values).any():
                found[name] = replace(evidence, words=words)
        return found

    def describe(self, *effects: Effects) -> dict[str, Any]:
        """Return the ratio through the layers."""
        (one,) = effects
        ratio = one.sample.ratio(*parts(one["kl"]))
        found: dict[str, Any] = {"mlp_over_operator": ratio.bounds()}
        if one.control is not None:
            found["mlp_over_operator_control"] = one.sample.ratio(*parts(one.control)).bounds()
        known = 1.0 if one.sample.clusters.resamples else math.nan
        found["p_rank1"] = ratio.point.copy(data=_ranked(one, ratio).sure * known)
        found["types"] = " / ".join(self.operator_types(one["kl"]) or ())
        return found

    def called(self, name: str, one: xr.Dataset) -> str:
        """Return the label of a number, layer types by their names."""
        if name == "peak":
            return f"largest, layer {int(one['mlp_over_operator'].sel(bound='value').idxmax('layer'))}"
        return LABELS.get(name, "MLP / operator").format(types=str(one["types"].item()).replace(" ", ""))


def parts(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return effects of the MLPs and of the operators, of layers and prompts that have both."""
    mlp, operator = (values.sel(component=name, drop=True) for name in ("mlp", "operator"))
    both = mlp.notnull() & operator.notnull()
    return mlp.where(both), operator.where(both)


def operator_types(types: Sequence[str]) -> tuple[str, str] | None:
    """Return the two operator types with most layers, attention the second of them; None for one type."""
    counts = Counter(sorted(filter(None, types)))
    common = [name for name, _ in counts.most_common(2)]
    if len(common) < 2:
        return None
    first, second = sorted(common, key=lambda name: (name == "attention", name))
    return first, second


def _ranked(one: Effects, ratio: Statistic) -> Ranking:
    """Rank the layers by their ratio, with bootstrap draws of its logarithm ``(draw, layer)``."""
    arrays = (each.transpose("prompt", "layer").values for each in parts(one["kl"]))
    drawn = divide(*map(one.sample.clusters.macro_draws, arrays))
    return ranking(one.sample, ratio, np.log(np.where(drawn > 0, drawn, np.nan)))


def _peak(one: Effects, mlp: xr.DataArray, operator: xr.DataArray) -> Evidence:
    """Return what speaks for one layer's having the largest ratio."""
    ratio = one.sample.ratio(mlp, operator)
    places = _ranked(one, ratio)
    if not len(places.order):
        return Evidence()
    best = int(places.order[0])
    at, blocked, ties = ratio.isel({"layer": best}), "", ""
    if len(places.order) == 1:
        blocked = "one layer only"
    elif not one.sample.clusters.resamples:
        blocked = "too few templates"
    elif len(places.tied):
        names = [str(ratio.point["layer"].values[i]) for i in places.tied]
        blocked = f"it ties with layer {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
        ties = f"; {blocked} (over the largest of the others: {interval(*np.exp(places.margin).tolist())})"
    over = control = None
    if one.control is not None:
        control = one.sample.ratio(*parts(one.control)).isel({"layer": best})
        over = at - control
    chosen = _permuted(one, mlp, operator) if len(places.order) > 1 else math.nan
    found = over_control(chosen, over, control)
    number, descriptive = largest_ratio(one.sample, mlp, operator)
    layer = mlp.isel(layer=best)
    return Evidence(
        **found,
        number=number,
        against="layers permuted and the control",
        answer=int(layer["layer"]),
        blocked=blocked,
        artefact="the control's ratio is larger there" if found["side"] < 0 and chosen <= ALPHA else "",
        descriptive=descriptive,
        words={
            "layer": str(int(layer["layer"])),
            "depth": f"{float(layer['depth']):.2f}",
            "type": str(layer["operator_type"].item()),
            "sure": f"{places.sure[best]:.2f}" if one.sample.clusters.resamples else "–",
            "ties": ties,
        },
    )


def _permuted(one: Effects, mlp: xr.DataArray, operator: xr.DataArray) -> float:
    """Return how often permuted layers reach the largest ratio; layers are scaled alike, so that each is as noisy."""
    import xarray as xr

    level = one.sample.mean(mlp + operator).point
    kept = np.flatnonzero(level.values > 0)
    both = xr.concat([mlp, operator], "part").isel(layer=kept) / level.isel(layer=kept)
    return one.sample.permuted(both, "layer", lambda means: divide(means[:, 0], means[:, 1]).max(-1), PERMUTATIONS // 5)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [MlpRatio]
