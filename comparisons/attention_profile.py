"""Where heads look: how much at position 0, and whether some follow the previous token or complete what was there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, hookimpl
from xatlas.comparisons.figures import attention as figure
from xatlas.findings import SHARE_MARGIN, Claim, ClaimComparison, Effects, Estimates, Evidence, Statistic
from xatlas.findings.estimates import bounds_of, side
from xatlas.findings.places import largest_over
from xatlas.stats import PERMUTATIONS

if TYPE_CHECKING:
    import xarray as xr

#: Kinds of heads, by what they attend to.
KINDS: Mapping[str, str] = {"previous": "the previous token", "induction": "what followed the same token before"}
#: Permutations of heads.
DRAWS = PERMUTATIONS // 5
#: The first query that is scored: see ``attention_patterns``.
_FIRST = 2


class AttentionProfile(ClaimComparison):
    """Share of attention on position 0, the strongest previous-token and induction head, and which lie deeper.

    Controls are what the same queries would give if they attended to all that they see alike; a share that exceeds its
    control by less than 0.10 counts as equal to it. The score of the strongest head is measured on the templates that
    it was not chosen on, and tested against heads that are equal (labels permuted within each template). How deep heads
    of a kind lie is the mean depth of all heads, each weighted by how far its score exceeds the control.

    ``first``, ``previous``, ``induction (model, layer, head)``: family-macro scores; ``even (model, score)``: the
    controls.
    """

    name = "attention_profile"
    version = 1
    summary = "How much attention lies on position 0, and where are previous-token and induction heads?"
    default = False
    requires = (Requirement("attention_patterns"),)
    claims = (
        Claim(
            "first_share",
            "Does position 0 draw more attention than each other token?",
            "Heads of {model} put {number} of their attention on position 0 (spread evenly: {control})",
            label="position 0",
            short="position 0 draws more attention than other tokens",
            margin=SHARE_MARGIN,
            pair="the share of attention on position 0",
            kinds=False,
        ),
        *(
            Claim(
                f"{kind}_head",
                f"Does one head attend more than the others to {what}?",
                f"In {{model}} {{head}} attends most to {what}: with {{number}} of its attention (spread "
                "evenly: {control})",
                label=f"{kind} head",
                short=f"one head attends more than others to {what}",
                kinds=False,
            )
            for kind, what in KINDS.items()
        ),
        Claim(
            "induction_deeper",
            "Do induction heads lie deeper than previous-token heads, as those that read what these write must?",
            "In {model} induction heads lie {number} of the depth behind previous-token heads (at {induction} and "
            "{previous})",
            label="induction - previous",
            short="induction heads lie behind previous-token heads",
            kinds=False,
        ),
    )
    nothing = "no attention"
    curves = ("first", "previous", "induction")
    variables: ClassVar = {
        "first": Variable(("layer", "head"), "1", "weight on position 0"),
        "previous": Variable(("layer", "head"), "1", "weight on the previous token"),
        "induction": Variable(("layer", "head"), "1", "weight on what followed the same token before"),
        "even": Variable(("score",), "1", "the same of attention that is spread evenly"),
    }
    absent: ClassVar = {
        name: "padding, a layer without attention, or a window that hides the token"
        for name in ("first", "previous", "induction")
    }
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return the share of position 0, the two strongest heads, and how far apart their kinds lie."""
        (one,) = effects
        even, found = _even(one), dict[str, Evidence | Statistic]()
        first = one["first_weight"].mean(("layer", "head"))
        if bool(first.notnull().any()):
            share, chance = one.sample.mean(first), one.sample.mean(even["first"])
            over = (share - chance).evidence(two_sided=False, margin=SHARE_MARGIN)
            found["first_share"] = replace(
                over, number=bounds_of(share), control=bounds_of(chance), statistic=share, against="an even spread"
            )
        depths = {}
        for kind in KINDS:
            scores = one[f"{kind}_score"].transpose("prompt", "layer", "head")
            if not bool(scores.notnull().any()):
                continue
            found[f"{kind}_head"] = _strongest(one, scores, even[kind])
            weight = (scores - even[kind]).clip(min=0).fillna(0.0)
            depths[kind] = one.sample.share(
                (weight * one.dataset["depth"]).sum(("layer", "head")), weight.sum(("layer", "head"))
            )
        if len(depths) == len(KINDS):
            words = {kind: f"{float(each.point):.2f}" for kind, each in depths.items()}
            gap = (depths["induction"] - depths["previous"]).evidence(two_sided=False)
            found["induction_deeper"] = replace(gap, words=words, control=(0.0, math.nan, math.nan))
        return found

    def describe(self, *effects: Effects) -> dict[str, xr.DataArray]:
        """Return every head's scores, and the controls."""
        import xarray as xr

        (one,) = effects
        names = {"first": "first_weight", "previous": "previous_score", "induction": "induction_score"}
        found = {name: one.sample.mean(one[held]).point for name, held in names.items()}
        even = [float(one.sample.mean(each).point) for each in _even(one).values()]
        return {**found, "even": xr.DataArray(even, dims="score", coords={"score": list(names)})}


def _even(one: Effects) -> dict[str, xr.DataArray]:
    """Return what evenly spread attention would score ``(prompt)``: one over how many tokens a query sees."""
    tokens = one.dataset["n_tokens"]
    period = int(one.dataset.attrs.get("period", 0))
    text = [np.mean(1 / np.arange(_FIRST + 1, n + 1)) if n > _FIRST else np.nan for n in tokens.values]
    again = float(np.mean(1 / np.arange(period + 2, 2 * period + 2))) if period else math.nan
    spread = tokens.copy(data=np.asarray(text, dtype=float))
    return {"first": spread, "previous": spread, "induction": spread.copy(data=np.full(tokens.shape, again))}


def _strongest(one: Effects, scores: xr.DataArray, even: xr.DataArray) -> Evidence:
    """Return what speaks for one head's being of a kind: chosen on half of the templates, measured on the others."""
    flat = scores.stack(place=("layer", "head")).dropna("place", how="all")
    means = one.sample.clusters.macro(flat.values)
    layer, head = flat["place"].values[int(np.nanargmax(means))]
    whole = np.where(np.isfinite(flat.values).any(1), 1.0, np.nan)
    number, _ = largest_over(one.sample, np.nan_to_num(flat.values), whole)
    control = bounds_of(one.sample.mean(even))
    low, high = number[1] - control[0], number[2] - control[0]
    return Evidence(
        number=number,
        p=one.sample.permuted(flat.drop_vars(("place", "layer", "head")), "place", lambda m: m.max(-1), DRAWS),
        against="equal heads",
        side=side(*number[1:], control[0]),
        answer=bool(means[np.isfinite(means)].max() > control[0]),
        control=control,
        equal=low >= -SHARE_MARGIN and high <= SHARE_MARGIN,
        near=abs(number[0] - control[0]) <= SHARE_MARGIN,
        margin=SHARE_MARGIN,
        blocked="" if one.sample.clusters.resamples else "too few templates",
        descriptive=True,
        words={"head": f"head {head} of layer {layer}"},
    )


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [AttentionProfile]
