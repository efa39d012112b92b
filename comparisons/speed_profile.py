"""How many times as fast one model reads and writes as another, on the same machine."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas import Comparison, Finding, Requirement, XatlasError, hookimpl
from xatlas.comparisons.figures import rows as figure
from xatlas.findings import Claim, Evidence
from xatlas.findings.estimates import side
from xatlas.findings.readings import find, models
from xatlas.findings.sentences import Row, decide, described
from xatlas.findings.verdict import ALPHA
from xatlas.text import interval

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: What has to be the same for speeds to compare.
MACHINE = ("platform", "device", "device_name", "threads")
#: Resamples of repeats.
DRAWS = 2000
_FASTER = Claim(
    "faster",
    "Is one model faster than another?",
    "{first} is {number} times as fast as {second} in {phase} ({cell})",
    label="ratio of speeds",
    short="{first} is faster in {phase}",
)


class SpeedProfile(Comparison):
    """Median tokens a second of reading and writing, and the ratios of models, on one machine.

    The interval of a median, and of a ratio of medians, is over repeats, drawn anew with replacement; five repeats
    say what the machine makes of equal work on one day, not on another. A claim about a pair is that the first is
    faster at the smallest length and batch, in each phase; p is that of the draws, and no less than the least of a
    permutation of the repeats: of three, nothing can be said. Speeds of two machines, devices or numbers of threads are
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
        *where, threads = next(iter(machines.values()))
        machine = ", ".join([*(each for each in where if each not in ("", "None")), f"threads: {threads}"])
        data = xr.Dataset({"rate": rate, "repeats": repeats})
        return described(data, self, f"on {machine}; 95 % intervals over repeats", {})

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """State the ratios of pairs."""
        at = {"length": 0, "batch": 0}
        cell = f"length {int(dataset['length'][0])}, batch {int(dataset['batch'][0])}"
        drawn, repeats = _medians(dataset["repeats"].isel(at)), dataset["repeats"].isel(at)
        rows = []
        for pair in combinations(map(str, dataset["model"].values), 2):
            for phase in map(str, dataset["phase"].values):
                one, two = (repeats.sel(model=model, phase=phase).median().item() for model in pair)
                ratios = drawn.sel(model=pair[0], phase=phase).values / drawn.sel(model=pair[1], phase=phase).values
                evidence = _faster(one / two, ratios, repeats.sizes["repeat"])
                words = {"phase": phase, "cell": cell, "first": pair[0]}
                rows.append(Row(replace(_FASTER, name=phase), pair, replace(evidence, words=words)))
        return decide(rows)

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
        """Draw how fast each model reads and writes, at every length and batch."""
        rate = dataset["rate"].stack(row=("length", "batch"), create_index=False)
        cells = zip(rate["length"].values, rate["batch"].values, strict=True)
        rate = rate.assign_coords(row=[f"length {length}, batch {batch}" for length, batch in cells])
        panels = [
            rate.sel(phase=phase).assign_attrs(long_name=f"tokens {done} per second")
            for phase, done in (("prefill", "read"), ("decode", "written"))
        ]
        return figure.draw(dataset, panels, log=True)


def _faster(ratio: float, drawn: np.ndarray, repeats: int) -> Evidence:
    """Return what speaks for a ratio's being above 1, from draws of it over so many repeats of each."""
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    least = 2 / math.comb(2 * repeats, repeats)  # of all ways of dealing the repeats out to the two
    return Evidence(
        number=(ratio, min(low, ratio), max(high, ratio)),
        p=max(least, min(1.0, 2 * float(min((drawn <= 1).mean(), (drawn >= 1).mean())))),
        against="equal speeds",
        side=side(low, high, 1.0),
        own=side(low, high, 1.0),
        answer=ratio > 1,
        control=(1.0, math.nan, math.nan),
        blocked="too few repeats" if least > ALPHA else "",
    )


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
