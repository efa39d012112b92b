"""Deployment: for which uses a model passes enough tests, and writes fast enough, on this machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from xatlas import Comparison, Finding, Requirement, XatlasError, hookimpl
from xatlas.comparisons.figures import rows as figure
from xatlas.contracts.comparison import Verdict
from xatlas.findings.readings import find, models
from xatlas.findings.sentences import described
from xatlas.stats import wilson
from xatlas.text import interval

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

Advice = Literal["use", "with care", "avoid", "can't tell"]

#: Use case → the categories of tests that it rests on.
USES = {
    "answering questions": ("factual_knowledge", "reasoning"),
    "following instructions": ("instruction_following", "robustness"),
    "extracting data": ("entity_extraction", "data_extraction", "structured_output"),
    "sorting texts": ("classification",),
    "rewriting and summing up": ("text_transformation", "summarisation"),
    "translating": ("multilingual",),
    "calculating": ("math",),
    "writing code": ("code",),
    "calling tools": ("agentic_patterns", "structured_output"),
}
#: Most further tests that are looked for.
MOST = 100_000


class Deployment(Comparison):
    """For each use case whether to use a model, to use it with care, to avoid it, or that its tests can't tell.

    Of the tests in a use case's categories, the Wilson interval of the share that is passed decides, never the
    share: ``use`` where all of it lies at or above ``good``, ``with care`` at or above ``fair``, ``avoid`` below
    ``fair``, else ``can't tell``, with how many more tests would decide if the share stayed as it is. A model that
    in no repeat writes ``tokens_per_second`` at the smallest length and batch is to be avoided, whatever it passes;
    where repeats disagree, nothing can be told.

    ``share (model, use, bound)``, ``tests``, ``more (model, use)``, ``speed (model, bound)``: least, median and largest
    of repeats.
    """

    name = "deployment"
    version = 1
    summary = "For which uses does a model pass enough tests, fast enough?"
    default = False

    @dataclass(frozen=True)
    class Parameters:
        """What is asked of a model."""

        good: float = 0.8
        fair: float = 0.5
        tokens_per_second: float = 5.0

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """The tests, and the speed on this machine."""
        return (Requirement("capability"), Requirement("speed"))

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return the shares of each use case, and how fast models write."""
        import xarray as xr

        asked = self.parameters
        if not 0 < asked.fair <= asked.good <= 1:
            raise XatlasError("deployment takes thresholds with 0 < fair <= good <= 1.")
        names = list(models(tree))
        uses: list[str] = []
        held = {model: find(tree, model, "capability")[0].dataset for model in names}
        for use, categories in USES.items():
            if all(set(categories) & set(map(str, one["category"].values)) for one in held.values()):
                uses.append(use)
        if not uses:  # tests of one's own: each category is a use
            uses = list(dict.fromkeys(str(each) for one in held.values() for each in one["category"].values))
        shares = np.full((len(names), len(uses), 3), np.nan)
        tests, more = np.zeros((len(names), len(uses))), np.zeros((len(names), len(uses)))
        for i, model in enumerate(names):
            for j, use in enumerate(uses):
                own = held[model]["passed"][held[model]["category"].isin(USES.get(use, (use,))).values].dropna("test")
                total, right = own.size, int(own.sum())
                tests[i, j] = total
                shares[i, j] = (right / total if total else math.nan, *wilson(right, total))
                more[i, j] = further(right, total, asked.good, asked.fair)
        speeds = []
        for model in names:
            rate = find(tree, model, "speed")[0].dataset["tokens_per_second"].sel(phase="decode")
            own = rate.isel(length=0, batch=0)
            speeds.append([float(own.min()), float(own.median()), float(own.max())])
        data = xr.Dataset(
            {
                "share": (
                    ("model", "use", "bound"),
                    shares,
                    {"units": "1", "long_name": "share passed, Wilson interval"},
                ),
                "tests": (("model", "use"), tests, {"units": "1", "long_name": "tests"}),
                "more": (("model", "use"), more, {"units": "1", "long_name": "further tests that would decide"}),
                "speed": (("model", "of"), speeds, {"units": "token/s", "long_name": "tokens written per second"}),
            },
            {"model": names, "use": uses, "bound": ["value", "low", "high"], "of": ["least", "median", "most"]},
        )
        absent = {"share": "no test of the use case", "more": "no number of tests would decide"}
        data = described(data, self, "95 % Wilson intervals over tests; speed on one machine", absent)
        return data.assign_attrs(good=asked.good, fair=asked.fair, needed=asked.tokens_per_second)

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """Advise on every model and use."""
        found = []
        for model in map(str, dataset["model"].values):
            for use in map(str, dataset["use"].values):
                value, low, high = (float(each) for each in dataset["share"].sel(model=model, use=use))
                said, why = advice(dataset, model, use)
                verdict: Verdict = {"use": "supported", "avoid": "refuted"}.get(said, "undecided")  # type: ignore[assignment]
                because = f"; {why}" if verdict == "supported" else ""  # else it stands before
                found.append(
                    Finding(
                        f"{model}, {use}: {said} (a share of {interval(value, low, high)}{because}).",
                        *(value, low, high, float(dataset.attrs["good"]), math.nan, verdict),
                        model=model,
                        reason="" if verdict == "supported" else why,
                        name=use,
                        short=f"fit for {use}",
                    )
                )
        return found

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return the advice, a row a model and use."""
        rows: list[dict[str, str | float]] = []
        for model in map(str, dataset["model"].values):
            for use in map(str, dataset["use"].values):
                bounds = [float(each) for each in dataset["share"].sel(model=model, use=use)]
                said, why = advice(dataset, model, use)
                rows.append({"model": model, "use": use, "share": interval(*bounds), "advice": said, "because": why})
        return rows

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw the shares, use by use, with what is asked of them."""
        shares = dataset["share"].rename(use="row").assign_attrs(long_name="share of tests that are passed")
        speeds = dataset["speed"].sel(of="median").to_series()
        notes = {model: f", {speed:.3g} tokens a second" for model, speed in speeds.items()}
        needed = f"; {dataset.attrs['needed']:g} tokens a second are needed"
        dataset = dataset.assign_attrs(suite=dataset.attrs["suite"] + needed)
        marks = {dataset.attrs["fair"]: "fair", dataset.attrs["good"]: "good"}
        return figure.draw(dataset, [shares], lines=marks, notes=notes)


