"""At which depth steering works, and whether families' directions do more than random ones like them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas import Comparison, Requirement, Variable, XatlasError, hookimpl
from xatlas.comparisons.figures import steering as figure
from xatlas.findings import RATIO_MARGIN, Claim, ClaimComparison, Effects, Estimates, Evidence, Statistic
from xatlas.findings.groups import halves
from xatlas.findings.verdict import ALPHA
from xatlas.stats import Floats, quantile

if TYPE_CHECKING:
    import xarray as xr

#: ``matched``: random with the stream's covariance; ``family``: the prompt's own family's direction; ``off_task``:
#: other families' directions.
KINDS = ("random", "matched", "family", "off_task", "shuffled")
SCALES = ("absolute", "relative")
#: How often as many matched directions as there are families are drawn.
DRAWS = 10_000
_NORM = "it is so at one length in every layer only: the stream is shorter in early layers"


class SteeringProfile(ClaimComparison):
    """Effects of directions added layer by layer, at fixed length and at fixed share of the stream's norm.

    ``effect (model, kind, scale, dose, layer, bound)``: KL(clean ‖ steered), family-macro, mean over both signs of a
    dose, for random directions, random ones with the stream's covariance (matched), the prompt's own family's
    direction, other families' (off-task) and those with shuffled labels; ``spread`` holds 95 % of a kind's single
    directions, and their median; ``response (model, kind, dose, bound)`` is the mean over layers at relative strength.
    ``rank (model, layer, bound)``: the share of single matched directions that do less than the family's; the claim is
    that its mean over layers exceeds that of matched directions in the family's place. ``early_over_late`` is judged at
    relative strength: the stream's norm grows with depth, so that one length is a large change early and a small one
    late.
    """

    name = "steering_profile"
    version = 4
    summary = "At which depth does steering work, beyond what the norm of the stream explains?"
    default = False
    requires = (Requirement("steering"),)

    @dataclass(frozen=True)
    class Parameters:
        """What is shown.

        Parameters
        ----------
        dose : float
            Magnitude of strength that profiles and findings are told at; the nearest measured one is taken.
        """

        dose: float = 0.25

        def __post_init__(self) -> None:
            if not (self.dose > 0 and math.isfinite(self.dose)):
                raise XatlasError(f"steering_profile.dose = {self.dose:g} does not fit: it takes a number above 0.")

    claims = (
        Claim(
            "rank",
            "Do families' own directions do more than random directions with the stream's covariance?",
            "In {model} a family's own direction does more than {number} of single matched directions, mean over "
            "layers at dose {dose} (matched directions in its place: {control})",
            label="rank among matched",
            short="families' own directions do more than matched random ones",
            kinds=False,
        ),
        Claim(
            "early_over_late",
            "Do families' own directions steer early layers more than late ones, at one share of the stream's norm?",
            "In {model} families' own directions steer the first half of the layers {number} times as much as the "
            "second at one share of the stream's norm (matched directions {control}; at one length {length})",
            label="early / late",
            short="early layers are steered more than late ones",
            margin=RATIO_MARGIN,
            pair="the ratio of steering early to late layers",
            kinds=False,
        ),
    )
    _curves = ("kind", "scale", "dose", "layer", "bound")
    curves = ("effect",)
    variables: ClassVar = {
        "effect": Variable(_curves, "nats", "KL(clean || steered), both signs"),
        "spread": Variable(_curves, "nats", "median and 95 % range over a kind's single directions"),
        "response": Variable(("kind", "dose", "bound"), "nats", "KL(clean || steered), mean layer, relative strength"),
        "delta_logit_diff": Variable(
            ("kind", "scale", "layer", "bound"), "logits", "change of target minus foil, towards the direction"
        ),
        "rank": Variable(("layer", "bound"), "1", "share of single matched directions that do less than the family's"),
        "median_norm": Variable(("layer",), "1", "median norm of the stream at the readout position"),
        "dose_shown": Variable((), "1", "dose at which profiles and findings are told"),
    }
    absent: ClassVar = {
        "effect": "padding of models with fewer layers, or a kind of direction or dose that was not measured",
        "delta_logit_diff": "prompts without a foil, or no strength above 0 at the dose shown",
    }
    plot = staticmethod(figure.draw)

    def estimate(self, *effects: Effects) -> Estimates:
        """Return the rank of families' directions, and early over late."""
        (one,) = effects
        dose = self._dose(one)
        found = {"rank": _rank(one, dose), "early_over_late": _early(one, dose)}
        return {name: replace(each, words={**each.words, "dose": f"{dose:g}"}) for name, each in found.items() if each}

    def pair(self, claim: Claim, first: Evidence, second: Evidence) -> Evidence | None:
        """Return evidence that two models differ; none at different doses."""
        found = super().pair(claim, first, second)
        apart = first.words.get("dose") != second.words.get("dose")
        return replace(found, blocked="steered at different doses") if found and apart else found

    def describe(self, *effects: Effects) -> dict[str, Any]:
        """Return curves over depth and dose."""
        import xarray as xr

        (one,) = effects
        sample, shown = one.sample, self._dose(one)
        held = doses(one)
        each = [by_kind(one["kl"], signed(one, dose)) for dose in held]
        kl = xr.concat(each, xr.Variable("dose", held))
        spread = xr.concat([_spread(one, dose) for dose in held], xr.Variable("dose", held))
        forward = [strength for strength in signed(one, shown) if strength > 0]
        logits = by_kind(one["delta_logit_diff"], forward or signed(one, shown))
        ranks = ranked(one, shown)
        return {
            "effect": sample.mean(kl, log=True).bounds(),
            "spread": spread,
            "response": sample.mean(kl.sel(scale="relative", drop=True).mean("layer"), log=True).bounds(),
            "delta_logit_diff": sample.mean(logits if forward else logits * np.nan).bounds(),
            "rank": sample.mean(ranks).bounds(),
            "median_norm": one["median_norm"],
            "dose_shown": shown,
        }

    def _dose(self, one: Effects) -> float:
        """Return the dose nearest, as a ratio, to the one that is asked for."""
        wanted: float = self.parameters.dose
        return min(doses(one), key=lambda dose: abs(math.log(dose / wanted)))


