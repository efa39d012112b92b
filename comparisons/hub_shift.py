"""Whether fine-tuning moved the hub: a tuned model's beside its base's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xatlas import Comparison, Requirement, hookimpl
from xatlas.findings import Claim, ClaimComparison, Effects, Estimates, Evidence, Place, largest
from xatlas.stats import Floats

if TYPE_CHECKING:
    import xarray as xr


class HubShift(ClaimComparison):
    """Whether the layer whose joint ablation changes the output most is the same before and after fine-tuning.

    A tuned model is ``BASE+LORA``; it is held beside its base where both are in the atlas. The number is, in the tuned
    model, the effect of the base's hub over that of the largest other layer (cross-fitted over halves of the
    templates): above 1 the hub has stayed, below it another layer has taken its place. Either is claimed only of hubs
    that stand out, in both models: P(rank 1) of at least 0.95, and layers permuted within templates.
    """

    name = "hub_shift"
    version = 1
    summary = "Did fine-tuning move the hub?"
    default = False
    uses_twins = False
    requires = (Requirement("layer_ablation"),)
    claims = (
        Claim(
            "hub",
            "Which layer is the hub: the one whose ablation changes the output most?",
            "The hub of {model} is layer {layer}: it matters {number} times as much as the largest other layer",
            label="hub / next",
            short="the hub is layer {layer}",
        ),
        Claim(
            "hub_stays",
            "Is the hub where it was before fine-tuning?",
            "Fine-tuning leaves the hub of {base} in layer {layer}: in {tuned}, whose hub is layer {now}, it matters "
            "{number} times as much as the largest other layer",
            label="hub stays",
            short="fine-tuning leaves the hub in layer {layer}",
        ),
    )

    def estimate(self, *effects: Effects) -> Estimates:
        """Return the hub of one model."""
        (one,) = effects
        place = largest(one.sample, _joint(one))
        if place is None:
            return {}
        found = Evidence(
            number=place.over_next,
            p=place.p,
            against="layers permuted",
            side=1,
            answer=int(place.label),
            control=(1.0, math.nan, math.nan),
            blocked=_open(one, place),
            descriptive=True,
            words={"layer": str(place.label)},
        )
        return {"hub": found}

    def between(self, first: Sequence[Effects], second: Sequence[Effects]) -> Estimates:
        """Return whether the tuned one of two models has its base's hub; nothing of other pairs."""
        base, tuned = sorted((first[0], second[0]), key=lambda each: len(each.model))
        if not tuned.model.startswith(f"{base.model}+"):
            return {}
        before, after = (largest(each.sample, _joint(each)) for each in (base, tuned))
        if before is None or after is None:
            return {}
        number, same = _lead(tuned, before.index), before.label == after.label
        words = {"base": base.model, "tuned": tuned.model, "layer": str(before.label), "now": str(after.label)}
        found = Evidence(
            number=number,
            p=max(before.p, after.p),
            against="layers permuted, in either model",
            side=int(same and number[1] > 1) - int(not same and number[2] < 1),
            answer=bool(same),
            control=(1.0, math.nan, math.nan),
            blocked=_open(base, before) or _open(tuned, after),
            descriptive=True,
            words=words,
        )
        return {"hub_stays": found}


def _joint(one: Effects) -> xr.DataArray:
    return one["kl"].sel(component="joint").transpose("prompt", "layer")


def _open(one: Effects, place: Place) -> str:
    """Return why a model has no one hub."""
    if not one.sample.clusters.resamples:
        return "too few templates"
    if place.runner_up is None:
        return "one layer only"
    return f"in {one.model} layer {place.label} ties with layer {place.tied[0]}" if place.tie else ""


def _lead(one: Effects, layer: int) -> tuple[float, float, float]:
    """Return the effect of a layer over that of the largest other, which is chosen on half of the templates."""

    def pick(means: Floats) -> Floats:
        others = np.where(np.arange(len(means)) == layer, -np.inf, np.nan_to_num(means, nan=-np.inf))
        return np.eye(len(means))[[layer, int(others.argmax())]]

    return one.sample.cross_fit(_joint(one).values, pick, log=True)[0]


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [HubShift]
