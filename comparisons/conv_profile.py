"""Which factor and which tap carries the convolutions of a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, hookimpl
from xatlas.comparisons.figures import conv as figure
from xatlas.findings import Claim, ClaimComparison, Effects, Estimates, Evidence, Place, largest
from xatlas.findings.estimates import bounds_of
from xatlas.findings.places import over_control
from xatlas.stats import AGREEMENT, PERMUTATIONS

if TYPE_CHECKING:
    import xarray as xr

#: Names of the dimensions that are looked at.
PARTS = ("factor", "tap")
_ALGEBRA = "algebra: a product with a factor of zero is zero, whichever factor it is"


class ConvProfile(ClaimComparison):
    """Effects of the factors (gate, carrier, signal) and of the kernel's taps, conv layer by conv layer.

    ``factor_effect (model, layer, factor, bound)`` at ablation ``mean`` and ``tap_effect (model, layer, tap, bound)``:
    KL at the readout position; ``factor_control`` and ``tap_control`` that of random changes of equal norm.
    The claims are that one factor, and one tap, has the largest effect summed over all conv layers, more so than its
    control has. ``factor_lead`` and ``tap_lead (model)`` name it, with P(rank 1).
    """

    name = "conv_profile"
    version = 3
    summary = "Which factor and which tap carries the convolutions, and in which layers?"
    default = False
    requires = (Requirement("conv_factors"), Requirement("conv_taps"))
    claims = (
        Claim(
            "factor_lead",
            "Does one factor of the convolutions (gate, carrier, signal) matter most?",
            "In {model} the {lead} matters most of the factors: {number} times as much as the {next}, summed over "
            "{layers} conv layers (random changes of equal norm: {control})",
            label="factor",
            short="of the factors of the convolutions the {lead} matters most",
        ),
        Claim(
            "tap_lead",
            "Does one tap of the convolutions' kernels matter most?",
            "In {model} tap {lead} matters most of the taps: {number} times as much as tap {next}, summed over "
            "{layers} conv layers (random changes of equal norm: {control})",
            label="tap",
            short="tap {lead} of the convolutions matters most",
            kinds=False,
        ),
        Claim(
            "zero_alike",
            "Does zeroing any factor give the same number, as if each were as necessary as the others?",
            "In {model} zeroing any factor of a convolution gives the same KL: largest over smallest {number}",
            label="factors zeroed",
            short="zeroing any factor of a convolution gives the same number",
            kinds=False,
        ),
    )
    variables: ClassVar = {
        "factor_effect": Variable(("layer", "factor", "bound"), "nats", "KL when the factor is set to its mean"),
        "factor_control": Variable(("layer", "factor", "bound"), "nats", "KL of a random change of equal norm"),
        "tap_effect": Variable(("layer", "tap", "bound"), "nats", "KL when the tap is zeroed"),
        "tap_control": Variable(("layer", "tap", "bound"), "nats", "KL of a random change of equal norm"),
        "factor_lead": Variable((), "1", "factor with the largest effect over all conv layers; empty without any"),
        "tap_lead": Variable((), "1", "tap with the largest effect over all conv layers; empty without any"),
        "factor_p_rank1": Variable((), "1", "P(rank 1) of the leading factor"),
        "tap_p_rank1": Variable((), "1", "P(rank 1) of the leading tap"),
    }
    absent: ClassVar = {
        f"{part}_{what}": "padding, a layer without a convolution, or a kernel without that tap"
        for part in PARTS
        for what in ("effect", "control")
    }
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return which factor and which tap leads; zeroed factors say nothing about that, and ``one`` has no signal."""
        factors, taps = effects
        found = {"factor_lead": _lead(factors, "factor")} if factors.setting.ablation != "zero" else {}
        if factors.setting.ablation == "mean":  # taps have no kinds: under others it would be the same again
            found |= {"tap_lead": _lead(taps, "tap"), "zero_alike": _zero_alike(factors)}
        return found

    def describe(self, *effects: Effects) -> dict[str, Any]:
        """Return each layer's effects and controls, and who leads."""
        found: dict[str, Any] = {}
        for part, one in zip(PARTS, effects, strict=True):
            kl, control = one["kl"], one.control
            found[f"{part}_effect"] = one.sample.mean(kl, log=True).bounds()
            found[f"{part}_control"] = one.sample.mean(kl * np.nan if control is None else control, log=True).bounds()
            first = _first(one, part)
            found[f"{part}_lead"] = str(first.label) if first else ""
            found[f"{part}_p_rank1"] = first.p_rank1 if first and one.sample.clusters.resamples else math.nan
        return found

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per finding about a model; one with dashes for a model without conv layers."""
        rows: list[dict[str, str | float]] = []
        shown = super().table(dataset)
        for model in map(str, dataset["model"].values):
            own = [row for row in shown if row["model"] == model]
            dashes = dict.fromkeys(("value", "control", "verdict"), "–")
            rows += own or [{"model": model, "number": "no conv layers", **dashes}]
        return rows

    def called(self, name: str, one: xr.Dataset) -> str:
        """Return the label of a number, a factor or tap by its name."""
        label = super().called(name, one)
        return f"{label} {one[name].item()} / next" if name in one else label


def _summed(values: xr.DataArray) -> xr.DataArray:
    """Return the sums over conv layers; NaN where there is none."""
    return values.sum("layer", min_count=1)


def _first(one: Effects, part: str) -> Place | None:
    return largest(one.sample, _summed(one["kl"]), part)


def _lead(one: Effects, part: str) -> Evidence | None:
    """Return what speaks for one label's having the largest effect, more so than with random changes of equal norm."""
    first = _first(one, part)
    if first is None or first.runner_up is None:
        return None
    summed, clusters = _summed(one["kl"]), one.sample.clusters
    there = int(one["kl"].notnull().any(("prompt", part)).sum())
    pair = [first.label, first.runner_up]
    words = {"lead": str(first.label), "next": str(first.runner_up), "layers": str(there)}

    chance = over = None
    if one.control is not None:
        chance = one.sample.ratio(*(_summed(one.control).sel({part: label}) for label in pair))
        over = one.sample.ratio(*(summed.sel({part: label}) for label in pair)) - chance
    found = over_control(first.p, over, chance)
    ties = f"it ties with {', '.join(map(str, first.tied))}" if first.tie and found["side"] >= 0 else ""
    return Evidence(
        **found,
        number=first.over_next,
        against=f"{part}s permuted" + (" and random changes" if over is not None else ""),
        answer=first.label,
        least_p=max(1 / (1 + PERMUTATIONS // 5), float(summed.notnull().any("prompt").sum()) ** (1 - clusters.size)),
        words=words,
        descriptive=True,
        blocked=ties if clusters.resamples else "too few templates",
    )


def _zero_alike(factors: Effects) -> Evidence | None:
    """Return the claim that every factor is as necessary as the others, where factors were zeroed.

    Without a conv bias the product is zero in any case, so that the numbers agree whatever the model does.
    """
    whole = factors.reading.dataset
    if not factors.reading.holds("ablation", "zero") or "ablation" not in whole.dims:
        return None
    zeroed = whole["kl"].sel(ablation="zero", scope=factors.setting.scope, drop=True)
    kl = _summed(zeroed.isel(layer=slice(factors.first_layer, None)))
    means = factors.sample.mean(kl).point
    if not np.isfinite(means.values).any():
        return None
    top, bottom = kl.isel(factor=int(means.argmax("factor"))), kl.isel(factor=int(means.argmin("factor")))
    gap = float(means.max() - means.min())
    alike = gap <= AGREEMENT[0] + AGREEMENT[1] * float(means.max())
    number, artefact = bounds_of(factors.sample.ratio(top, bottom)), _ALGEBRA if alike else ""
    return Evidence(number, side=0 if alike else -1, answer=alike, artefact=artefact)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [ConvProfile]
