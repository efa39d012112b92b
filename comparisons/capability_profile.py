"""Two models on the same tests: which share each passes, by category, and whether they differ."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.comparisons.figures import rows as figure
from xatlas.comparisons.shares import ALL, categories, half, joined, of, paired, share
from xatlas.findings import Claim
from xatlas.findings.sentences import Row, decide, described
from xatlas.text import interval

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

_HALF = Claim(
    "half",
    "Does a model pass at least half of the tests?",
    "{model} passes {passed} of {tests} tests: a share of {number}, against a half",
    label="share passed",
    short="at least half of the tests are passed",
)


class CapabilityProfile(Comparison):
    """Shares of tests that models pass, with Wilson intervals, and pairs of models test by test.

    A claim about a model: that it passes at least half of the tests (exact binomial). Claims about two models, on
    the tests that both were asked: that they pass different ones in all, and in each category (exact McNemar on the
    tests that one alone passes; Holm over categories). The interval of a difference is Newcombe's (1998) for pairs.

    ``passed (model, test)``, 1 or 0; NaN where a test was not asked. ``share (model, category, bound)``.
    """

    name = "capability_profile"
    version = 1
    summary = "Which share of the tests does each model pass, by category, and do two models differ?"
    default = False
    requires = (Requirement("capability"),)

    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Return what each model passed, and the shares."""
        import xarray as xr

        passed, held = joined(tree, "capability")
        names = categories(passed)
        values = [[share(of(passed.sel(model=model), category)) for category in names] for model in held]
        dims = {"model": list(held), "category": names, "bound": ["value", "low", "high"]}
        data = xr.Dataset({"passed": passed, "share": xr.DataArray(values, dims)})
        data["share"].attrs = {"units": "1", "long_name": "share of tests that are passed, with its Wilson interval"}
        abouts = [json.loads(each.attrs.get("xatlas", "{}")) for each in held.values()]
        jobs = [(about.get("job") or {}).get("parameters", {}) for about in abouts]
        asked = {str(parameters.get("tests", "")) for parameters in jobs}
        suite = f"tests {', '.join(sorted(asked))}; 95 % Wilson intervals over tests"
        return described(data, self, suite, {"passed": "not asked", "share": "no test of the category"})

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """Say what share each model passes in all, and where two differ."""
        passed, names = dataset["passed"], list(map(str, dataset["model"].values))
        found = decide(Row(_HALF, (model,), half(of(passed.sel(model=model), ALL))) for model in names)
        for pair in combinations(names, 2):
            whole, *parts = (_differs(passed.sel(model=list(pair)), pair, name) for name in categories(passed))
            found += decide([whole]) + decide(parts)
        return found

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return the shares by category, a row a model and category; the first model beside others with their p."""
        pairs = {(each.model, each.model_other, each.name): each for each in self.findings(dataset) if each.model_other}
        rows: list[dict[str, str | float]] = []
        names = list(map(str, dataset["model"].values))
        for category in map(str, dataset["category"].values):
            for model in names:
                bounds = dataset["share"].sel(model=model, category=category).values.tolist()
                n = of(dataset["passed"].sel(model=model), category).size
                row: dict[str, str | float] = {"model": model, "category": category, "tests": n}
                row["share"] = interval(*bounds)
                if len(names) > 1:
                    p = pairs.get((names[0], model, category))
                    row["p (Holm)"] = "–" if p is None or p.p_adjusted is None else f"{p.p_adjusted:.2g}"
                rows.append(row)
        return rows

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw the shares, category by category."""
        shares = dataset["share"].rename(category="row").assign_attrs(long_name="share of tests that are passed")
        return figure.draw(dataset, [shares], lines={0.5: "a half"})


def _differs(passed: xr.DataArray, pair: tuple[str, str], category: str) -> Row:
    """Return the claim that two models pass different tests, in all or in a category."""
    own = of(passed, category)
    found = paired(own.sel(model=pair[0]), own.sel(model=pair[1]))
    where = "" if category == ALL else f" of {category}"
    claim = Claim(
        category,
        "Do two models pass different tests?",
        "Of {tests} tests{where}, {first} alone passes {one} and {second} alone {two}: a difference of shares of "
        "{number}",
        label=f"different tests{where}",
        short="different tests{where} are passed",
    )
    return Row(claim, pair, replace(found, side=abs(found.side), words={**found.words, "where": where}))


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [CapabilityProfile]
