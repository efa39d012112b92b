"""Where in depth steering works, and whether that is more than the norm of the stream."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xatlas import Comparison, Finding, Requirement, XatlasError, hookimpl
from xatlas.comparisons import verdict as rule
from xatlas.comparisons.figures import steering as steering_figure
from xatlas.comparisons.measures import readings, steering as steering_measures, summary
from xatlas.comparisons.measures.steering import KINDS, SCALES

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


class SteeringProfile(Comparison):
    """Effects of directions added layer by layer, at fixed length and at fixed share of the stream's norm.

    ``effect (model, kind, scale, dose, layer)``: KL(clean ‖ steered), family-macro, mean over both signs of a
    dose, for random directions, random ones with the stream's covariance (matched), the prompt's own family's
    direction, other families' (off-task) and those with shuffled labels; ``random_low`` and ``random_high`` hold 95 %
    of the random directions, ``matched_low`` and ``matched_high`` of the matched ones.
    ``early_over_late (model, kind, scale, dose)`` is the mean effect of the first half of the layers over the
    second. The stream's norm grows with depth, so one length is a large change early and a small one late:
    "early layers steer better" that holds at absolute strength and not at relative strength is an artefact.
    ``family_over_random (model, layer)``: what a family's own direction does beyond random ones of its length,
    with its control, the same ratio with shuffled labels.
    """

    name = "steering_profile"
    version = 3
    summary = "At which depth does steering work, beyond what the norm of the stream explains?"
    default = False

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

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Steering with its defaults."""
        return (Requirement("steering"),)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the dataset described above."""
        found = [readings.find(tree, model, "steering") for model in readings.models(tree)]
        mains = [each[0] for each in found]
        doses = steering_measures.common_doses(mains)
        shown = steering_measures.nearest(doses, self.parameters.dose)
        variables = steering_measures.profiles(mains, doses, shown)
        variables |= steering_measures.ratios(mains, doses)
        variables |= steering_measures.peaks(mains, doses[shown])
        coords = {"kind": list(KINDS), "scale": list(SCALES), "dose": doses}
        absent = {
            "effect": "padding of models with fewer layers, or a kind of direction that was not measured",
            "early_over_late": "a model of one layer has no halves",
            "delta_logit_diff": "prompts without a foil, or no strength above 0 at the dose shown",
        }
        measured = f"added to the stream at the readout position, dose {doses[shown]:g}"
        dataset = summary.assemble(self, found, variables, coords, absent, measured)
        return dataset.assign_coords(dose_shown=doses[shown])

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw effects over depth at both scales with the random band, and dose against response per layer."""
        return steering_figure.draw(dataset)

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """Judge "early layers steer better" per model, for random and family directions; then the best layer."""
        each = range(dataset.sizes["model"])
        early = [_early_finding(dataset, i, kind) for i in each for kind in ("random", "family")]
        return [finding for finding in early if finding] + [_peak_finding(dataset, i) for i in each]

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return one row per model and kind of direction."""
        rows: list[dict[str, str | float]] = []
        for i, model in enumerate(map(str, dataset["model"].values)):
            for kind in ("random", "family"):
                one = dataset.isel(model=i).sel(kind=kind, dose=float(dataset["dose_shown"]))
                finding = _early_finding(dataset, i, kind)
                row: dict[str, str | float] = {"model": model, "direction": kind}
                for scale in SCALES:
                    cells = summary.triple(one.sel(scale=scale), "early_over_late")
                    row[f"early / late, {scale}"] = summary.interval(*cells)
                row["early steers better"] = finding.verdict if finding else "–"
                if kind == "family":
                    peak = _peak_finding(dataset, i)
                    place = float(dataset["peak"][i])
                    row["best layer"] = "–" if math.isnan(place) else f"{int(place)}"
                    row["over random"] = summary.interval(peak.value, peak.low, peak.high)
                    row["shuffled labels"] = summary.number(peak.control)
                    row["best layer is"] = peak.verdict
                rows.append(row)
        return rows


def _early_finding(dataset: xr.Dataset, index: int, kind: str) -> Finding | None:
    """Judge the claim at relative strength; None for a kind that was not measured."""
    whole = dataset.isel(model=index).sel(kind=kind)
    one = whole.sel(dose=float(dataset["dose_shown"]))
    model = str(one["model"].item())
    fixed, own = (one.sel(scale=scale) for scale in SCALES)
    value, low, high = summary.triple(own, "early_over_late")
    if math.isnan(value):
        if kind != "random":
            return None
        nan = math.nan
        return Finding(f"{model} has no two halves to steer.", nan, nan, nan, nan, nan, "undecided", model)
    p = float(own["early_over_late_p"])
    chance = 1.0
    if kind != "random":
        random = dataset.isel(model=index).sel(kind="random", scale="relative", dose=float(dataset["dose_shown"]))
        chance = float(random["early_over_late"])
    published = rule.side(*summary.triple(fixed, "early_over_late")[1:], 1) > 0
    doses = whole.sel(scale="relative")["early_over_late"].values
    verdict = rule.verdict(
        rule.side(low, high, 1, chance) > 0 and p <= rule.ALPHA,
        all(other > 1 for other in doses if not math.isnan(other)),
        against=high < 1,
        published=published and float(fixed["early_over_late_p"]) <= rule.ALPHA,
        fails=rule.fails(low, high, 1, 1, chance),
    )
    named = "random directions steer" if kind == "random" else "families' own directions steer"
    sentence = (
        f"In {model} {named} early layers {summary.interval(*summary.triple(fixed, 'early_over_late'))} times as much "
        f"as late ones at one length, and {summary.interval(value, low, high)} times at one share of the stream's norm."
    )
    return Finding(sentence, value, low, high, chance, p, verdict, model)


def _peak_finding(dataset: xr.Dataset, index: int) -> Finding:
    one = dataset.isel(model=index)
    model, nan = str(one["model"].item()), math.nan
    if math.isnan(float(one["peak"])):
        sentence = f"{model} was not steered along its families' directions, or not beside random ones."
        return Finding(sentence, nan, nan, nan, nan, nan, "undecided", model)
    at = one.isel(layer=int(one["peak"]))
    value, low, high = summary.triple(at, "family_over_random")
    control, p = float(at["shuffled_over_random"]), float(at["family_p"])
    clears = rule.side(low, high, 1, control) > 0 and p <= rule.ALPHA and not float(one["peak_tie"])
    against = high < 1 or (not math.isnan(control) and high < control)
    sentence = (
        f"In {model} families' own directions do most beyond random ones of their length in layer "
        f"{int(one['peak'])}: {summary.interval(value, low, high)} times as much, with shuffled labels "
        f"{summary.number(control)}."
    )
    return Finding(sentence, value, low, high, control, p, rule.verdict(clears, True, against=against), model)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [SteeringProfile]