def advice(dataset: xr.Dataset, model: str, use: str) -> tuple[Advice, str]:
    """Return what to do with a model in a use case, and why."""
    _, low, high = (float(each) for each in dataset["share"].sel(model=model, use=use))
    good, fair, needed = (float(dataset.attrs[name]) for name in ("good", "fair", "needed"))
    least, _, most = (float(each) for each in dataset["speed"].sel(model=model))
    if math.isnan(low):
        return "can't tell", "no test was asked"
    if high < fair:
        return "avoid", f"the interval lies below {fair:g}"
    if most < needed:
        return "avoid", f"at most {most:.3g} tokens a second, {needed:g} are needed"
    if least < needed:
        return "can't tell", f"between {least:.3g} and {most:.3g} tokens a second, {needed:g} are needed"
    if low >= good:
        return "use", f"the interval lies above {good:g}"
    if low >= fair:
        return "with care", f"the interval lies above {fair:g}, not above {good:g}"
    more = float(dataset["more"].sel(model=model, use=use))
    told = f"about {more:.0f} more tests would decide" if more == more else "the share lies at the threshold"
    return "can't tell", f"the interval includes {fair:g}; {told}"


def further(passed: int, total: int, good: float, fair: float) -> float:
    """Return how many more tests would decide, if the share that is passed stayed; 0 where it is decided; else NaN."""
    if not total:
        return math.nan

    def decided(n: int) -> bool:
        low, high = wilson(round(passed / total * n), n)
        return low >= fair or high < fair

    if decided(total):
        return 0.0
    if not decided(MOST):
        return math.nan
    undecided, enough = total, MOST
    while enough - undecided > 1:
        middle = (undecided + enough) // 2
        undecided, enough = (undecided, middle) if decided(middle) else (middle, enough)
    return float(enough - total)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [Deployment]
