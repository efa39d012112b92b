"""How many times as fast one model reads and writes as another, on the same machine."""

from __future__ import annotations

import json
import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas import Comparison, Finding, Requirement, XatlasError, hookimpl
from xatlas.contracts.comparison import Verdict
from xatlas.findings import forest
from xatlas.findings.readings import find, models
from xatlas.text import interval

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: What has to be the same for speeds to compare.
MACHINE = ("platform", "device", "device_name", "threads")
#: Resamples of repeats.
DRAWS = 2000


class SpeedProfile(Comparison):
    """Median tokens a second of reading and writing, and the ratios of models, on one machine.

    The interval of a median, and of a ratio of medians, is over repeats, drawn anew with replacement; five repeats
    say what the machine makes of equal work on one day, not on another. A claim about a pair is that the first is
    faster at the smallest length and batch, in each phase. Speeds of two machines, devices or numbers of threads are
    refused.

    ``rate (model, phase, length, batch, bound)``.
    """

    name = "speed_profile"
    version = 1
    summary = "How fast does each model read and write, and how many times as fast as another?"
    default = False
    requires = (Requirement("speed"),)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the median speeds and their intervals, with every repeat."""
        import xarray as xr

        held = {model: find(tree, model, "speed")[0] for model in models(tree)}
        machines = {model: tuple(str(each.about.get(name)) for name in MACHINE) for model, each in held.items()}
        if len(set(machines.values())) > 1:
            shown = "; ".join(f"{model} on {', '.join(machine)}" for model, machine in machines.items())
            raise XatlasError(f"speeds compare on one machine only, but these were measured: {shown}.")
        names = xr.Variable("model", list(held))
        repeats = xr.concat([each.dataset["tokens_per_second"] for each in held.values()], names, join="inner")
        drawn = _medians(repeats)
        bounds = [repeats.median("repeat"), drawn.quantile(0.025, "draw"), drawn.quantile(0.975, "draw")]
        rate = xr.concat(
            [each.drop_vars("quantile", errors="ignore") for each in bounds],
            xr.Variable("bound", ["value", "low", "high"]),
        ).transpose("model", "phase", "length", "batch", "bound")
        rate.attrs = {"units": "token/s", "long_name": "median tokens per second, with its interval over repeats"}
        repeats.attrs = {"units": "token/s", "long_name": "tokens per second"}
        machine = ", ".join(each for each in next(iter(machines.values())) if each not in ("", "None"))
        return xr.Dataset({"rate": rate, "repeats": repeats}).assign_attrs(
            title=self.summary,
            suite=f"on {machine or 'one machine'}; 95 % intervals over repeats",
            absent=json.dumps({}),
            xatlas=json.dumps({"comparison": {"name": self.name, "version": self.version}}),
            Conventions="CF-1.11",
        )

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """State each model's speed, and the ratios of pairs."""
        found, at = [], {"length": 0, "batch": 0}
        cell = f"length {int(dataset['length'][0])}, batch {int(dataset['batch'][0])}"
        drawn = _medians(dataset["repeats"]).isel(at)
        for model in map(str, dataset["model"].values):
            value, low, high = (float(x) for x in dataset["rate"].isel(at).sel(model=model, phase="decode"))
            said = f"{model} writes {interval(value, low, high)} tokens a second ({cell})."
            found.append(
                Finding(
                    said, value, low, high, math.nan, math.nan, "supported", model=model, name="decode", short="speed"
                )
            )
        for first, second in combinations(map(str, dataset["model"].values), 2):
            for phase in map(str, dataset["phase"].values):
                one, two = (dataset["rate"].isel(at).sel(model=m, phase=phase, bound="value") for m in (first, second))
                ratios = (drawn.sel(model=first, phase=phase) / drawn.sel(model=second, phase=phase)).values
                value, low, high = float(one / two), *map(float, np.quantile(ratios, [0.025, 0.975]))
                low, high = min(low, value), max(high, value)
                verdict: Verdict = "supported" if low > 1 else "refuted" if high < 1 else "undecided"
                reason = {"supported": "", "refuted": "the interval lies on the other side"}
                found.append(
                    Finding(
                        f"{first} is {interval(value, low, high)} times as fast as {second} in {phase} ({cell}).",
                        *(value, low, high, 1.0, math.nan, verdict),
                        model=first,
                        model_other=second,
                        name=phase,
                        reason=reason.get(verdict, "the interval includes equal speeds"),
                        short=f"{first} is faster in {phase}",
                    )
                )
        return found

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return the medians, a row a model, length and batch."""
        rows: list[dict[str, str | float]] = []
        for model in map(str, dataset["model"].values):
            for length in dataset["length"].values:
                for batch in dataset["batch"].values:
                    own = dataset["rate"].sel(model=model, length=length, batch=batch)
                    row: dict[str, str | float] = {"model": model, "length": int(length), "batch": int(batch)}
                    rows.append(row | {str(p): interval(*map(float, own.sel(phase=p))) for p in own["phase"].values})
        return rows

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw how fast each model writes."""
        labels = {"decode": "tokens written per second"}
        return forest.draw(self.findings(dataset), labels, self.summary)


def _medians(repeats: xr.DataArray) -> xr.DataArray:
    """Return medians of repeats drawn anew ``(draw, ...)``, independently for each model."""
    import xarray as xr

    rng, n = np.random.default_rng(0), repeats.sizes["repeat"]
    made: list[Any] = []
    for model in range(repeats.sizes["model"]):
        picks = xr.DataArray(rng.integers(n, size=(DRAWS, n)), dims=("draw", "pick"))
        made.append(repeats.isel(model=model).isel(repeat=picks).drop_vars("repeat", errors="ignore").median("pick"))
    drawn: xr.DataArray = xr.concat(made, repeats["model"])
    return drawn


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [SpeedProfile]
