"""The hub: the layer whose ablation changes the output most, and whether it is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, hookimpl
from xatlas.comparisons.figures import hub as figure
from xatlas.findings import Claim, ClaimComparison, Effects, Estimates, Evidence, Place, largest
from xatlas.findings.groups import welch
from xatlas.findings.places import SURE, largest_over, over_control
from xatlas.findings.readings import ABLATION
from xatlas.findings.sentences import DASHES
from xatlas.findings.verdict import ALPHA, UNKNOWN, Bounds
from xatlas.stats import Floats
from xatlas.text import interval

if TYPE_CHECKING:
    import xarray as xr

#: Claim → the component whose hub it names.
HUBS = {"hub": "joint", "mlp_hub": "mlp", "operator_hub": "operator"}


@dataclass(frozen=True)
class HubEvidence(Evidence):
    """What speaks for a hub, and where it is: for the difference in depth between two."""

    depth: float = math.nan
    depths: Floats = field(default_factory=lambda: np.empty(0))  # of the first-ranked layer in every bootstrap draw
    p_place: float = math.nan  # of layers permuted within templates
    sure: float = math.nan  # P(rank 1)
    layers: int = 1


def _claim(name: str, called: str, pair: str = "", alike: str = "") -> Claim:
    return Claim(
        name,
        f"Which layer is the {called}: the one whose ablation changes the output most?",
        f"The {called} of {{model}} is layer {{layer}} ({{where}}): {{number}} nats, control {{control}}; "
        "{lead}, P(rank 1) {sure}{ties}",
        label=f"{called}, nats",
        short=f"the {called} is layer {{layer}}",
        pair=pair,
        alike=alike,
        units="nats",
    )


class Hub(ClaimComparison):
    """The layer with the largest family-macro-averaged KL, per component, and how sure that is.

    The claim is that this layer is the largest: against layers whose labels are permuted within templates, with
    P(rank 1) of at least 0.95 and a margin above 0 (else it is a tie), and that its effect exceeds its control's. An
    effect that is the largest, but smaller than its control's, is an artefact. Its number is the layer's effect; where
    half of the templates would name another layer it is cross-fitted, and describes. Two models' hubs are in the same
    place when their depths differ by less than half a layer of the shallower model. ``position`` names what has the
    largest effect when zeroed at position 0 alone, where ``mean`` changes nothing.

    ``effect``, ``control (model, component, layer, bound)`` and ``position_effect (model, layer, component, where,
    bound)`` in nats; ``p_rank1``, ``tied (model, component, layer)``; ``hub (model, component)``; ``head_over_layer
    (model, bound)``: the strongest head's effect over the strongest layer's, cross-fitted.
    """

    name = "hub"
    version = 3
    summary = "Which layer matters most, with P(rank 1), margin and ties; and is it in the same place?"
    requires = (Requirement("layer_ablation"), Requirement("head_ablation", optional=True))
    claims = (
        _claim("hub", "hub", "the depth of the hub", "The hub is in the same place in {first} and {second} ({depths})"),
        _claim("mlp_hub", "MLP hub"),
        _claim("operator_hub", "operator hub"),
        Claim(
            "position",
            "Which component has the largest effect at position 0, where mean ablation changes nothing?",
            "In {model} the {component} of layer {layer} ({where}) writes what matters most at position 0: {number} "
            "nats when zeroed there alone, which mean ablation cannot see{ties}",
            label="position 0, nats",
            short="the {component} of layer {layer} matters most at position 0, where mean ablation is blind",
            kinds=False,
            units="nats",
        ),
    )
    narrow = True
    curves = ("effect",)
    variables: ClassVar = {
        "effect": Variable(("component", "layer", "bound"), "nats", "family-macro KL(clean || ablated)"),
        "control": Variable(("component", "layer", "bound"), "nats", "the same of a random change of the same norm"),
        "p_rank1": Variable(("component", "layer"), "1", "P(rank 1) over bootstrap draws; ties share"),
        "hub": Variable(("component",), "layer", "layer with the largest effect"),
        "tied": Variable(("component", "layer"), "1", "1 where a layer ties with the hub"),
        "position_effect": Variable(
            ("layer", "component", "where", "bound"), "nats", "family-macro KL of zeroing at position 0, or elsewhere"
        ),
        "head_over_layer": Variable(("bound",), "1", "strongest head's effect over the strongest layer's"),
    }
    absent: ClassVar = {
        "effect": "padding of models with fewer layers, or a layer without that component",
        "position_effect": "not measured",
    }
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return the hubs of the components, and the largest effect at position 0."""
        one = effects[0]
        found: dict[str, Evidence | None] = {name: _hub(one, component) for name, component in HUBS.items()}
        if "kl_position" in one and one.setting.ablation == ABLATION:
            found["position"] = _position(one)
        return found

    def pair(self, claim: Claim, first: Evidence, second: Evidence) -> Evidence | None:
        """Return how far two hubs lie apart in depth."""
        return _apart(first, second) if isinstance(first, HubEvidence) and isinstance(second, HubEvidence) else None

    def architectures(self, claim: Claim, first: Sequence[Evidence], second: Sequence[Evidence]) -> Evidence | None:
        """Return how far the hubs of two architectures' training seeds lie apart in depth."""
        hubs = [[each for each in some if isinstance(each, HubEvidence)] for some in (first, second)]
        if not all(hubs):
            return None
        margin = 0.5 / max(min(each.layers for some in hubs for each in some) - 1, 1)
        depths = [[each.depth for each in some] for some in hubs]
        found = welch(*depths, log=False, margin=margin)
        spans = " and ".join(f"{min(some):.2f} to {max(some):.2f}" for some in depths)
        blocked = next((reason for some in hubs for each in some if (reason := each.blocked or _no_place(each))), "")
        return replace(found, words={"depths": f"depths {spans}"}, blocked=blocked)

    def describe(self, *effects: Effects) -> dict[str, Any]:
        """Return effects and ranks per layer, effects at position 0, and the strongest head beside the hub."""
        one, heads = effects
        kl = one["kl"]
        found: dict[str, Any] = {"effect": one.sample.effects(kl)}
        if one.control is not None:
            found["control"] = one.sample.effects(one.control)
        places = [largest(one.sample.briefly(), kl.sel(component=name)) for name in kl["component"].values]
        layers, known = kl["layer"].values, one.sample.clusters.resamples
        ranks = [place.ranks if place and known else np.full(len(layers), np.nan) for place in places]
        found["p_rank1"] = ("component", "layer"), ranks
        tied = [np.isin(layers, place.tied if place else ()).astype(float) for place in places]
        found["tied"] = ("component", "layer"), tied
        found["hub"] = "component", [float(place.label) if place else math.nan for place in places]
        if "kl_position" in one:
            found["position_effect"] = one.sample.effects(one["kl_position"])
        if heads is not None:
            found["head_over_layer"] = _head_over_layer(one, heads)
        return found

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per finding about a model, and one for its strongest head."""
        rows = super().table(dataset)
        for one in dataset["head_over_layer"].dropna("model", how="all") if "head_over_layer" in dataset else ():
            row = {"model": str(one["model"].item()), "number": "strongest head / hub"}
            rows.append({**row, "value": interval(*one.values.tolist()), **DASHES})
        return rows

    def called(self, name: str, one: xr.Dataset) -> str:
        """Return in a few words which layer, or component, a row of the table is about."""
        if name in HUBS:
            layer = int(one["hub"].sel(component=HUBS[name]))
            layers = int(one["effect"].sel(bound="value").notnull().any("component").sum())
            return f"{name.replace('_', ' ').replace('mlp', 'MLP')} {layer} ({layer - layers}), nats"
        effect = one["position_effect"].sel(where="first", bound="value")
        effect = effect.sel(component=[each for each in effect["component"].values if each != "joint"])
        best = effect.isel(effect.argmax(("layer", "component")))
        component = str(best["component"].item())
        return f"{'MLP' if component == 'mlp' else component} {best['layer'].item()} at pos. 0"


def _hub(one: Effects, component: str) -> HubEvidence | None:
    values = one["kl"].sel(component=component).transpose("prompt", "layer")
    place = largest(one.sample, values)
    if place is None:
        return None
    number, descriptive = _effect(one, values)
    depth = np.asarray(values["depth"].values, dtype=float)
    over = control = None
    if one.control is not None:
        beside = one.control.sel(component=component).isel(layer=place.index)
        control = one.sample.mean(beside, log=True)
        over = one.sample.ratio(values.isel(layer=place.index), beside)
    found = over_control(place.p, over, control)
    stands_out = not place.tie and place.p <= ALPHA
    return HubEvidence(
        **found,
        number=number,
        against="layers permuted and the control",
        answer=int(place.label),
        blocked=_why_not(one, place, "layer"),
        artefact="a random change of the same size does more" if found["side"] < 0 and stands_out else "",
        descriptive=descriptive,
        scale_free=place.over_next,
        words=_words(values, place),
        depth=float(depth[place.index]),
        depths=depth[place.draws],
        p_place=place.p,
        sure=place.p_rank1 if one.sample.clusters.resamples else math.nan,
        layers=values.sizes["layer"] + one.first_layer,
    )


def _why_not(one: Effects, place: Place, item: str) -> str:
    if place.runner_up is None:
        return f"one {item} only"
    if not one.sample.clusters.resamples:
        return "too few templates"
    return f"it ties with {item} {_listed(place)}" if place.tie else ""


def _listed(place: Place) -> str:
    """Return what ties, the first three of it."""
    return ", ".join(map(str, place.tied[:3])) + (" and others" if len(place.tied) > 3 else "")


def _words(values: xr.DataArray, place: Place) -> dict[str, str]:
    """Return what a sentence says of a layer."""
    resampled = place.runner_up is not None and math.isfinite(place.margin[1])
    return {
        "layer": str(place.label),
        "where": where(values, place.index),
        "lead": f"{interval(*place.margin)} nats more than the largest of the others"
        if place.tie
        else f"{interval(*place.over_next)} times the runner-up's effect (cross-fitted)",
        "sure": f"{place.p_rank1:.2f}" if resampled or place.runner_up is None else "–",
        "ties": f"; it ties with layer {_listed(place)}" if place.tie else "",
    }


def where(values: xr.DataArray, index: int) -> str:
    """Say where a layer is: its index from the end, its depth, its operator."""
    at = values.isel(layer=index)
    back = int(at["layer"]) - int(values["layer"][-1]) - 1
    return f"{back} counted from the end, depth {float(at['depth']):.2f}, {at['operator_type'].item()}"


def _effect(one: Effects, values: xr.DataArray) -> tuple[Bounds, bool]:
    """Return the effect of the largest, cross-fitted where halves of the templates choose otherwise, and whether so."""
    array = values.transpose("prompt", ...).values
    return largest_over(one.sample, array[:, np.isfinite(array).any(0)], np.ones(len(array)), log=True)


def _position(one: Effects) -> Evidence | None:
    """Return which operator or MLP has the largest effect at position 0."""
    parts = [name for name in one["kl_position"]["component"].values.tolist() if name != "joint"]
    values = one["kl_position"].sel(where="first", component=parts).transpose("prompt", "layer", "component")
    layers = values["layer"].values.tolist()
    flat = values.reset_coords(drop=True).drop_vars(["layer", "component"], errors="ignore")
    flat = flat.stack(part=("layer", "component"), create_index=False)
    labels = [f"{layer} ({'MLP' if name == 'mlp' else name})" for layer in layers for name in parts]
    place = largest(one.sample, flat.assign_coords(part=labels), "part")
    if place is None:
        return None
    number, descriptive = _effect(one, flat)
    at, component = divmod(place.index, len(parts))
    words = {"layer": str(layers[at]), "component": "MLP" if parts[component] == "mlp" else parts[component]}
    words |= {"where": where(values, at), "ties": f"; it ties with layer {_listed(place)}" if place.tie else ""}
    return Evidence(
        number=number,
        p=place.p,
        against="places permuted",
        side=1,
        answer=place.label,
        blocked=_why_not(one, place, "layer"),
        descriptive=descriptive,
        scale_free=place.over_next,
        words=words,
    )


def _apart(first: HubEvidence, second: HubEvidence) -> Evidence:
    """Return the difference in depth of two hubs, over paired draws, against half a layer of the shallower model."""
    margin = 0.5 / max(min(first.layers, second.layers) - 1, 1)
    drawn = first.depths - second.depths
    count, value = 1 + len(drawn), first.depth - second.depth
    ends = [float(np.quantile(drawn, q)) for q in (0.025, 0.975, 0.05, 0.95)]
    if math.isnan(first.sure) or math.isnan(second.sure):
        ends = [math.nan] * 4
    low, high = min(ends[0], value), max(ends[1], value)
    beyond = min((drawn <= margin).sum(), (drawn >= -margin).sum())
    outside = max((drawn >= margin).sum(), (drawn <= -margin).sum())
    sure = min(first.sure, second.sure) >= SURE
    return Evidence(
        number=(value, low, high),
        p=min(1.0, 2 * (1 + int(beyond)) / count),
        against="half a layer",
        side=int(low > margin or high < -margin),
        answer=int(np.sign(value)) if abs(value) > margin else 0,
        control=(0.0, -margin, margin),
        equal_p=(1 + int(outside)) / count,
        margin=margin,
        equal=bool(sure and -margin < ends[2] and ends[3] < margin),
        near=abs(value) < margin,
        blocked=_no_place(first) or _no_place(second),
        words={"depths": f"depths {first.depth:.2f} and {second.depth:.2f}"},
        draws=drawn,
    )


def _no_place(hub: HubEvidence) -> str:
    """Return why a hub is in no place: layers that can't be told apart have none."""
    if math.isnan(hub.p_place):
        return "one layer only"
    if math.isnan(hub.sure):
        return "too few templates"
    return "" if hub.p_place <= ALPHA else "no layer stands out in one of them"


def _head_over_layer(layers: Effects, heads: Effects) -> tuple[str, list[float]]:
    """Return the strongest head's effect over the strongest layer's, both chosen on half of the templates."""
    import xarray as xr

    joint, beside = xr.align(layers["kl"].sel(component="joint"), heads["kl"], join="inner", exclude=("layer",))
    whole = joint.transpose("prompt", "layer").values
    each = beside.transpose("prompt", "layer", "head").values.reshape(len(whole), -1)
    each = each[:, np.isfinite(each).any(0)]
    n, bounds = each.shape[1], UNKNOWN
    if n and len(whole) == layers["kl"].sizes["prompt"]:

        def pick(means: Floats) -> Floats:
            known = np.nan_to_num(means, nan=-1.0)
            return np.eye(len(means))[[int(known[:n].argmax()), n + int(known[n:].argmax())]]

        bounds, _ = layers.sample.cross_fit(np.column_stack([each, whole]), pick, log=True)
    return "bound", list(bounds)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [Hub]