def doses(one: Effects) -> list[float]:
    """Return the magnitudes of strength that were measured, smallest first."""
    return sorted({round(abs(float(strength)), 9) for strength in one.dataset["strength"].values})


def signed(one: Effects, dose: float) -> list[float]:
    """Return the strengths of this magnitude that were measured."""
    return [float(s) for s in one.dataset["strength"].values if math.isclose(abs(float(s)), dose, rel_tol=1e-6)]


def by_kind(values: xr.DataArray, strengths: list[float]) -> xr.DataArray:
    """Return ``(prompt, kind, layer, scale)``, averaged over strengths and each prompt's directions of a kind."""
    import xarray as xr

    mean = values.sel(strength=strengths, scale=list(SCALES)).mean("strength")
    kinds, own = values["direction_kind"], values["family"] == values["direction_family"]
    chosen = {kind: kinds == kind for kind in ("random", "matched", "shuffled")}
    chosen |= {"family": own & (kinds == "family"), "off_task": ~own & (kinds == "family")}
    each = [mean.where(chosen[kind]).mean("direction") for kind in KINDS]
    return xr.concat(each, xr.Variable("kind", list(KINDS))).reset_coords(drop=True)


def _spread(one: Effects, dose: float) -> xr.DataArray:
    """Return median and 95 % range over a kind's single directions ``(kind, scale, layer, bound)``."""
    import xarray as xr

    kl = one["kl"].sel(strength=signed(one, dose), scale=list(SCALES)).mean("strength")
    kl = kl.transpose("prompt", "direction", "scale", "layer")
    means = one.sample.clusters.macro(kl.values)  # (direction, scale, layer)
    kinds = one.dataset["direction_kind"].values.astype(str)
    found = np.full((len(KINDS), *means.shape[1:], 3), np.nan)
    for at, kind in enumerate(KINDS):
        if kind in ("random", "matched", "shuffled") and (kinds == kind).any():
            own = means[kinds == kind]
            found[at] = np.stack([quantile(own, q) for q in (0.5, 0.025, 0.975)], axis=-1)
    coords: dict[Any, Any] = {"kind": list(KINDS), "scale": list(SCALES), "layer": kl["layer"].values}
    return xr.DataArray(found, coords | {"bound": ["value", "low", "high"]}, ("kind", "scale", "layer", "bound"))


