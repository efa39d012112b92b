"""How many bits a byte of text costs each model, and which family's texts cost most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, hookimpl
from xatlas.comparisons.figures import loss as figure
from xatlas.findings import RATIO_MARGIN, Claim, ClaimComparison, Effects, Estimates, Evidence, largest
from xatlas.findings.estimates import bounds_of
from xatlas.findings.groups import rank_correlation
from xatlas.stats import PERMUTATIONS, dealt

if TYPE_CHECKING:
    import xarray as xr

#: How often templates are dealt out to families.
DRAWS = PERMUTATIONS // 5


class LossProfile(ClaimComparison):
    """Losses of texts in bits per byte, which models with other tokens share; nats per token are not compared.

    Claims about a network: that its bits per byte are fewer than those of guessing among all tokens of its vocabulary;
    and that the texts of one family cost most, against templates dealt out to families at random. Claims about two
    networks: that their bits per byte differ, over the same templates; and that the families that cost one much cost
    the other much, too (Spearman, against families permuted).

    ``loss (model, family, bound)``; ``overall (model, bound)``, the family-macro mean, and ``guess (model, bound)``.
    """

    name = "loss_profile"
    version = 1
    summary = "How many bits a byte of text costs, by family, whatever the tokenizer?"
    default = False
    requires = (Requirement("token_loss"),)
    claims = (
        Claim(
            "loss",
            "Are the texts predicted better than by guessing among all tokens alike?",
            "In {model} a byte of text costs {number} bits (guessing among all tokens: {control})",
            label="bits per byte",
            short="texts are predicted better than by guessing",
            pair="the number of bits per byte",
            margin=RATIO_MARGIN,
            kinds=False,
            units="bit/byte",
        ),
        Claim(
            "hardest",
            "Do the texts of one family cost most?",
            "In {model} texts of family {family} cost most: {number} times as many bits per byte as those of {next}, "
            "P(rank 1) {sure}{ties}",
            label="hardest family over next",
            short="texts of family {family} cost most",
            kinds=False,
        ),
        Claim(
            "families",
            "Do the families that cost one model much cost the other much?",
            "Over families, bits per byte in {first} and {second} correlate: {number}, with families in random order "
            "{control}",
            label="correlation over families",
            short="the same families cost much",
            kinds=False,
        ),
    )
    narrow = True
    curves = ("overall",)
    variables: ClassVar = {
        "loss": Variable(("family", "bound"), "bit/byte", "bits per byte of a family's texts"),
        "overall": Variable(("bound",), "bit/byte", "bits per byte, mean over families"),
        "guess": Variable(("bound",), "bit/byte", "bits per byte of guessing among all tokens alike"),
    }
    absent: ClassVar = {"loss": "another model's family, or one of a single template: no interval"}
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return the bits per byte beside those of guessing, and the family that costs most."""
        (one,) = effects
        bits, guess = one["bits_per_byte"], one["bits_per_byte_uniform"]
        overall, fewer = one.sample.mean(bits, log=True), one.sample.ratio(guess, bits)
        found = fewer.evidence(two_sided=False)
        loss = replace(
            found,
            number=bounds_of(overall),
            control=bounds_of(one.sample.mean(guess, log=True)),
            against="guessing",
            scale_free=found.number,
            statistic=overall,
        )
        return {"loss": loss, "hardest": _hardest(one)}

    def between(self, first: Sequence[Effects], second: Sequence[Effects]) -> Estimates:
        """Return the correlation of two models' losses over families."""
        a, b = first[0], second[0]
        shared = [name for name in a.sample.clusters.families if name in b.sample.clusters.families]
        if len(shared) < 3:
            return {}
        means, draws = [], []
        for each in (a, b):
            at = [each.sample.clusters.families.index(name) for name in shared]
            columns = _columns(each).values[:, at]
            means.append(each.sample.clusters.macro(columns))
            draws.append(each.sample.clusters.macro_draws(columns))
        freedom = float(np.min([each.sample.mean(each["bits_per_byte"]).freedom() for each in (a, b)]))  # NaN wins
        found = rank_correlation(a.sample, means, draws, freedom, "families permuted")
        if found is None:
            return {}
        blocked = "" if np.isfinite(freedom) else "too few templates"
        least = 1 / math.factorial(len(shared))
        return {"families": replace(found, least_p=least, sample="families", blocked=blocked)}

    def describe(self, *effects: Effects) -> dict[str, xr.DataArray]:
        """Return bits per byte by family and over all."""
        import xarray as xr

        (one,) = effects
        bits, families = one["bits_per_byte"], one.sample.clusters.families
        each = [one.sample.mean(bits.where(bits["family"] == name), log=True).bounds() for name in families]
        return {
            "loss": xr.concat(each, xr.Variable("family", list(families))),
            "overall": one.sample.mean(bits, log=True).bounds(),
            "guess": one.sample.mean(one["bits_per_byte_uniform"], log=True).bounds(),
        }

    def called(self, name: str, one: xr.Dataset) -> str:
        """Return the label of a number, the family by its name."""
        hardest = one["loss"].sel(bound="value").idxmax("family").item()
        return f"{hardest} / next family" if name == "hardest" else super().called(name, one)


def _columns(one: Effects) -> xr.DataArray:
    """Return ``(prompt, family)`` whose macro means are the families' means: a column is 0 in all other families."""
    import xarray as xr

    bits, families = one["bits_per_byte"], one.sample.clusters.families
    own = bits["family"].values[:, None] == np.array(families)
    values = np.where(np.isfinite(bits.values)[:, None], own * bits.values[:, None] * len(families), np.nan)
    return xr.DataArray(values, dims=("prompt", "kind"), coords={"kind": list(families)})


def _hardest(one: Effects) -> Evidence | None:
    """Return what speaks for one family's texts costing most: templates are dealt out to families for the test."""
    place = largest(one.sample, _columns(one), "kind")
    if place is None or place.runner_up is None:
        return None
    clusters, bits = one.sample.clusters, one["bits_per_byte"].values
    known = clusters.member @ np.isfinite(bits)
    held = [own[known[own] > 0] for own in clusters.rows]
    held = [own for own in held if len(own)]
    means = (clusters.member @ np.nan_to_num(bits))[np.concatenate(held)] / known[np.concatenate(held)]
    sizes = [len(own) for own in held]
    starts = np.cumsum([0, *sizes[:-1]])

    def lead(order: Any) -> float:
        each = np.add.reduceat(means[order], starts) / sizes
        return float(each.max() - each.mean())

    chance, least = dealt(sizes, lead, 0 if one.sample.brief else DRAWS, clusters.seed)
    reached = int((chance >= lead(np.arange(len(means))) - 1e-12).sum())
    sure = f"{place.p_rank1:.2f}" if clusters.resamples else "–"
    tied = f"it ties with {', '.join(map(str, place.tied[:3]))}" if place.tie else ""
    return Evidence(
        number=place.over_next,
        p=(1 + reached) / (1 + len(chance)) if chance.size else math.nan,
        against="templates dealt out to families",
        side=1,
        answer=place.label,
        least_p=least,
        blocked="too few templates" if not clusters.resamples else tied,
        descriptive=True,
        words={
            "family": str(place.label),
            "next": str(place.runner_up),
            "sure": sure,
            "ties": f"; {tied}" if tied and clusters.resamples else "",
        },
    )


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [LossProfile]
