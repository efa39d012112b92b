"""Which categories of tests break when a layer or a head is removed, beyond what a random change breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.comparisons.figures import capability_loss as figure
from xatlas.comparisons.shares import ALL, categories, joined, of, paired
from xatlas.findings import Claim
from xatlas.findings.sentences import Row, decide, described
from xatlas.findings.verdict import ALPHA
from xatlas.text import interval

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: The condition that removes nothing, and the ending of controls.
_CLEAN, _RANDOM = "none", " (random)"
_BREAKS = Claim(
    "breaks",
    "Does a layer or head carry what tests ask for, beyond a random change at its place?",
    "Without {removed} {model} passes {gone} of {tests} tests{where}, {clean} with it, {random} with a random change "
    "of the same size instead: a loss of {number}, control {control}",
    short="tests{where} break without {removed}",
)


class CapabilityLoss(Comparison):
    """What a model no longer passes while a layer or a head is removed: in all, and by category.

    A claim about a model, a layer or head, and a category (or all): while it is removed, the model passes fewer of the
    same tests than it does whole, and fewer than while a random direction of the same length is added instead. Both
    are tested by exact McNemar; the larger p counts, adjusted by Holm over layers, heads and categories. Newcombe's
    intervals (1998) of both differences have to lie above 0. Nothing is claimed of a category of fewer than six tests.

    ``passed (model, test, condition)``, 1 or 0; NaN where it was not asked. ``loss``, ``control (model, removed,
    category, bound)``: the share that the whole model passes, less that under the ablation and under its control.
    """

    name = "capability_loss"
    version = 1
    summary = "Which tests does a model no longer pass without a layer or head, beyond a random change?"
    default = False
    requires = (Requirement("ablated_capability"),)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return what each model passed under each condition, and what is lost."""
        import xarray as xr

        passed, held = joined(tree, "ablated_capability")
        every = list(map(str, passed["condition"].values))
        coords = {"model": list(held), "removed": [each for each in every if f"{each}{_RANDOM}" in every]}
        coords |= {"category": categories(passed), "bound": ["value", "low", "high"]}
        empty = xr.DataArray(np.full([len(each) for each in coords.values()], np.nan), coords, list(coords))
        names = {"loss": "share of tests lost without it", "control": "share of tests lost under a random change"}
        data = xr.Dataset({name: empty.copy().assign_attrs(units="1", long_name=said) for name, said in names.items()})
        data["passed"] = passed
        for at, row in _rows(data):
            data["loss"].loc[at] = np.array(row.evidence.number)
            data["control"].loc[at] = np.array(row.evidence.control)
        suite = "the same tests under every condition; 95 % Newcombe intervals over tests"
        return described(data, self, suite, dict.fromkeys(sorted(("passed", *names)), "not asked"))

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """Say what each layer or head breaks: in all, and of categories with enough tests to say so."""
        asked = [(at, row) for at, row in _rows(dataset) if np.isfinite(row.evidence.number[0])]
        rows = [(at, row) for at, row in asked if at["category"] == ALL or row.evidence.least_p <= ALPHA]
        return [
            finding
            for whole in (True, False)
            for finding in decide(row for at, row in rows if (at["category"] == ALL) == whole)
        ]

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return a row a model and layer or head: what is lost in all, and the categories that break."""
        verdicts = {(each.model, each.name): each.verdict for each in self.findings(dataset)}
        categories = [str(each) for each in dataset["category"].values if each != ALL]
        rows: list[dict[str, str | float]] = []
        for model, removed in product(*(map(str, dataset[dim].values) for dim in ("model", "removed"))):
            at = {"model": model, "removed": removed}
            loss, control = (dataset[name].sel(at | {"category": ALL}).values for name in ("loss", "control"))
            if np.isfinite(loss[0]):
                broken = [each for each in categories if verdicts.get((model, f"{removed}: {each}")) == "supported"]
                numbers = {"lost": interval(*loss), "control": interval(*control)}
                numbers["verdict"] = verdicts[model, f"{removed}: {ALL}"]
                rows.append({**at, **numbers, "breaks": ", ".join(broken) or "–"})
        return rows

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw what each layer or head breaks beyond its control."""
        return figure.draw(dataset, self.findings(dataset))


def _rows(dataset: xr.Dataset) -> Iterator[tuple[dict[str, str], Row]]:
    """Yield every claim, and its model, what is removed, and its category."""
    for model, removed, category in product(
        *(map(str, dataset[dim].values) for dim in ("model", "removed", "category"))
    ):
        asked = dataset["passed"].sel(model=model, condition=[_CLEAN, f"{removed}{_RANDOM}", removed])
        clean, random, gone = of(asked, category).transpose("condition", "test")
        own, beyond = paired(clean, gone), paired(random, gone)
        counts = {"tests": clean.size, "clean": clean.sum(), "random": random.sum(), "gone": gone.sum()}
        evidence = replace(
            own,
            p=max(own.p, beyond.p),
            against="no loss, and the control (exact McNemar)",
            side=min(own.side, beyond.side),
            control=paired(clean, random).number,
            words={name: f"{int(count)}" for name, count in counts.items()}
            | {"removed": removed, "where": "" if category == ALL else f" of {category}"},
        )
        claim = replace(_BREAKS, name=f"{removed}: {category}", label=f"{category} without {removed}")
        yield {"model": model, "removed": removed, "category": category}, Row(claim, (model,), evidence)


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [CapabilityLoss]
