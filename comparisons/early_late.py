"""Whether early layers matter more than late ones, and whether models share the profile over depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, hookimpl
from xatlas.comparisons.figures import early_late as figure
from xatlas.findings import RATIO_MARGIN, Claim, ClaimComparison, Effects, Estimates
from xatlas.findings.groups import halves, rank_correlation
from xatlas.stats import Floats

if TYPE_CHECKING:
    import xarray as xr

#: Where curves of models with different layer counts are interpolated to be correlated, and for nothing else.
DEPTHS = np.linspace(0, 1, 20)


class EarlyLate(ClaimComparison):
    """Mean ``joint`` effect of the first half of the layers over the second; an odd middle layer is left out.

    The claim about a model is that this ratio of macro means differs from 1, also relative to the control's ratio. The
    claim about two models is that their profiles over depth correlate (Spearman, on 20 interpolated depths) more
    than with one model's layers permuted (the control: mean and middle 95 %): the difference, both as uncertain as they
    are, has to clear 0. ``profile (model, layer, bound)``: each layer's effect over the mean layer's;
    ``profile_control (model, layer)``.
    """

    name = "early_late"
    version = 3
    summary = "Do early layers matter more than late ones, and do models share the profile over depth?"
    requires = (Requirement("layer_ablation"),)
    claims = (
        Claim(
            "early_over_late",
            "Does the first half of the layers matter more than the second, or less?",
            "In {model} the first half of the layers matters {number} times as much as the second (control {control})",
            label="early / late",
            short="{which} layers matter more",
            margin=RATIO_MARGIN,
            pair="the ratio of early to late layers",
        ),
        Claim(
            "profile_correlation",
            "Is the effect spread over depth alike in two models?",
            "Over depth, effects in {first} and {second} correlate: {number}, with layers permuted {control}",
            label="correlation",
            short="effects over depth correlate",
        ),
    )
    curves = ("profile",)
    variables: ClassVar = {
        "profile": Variable(("layer", "bound"), "1", "joint effect over the mean layer's"),
        "profile_control": Variable(("layer",), "1", "the control's effect over the mean layer's"),
    }
    absent: ClassVar = {"profile": "padding of models with fewer layers"}
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return the ratio of the halves."""
        (one,) = effects
        ratio = one.sample.ratio(*halves(one["kl"].sel(component="joint")))
        if one.control is not None:
            ratio = ratio.against(one.sample.ratio(*halves(one.control.sel(component="joint"))))
        which = "early" if float(ratio.point) > 0 else "late"
        return {"early_over_late": replace(ratio, words={"which": which})}

    def between(self, first: Sequence[Effects], second: Sequence[Effects]) -> Estimates:
        """Return the correlation of two profiles."""
        a, b = first[0], second[0]
        curves, draws = zip(*(_profile(each) for each in (a, b)), strict=True)
        freedom = float(np.min([_freedom(a), _freedom(b)]))
        found = rank_correlation(a.sample, curves, draws, freedom, "layers permuted", interpolated)
        return {"profile_correlation": found}

    def describe(self, *effects: Effects) -> dict[str, xr.DataArray]:
        """Return the profile through the measured layers."""
        (one,) = effects
        kl = one["kl"].sel(component="joint")
        found = {"profile": one.sample.ratio(kl, kl.mean("layer")).bounds()}
        if one.control is not None:
            control = one.sample.mean(one.control.sel(component="joint"), log=True)
            level = float(one.sample.mean(kl.mean("layer")).point)
            found["profile_control"] = control.bounds().sel(bound="value", drop=True) / level
        return found


def interpolated(curves: Floats) -> Floats:
    """Return curves ``(…, layer)`` at 20 depths ``(…, point)``."""
    n_layers = curves.shape[-1]
    place = DEPTHS * (n_layers - 1)
    below = np.minimum(place.astype(int), max(n_layers - 2, 0))
    above = np.minimum(below + 1, n_layers - 1)
    return np.asarray(curves[..., below] + (curves[..., above] - curves[..., below]) * (place - below))


def _profile(effects: Effects) -> tuple[Floats, Floats]:
    """Return the family-macro effects ``(layer)`` and bootstrap draws of them ``(draw, layer)``."""
    values = effects["kl"].sel(component="joint").transpose("prompt", "layer").values
    return effects.sample.clusters.macro(values), effects.sample.clusters.macro_draws(values)


def _freedom(effects: Effects) -> float:
    return effects.sample.mean(effects["kl"].sel(component="joint").mean("layer")).freedom()


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [EarlyLate]