def _relative(one: Effects, dose: float) -> xr.DataArray:
    """Return KL at relative strength ``(prompt, direction, layer)``."""
    kl = one["kl"].sel(strength=signed(one, dose), scale="relative", drop=True).mean("strength")
    return kl.transpose("prompt", "direction", "layer")


def ranked(one: Effects, dose: float) -> xr.DataArray:
    """Return the share of single matched directions that do less than the own family's ``(prompt, layer)``."""
    kl, kinds = _relative(one, dose), one.dataset["direction_kind"]
    own = kl.where((kinds == "family") & (kl["direction_family"] == kl["family"])).mean("direction")
    matched = kl.isel(direction=np.flatnonzero(kinds.values == "matched"))
    share = (matched < own).mean("direction") + (matched == own).mean("direction") / 2
    return share.where(own.notnull() & matched.notnull().any("direction")).reset_coords(drop=True)


def _rank(one: Effects, dose: float) -> Evidence | None:
    """Return what speaks for families' directions doing more than matched ones.

    In each draw other matched directions stand in the families' places, one each, ranked among those that are left.
    """
    ranks = ranked(one, dose)
    if not ranks.notnull().any():
        return None
    statistic = one.sample.mean(ranks.mean("layer"))
    evidence = statistic.evidence()
    matched = np.flatnonzero(one.dataset["direction_kind"].values == "matched")
    families = one.sample.clusters.families
    taken = min(len(families), len(matched) // 2)
    chance = _chance(one, dose, matched, taken)
    value, low, high = evidence.number
    reached = (1 + int((chance >= value - 1e-12).sum())) / (1 + DRAWS) if len(chance) else math.nan
    few = taken == 0 or 1 / math.comb(len(matched), taken) > ALPHA
    lowest, highest = (float(quantile(chance, q)) if len(chance) else math.nan for q in (0.025, 0.975))
    return replace(
        evidence,
        p=reached,
        against="matched directions in its place",
        side=1 if low > 0.5 else -1 if high < min(0.5, lowest) else 0,  # no luck of a few directions refutes
        answer=int(np.sign(value - 0.5)),
        control=(0.5, lowest, highest),
        blocked=evidence.blocked or ("too few matched directions" if few else ""),
        statistic=None,  # each model has its own directions, whose luck templates do not show
    )


def _chance(one: Effects, dose: float, matched: Any, taken: int) -> Floats:
    """Return mean ranks of drawn matched directions in families' places ``(draw)``."""
    if not taken:
        return np.empty(0)
    kl = _relative(one, dose).values[:, matched]  # (prompt, direction, layer)
    clusters, count = one.sample.clusters, len(matched)
    # share of prompts and layers, family by family, in which one matched direction does less than another
    less = np.stack([((kl < kl[:, [at]]) + 0.5 * (kl == kl[:, [at]])).mean(-1) for at in range(count)], axis=1)
    table = clusters.family_means(less)  # (family, direction, other)
    rng = np.random.default_rng(clusters.seed)
    order = rng.permuted(np.tile(np.arange(count), (DRAWS, 1)), axis=1)
    places = rng.permuted(np.tile(np.arange(len(table)), (DRAWS, 1)), axis=1)[:, :taken]
    drawn, left = order[:, :taken], order[:, taken:]
    return np.asarray(table[places[:, :, None], drawn[:, :, None], left[:, None, :]].mean((1, 2)))


def _early(one: Effects, dose: float) -> Evidence | None:
    """Return what speaks for early layers being steered more than late ones, and more so than along matched ones."""
    kl = by_kind(one["kl"], signed(one, dose))
    if not kl.sel(kind="family").notnull().any():
        return None
    if kl.sizes["layer"] < 2:
        return Evidence(blocked="one layer has no halves", words={"length": "–"})

    def ratio(kind: str, scale: str) -> Statistic:
        return one.sample.ratio(*halves(kl.sel(kind=kind, scale=scale)))

    own, length = ratio("family", "relative"), ratio("family", "absolute")
    alone, published = (each.evidence(two_sided=False) for each in (own, length))
    if kl.sel(kind="matched").notnull().any():
        own = own.against(ratio("matched", "relative"))
    found = own.evidence(two_sided=False, margin=RATIO_MARGIN)
    holds = published.side > 0 and published.p <= ALPHA and alone.side <= 0
    return replace(found, artefact=_NORM if holds else "", words={"length": f"{published.number[0]:.3g}"})


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [SteeringProfile]
