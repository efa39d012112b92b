"""At which depth the logit lens first shows the answer, beside chance and untrained twins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, hookimpl
from xatlas.comparisons.figures import lens as figure
from xatlas.findings import Claim, ClaimComparison, Effects, Estimates, Evidence
from xatlas.findings.estimates import bounds_of
from xatlas.findings.readings import sample_of

if TYPE_CHECKING:
    import xarray as xr

#: Half a layer of the shallower model is no difference in depth.
HALF = 0.5


class LensProfile(ClaimComparison):
    """The depth from which on the answer is the likeliest token of the logit lens, to the end.

    Of the prompts that a model gets right: those whose target its output puts first. The control is chance: the depth
    that the same layers would give in random order, with the output last. The claim is that the answer comes earlier
    than that: where it has appeared, it stays. Untrained twins get nothing right, so what is compared with theirs is
    the depth from which on the output's own likeliest token comes first, whether it is right or not, of all
    prompts (``settled``). Two models are compared on the prompts that both get right; half a layer of the shallower is
    no difference.

    ``on_top (model, layer, bound)``: share of right prompts with the answer on top after the layer; ``rank (model,
    layer, bound)``: geometric mean of its rank; ``settled (model, bound)``; ``right``, ``prompts``, ``vocabulary
    (model)``.
    """

    name = "lens_profile"
    version = 1
    default = False
    summary = "At which depth does the logit lens show the answer, in prompts that the model gets right?"
    requires = (Requirement("logit_lens"),)
    claims = (
        Claim(
            "onset",
            "From which depth on is the answer the likeliest token, earlier than layers in random order would give?",
            "In {model} the answer is the likeliest token from depth {number} on (about layer {layer}; layers in "
            "random order: {control}), in the {right} of {prompts} prompts that it gets right",
            label="answer on top from",
            short="the lens shows the answer from about layer {layer} on",
            pair="the depth at which the lens shows the answer",
        ),
    )
    variables: ClassVar = {
        "on_top": Variable(("layer", "bound"), "1", "share of right prompts with the answer on top"),
        "rank": Variable(("layer", "bound"), "1", "geometric mean rank of the answer"),
        "settled": Variable(("bound",), "1", "depth from which on the output's token is on top, all prompts"),
        "right": Variable((), "1", "prompts that the model gets right"),
        "prompts": Variable((), "1", "prompts"),
        "vocabulary": Variable((), "1", "tokens to choose from"),
    }
    absent: ClassVar = dict.fromkeys(
        ("on_top", "rank"), "padding of models with fewer layers, or no prompt that the model gets right"
    )
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return the depth at which the answer appears, beside that of layers in random order."""
        (one,) = effects
        if not one.setting.layer0:  # from where on something stays does not change with the beginning cut off
            return {}
        right, count = _right(one), one.dataset.sizes["prompt"]
        settled = bounds_of(one.sample.mean(_depth(_after(one, "top_is_final") == 1)))
        words = {"layer": "–", "right": str(int(right.sum())), "prompts": str(count)}
        if not bool(right.any()):
            return {"onset": Evidence(blocked="it gets no prompt right", scale_free=settled, words=words)}
        onset, chance = (each.where(right) for each in _onset(one))
        shown = one.sample.mean(onset)
        earlier = one.sample.mean(chance - onset).evidence(two_sided=False)
        n_layers = one.dataset.sizes["layer"]
        found = replace(
            earlier,
            number=bounds_of(shown),
            control=bounds_of(one.sample.mean(chance)),
            against="layers in random order",
            blocked="too few layers" if n_layers < 3 else "",
            scale_free=settled,
            words=words | {"layer": f"{float(shown.point) * (n_layers - 1):.0f}"},
            statistic=shown,
        )
        return {"onset": found}

    def pair(self, claim: Claim, first: Evidence, second: Evidence) -> Evidence | None:
        """Return None: models are compared on the prompts that both get right, which :meth:`between` knows."""
        return None

    def between(self, first: Sequence[Effects], second: Sequence[Effects]) -> Estimates:
        """Return the difference in depth, on the prompts that both models get right."""
        one, two = first[0], second[0]
        if not (one.setting.layer0 and bool(_right(one).any()) and bool(_right(two).any())):
            return {}
        held = set(two.dataset["prompt"].values.tolist())
        common = [name for name in one.dataset["prompt"].values.tolist() if name in held]
        depths = [_onset(each)[0].where(_right(each)).sel(prompt=common) for each in (one, two)]
        gap = depths[0].copy(data=depths[0].values - depths[1].values)
        if not bool(gap.notnull().any()):
            return {"onset": Evidence(blocked="no prompt that both get right")}
        shallower = min(each.dataset.sizes["layer"] for each in (one, two))
        sample = sample_of(one.dataset.sel(prompt=common))
        return {"onset": sample.mean(gap).evidence(margin=HALF / max(shallower - 1, 1))}

    def describe(self, *effects: Effects) -> dict[str, Any]:
        """Return the answer's share of first places and its rank over depth."""
        (one,) = effects
        rank, right = _after(one, "target_rank"), _right(one)
        ranks = one.sample.mean(rank.copy(data=np.log(rank.values)).where(right)).bounds()
        counts = {"right": right.sum(), "prompts": right.size, "vocabulary": one.dataset.attrs["vocabulary"]}
        return {
            "on_top": one.sample.mean((rank == 1).astype(float).where(right)).bounds(),
            "rank": ranks.copy(data=np.exp(ranks.values)),
            "settled": one.sample.mean(_depth(_after(one, "top_is_final") == 1)).bounds(),
            **{name: float(count) for name, count in counts.items()},
        }


def _after(one: Effects, name: str) -> xr.DataArray:
    """Return ``(prompt, layer)`` of the stream after each layer."""
    return one[name].sel(site="resid_post", drop=True).transpose("prompt", "layer")


def _right(one: Effects) -> xr.DataArray:
    return _after(one, "target_rank").isel(layer=-1, drop=True) == 1


def _depth(there: xr.DataArray) -> xr.DataArray:
    """Return the depth from which on ``there (prompt, layer)`` is true to the end; NaN where the end is not."""
    kept = np.logical_and.accumulate(there.values[:, ::-1], axis=1)[:, ::-1]
    depth = there["depth"].values[kept.argmax(1)]
    return there.isel(layer=0, drop=True).copy(data=np.where(kept[:, -1], depth, math.nan))


def _onset(one: Effects) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the depth from which on the answer is on top, and that expected with layers in random order ``(prompt)``.

    Of n layers before the last, k have the answer on top: in random order k / (n - k + 1) of them end the row.
    """
    top = _after(one, "target_rank") == 1
    n_before = top.sizes["layer"] - 1
    hits = top.isel(layer=slice(-1)).sum("layer")
    run = hits / (n_before - hits + 1)
    return _depth(top), (n_before - run) / max(n_before, 1)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [LensProfile]
