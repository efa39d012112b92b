"""Two models on the same tests: which share each passes, by category, and whether they differ."""

from __future__ import annotations

import json
import math
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from xatlas import Comparison, Finding, Requirement, hookimpl
from xatlas.contracts.comparison import Verdict
from xatlas.findings import forest
from xatlas.findings.claims import ALPHA
from xatlas.findings.readings import find, models
from xatlas.stats import holm, mcnemar, wilson
from xatlas.text import interval

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: What stands for all categories together.
ALL = "all"


class CapabilityProfile(Comparison):
    """Shares of tests that models pass, with Wilson intervals, and pairs of models test by test.

    A claim about a model: that it passes at least half of the tests; its interval decides. Claims about two models, on
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

        held = {model: find(tree, model, "capability")[0].dataset for model in models(tree)}
        names = xr.Variable("model", list(held))
        passed = xr.concat(
            [each["passed"].drop_vars(_TEXTS, errors="ignore") for each in held.values()], names, join="outer"
        )
        every = {
            str(t): str(c)
            for one in held.values()
            for t, c in zip(one["test"].values, one["category"].values, strict=True)
        }
        passed = passed.drop_vars("category", errors="ignore").assign_coords(
            category_of=("test", [every[str(test)] for test in passed["test"].values])
        )
        categories = [ALL, *dict.fromkeys(every.values())]
        values = [[_bounds(_of(passed.sel(model=model), category)) for category in categories] for model in held]
        dims = {"model": list(held), "category": categories, "bound": ["value", "low", "high"]}
        data = xr.Dataset({"passed": passed, "share": xr.DataArray(values, dims)})
        data["passed"].attrs = {"units": "1", "long_name": "whether the answer passes the test"}
        data["share"].attrs = {"units": "1", "long_name": "share of tests that are passed, with its Wilson interval"}
        abouts = [json.loads(each.attrs.get("xatlas", "{}")) for each in held.values()]
        jobs = [(about.get("job") or {}).get("parameters", {}) for about in abouts]
        asked = {str(parameters.get("tests", "")) for parameters in jobs}
        return data.assign_attrs(
            title=self.summary,
            suite=f"tests {', '.join(sorted(asked))}; 95 % Wilson intervals over tests",
            absent=json.dumps({"passed": "not asked", "share": "no test of the category"}, sort_keys=True),
            xatlas=json.dumps({"comparison": {"name": self.name, "version": self.version}}, sort_keys=True),
            Conventions="CF-1.11",
        )

    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """Say what share each model passes in all, and where two differ."""
        found = [self._about(dataset, str(model)) for model in dataset["model"].values]
        for first, second in combinations(map(str, dataset["model"].values), 2):
            found += _pair(dataset, first, second)
        return found

    def _about(self, dataset: xr.Dataset, model: str) -> Finding:
        value, low, high = (float(each) for each in dataset["share"].sel(model=model, category=ALL))
        count = int(dataset["passed"].sel(model=model).notnull().sum())
        verdict: Verdict = "supported" if low > 0.5 else "refuted" if high < 0.5 else "undecided"
        reason = {"supported": "", "refuted": "the interval lies on the other side"}.get(
            verdict, "the interval includes a half"
        )
        shown = interval(value, low, high)
        return Finding(
            f"{model} passes {value * count:.0f} of {count} tests: a share of {shown}, against a half.",
            value, low, high, 0.5, math.nan, verdict,
            model=model, reason=reason, name="half", short="at least half of the tests are passed",
        )  # fmt: skip

    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return the shares by category, a row a model and category; two models side by side with their p."""
        pairs = {(each.model, each.model_other, each.name): each for each in self.findings(dataset) if each.model_other}
        rows: list[dict[str, str | float]] = []
        names = list(map(str, dataset["model"].values))
        for category in map(str, dataset["category"].values):
            for model in names:
                bounds = [float(each) for each in dataset["share"].sel(model=model, category=category)]
                n = int(_of(dataset["passed"].sel(model=model), category).size)
                row: dict[str, str | float] = {
                    "model": model,
                    "category": category,
                    "tests": n,
                    "share": interval(*bounds),
                }
                if len(names) > 1:
                    p = pairs.get((names[0], model, category))
                    row["p (Holm)"] = "–" if p is None or p.p_adjusted is None else f"{p.p_adjusted:.2g}"
                rows.append(row)
        return rows

    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw the shares, category by category."""
        nan, shown = math.nan, []
        for category in map(str, dataset["category"].values):
            for model in map(str, dataset["model"].values):
                value, low, high = (float(each) for each in dataset["share"].sel(model=model, category=category))
                shown.append(Finding("", value, low, high, nan, nan, "supported", model=model, name=category))
        return forest.draw(shown, {}, self.summary)


_TEXTS = ("answer", "text", "chat", "answer_tokens", "stop_reason")


def _of(passed: xr.DataArray, category: str) -> xr.DataArray:
    """Return what was passed and asked of a category."""
    own = passed if category == ALL else passed[passed["category_of"].values == category]
    return own[own.notnull().values]


def _bounds(passed: xr.DataArray) -> tuple[float, float, float]:
    total, right = passed.size, int(passed.sum())
    return (right / total if total else math.nan, *wilson(right, total))


def _pair(dataset: xr.Dataset, first: str, second: str) -> list[Finding]:
    """Return whether two models differ, in all and by category; the latter adjusted for each other."""
    both = dataset["passed"].sel(model=[first, second]).dropna("test")
    rows = []
    for category in map(str, dataset["category"].values):
        a, b = (_of(both.sel(model=model), category).values for model in (first, second))
        alone = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
        rows.append((category, difference(a, b), mcnemar(*alone), alone, len(a)))
    adjusted = [rows[0][2], *holm([p for _, _, p, _, _ in rows[1:]])]
    found = []
    for (category, (value, low, high), p, alone, total), own in zip(rows, adjusted, strict=True):
        decided = own <= ALPHA and total > 0
        where = "" if category == ALL else f" of {category}"
        said = f"Of {total} tests{where}, {first} alone passes {alone[0]} and {second} alone {alone[1]}"
        found.append(
            Finding(
                f"{said}: a difference of shares of {interval(value, low, high)}, p = {own:.2g}.",
                value, low, high, 0.0, p, "supported" if decided else "undecided",
                model=first, model_other=second, p_adjusted=own, name=category, against="no difference (exact McNemar)",
                reason="" if decided else "the models pass nearly the same tests, or there are too few",
                short=f"different tests{where} are passed",
            )
        )  # fmt: skip
    return found


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Return the difference of two shares on the same tests, with Newcombe's interval for pairs (1998, method 10)."""
    n = len(a)
    if not n:
        return math.nan, math.nan, math.nan
    p, q = float(a.mean()), float(b.mean())
    (l1, u1), (l2, u2) = wilson(int(a.sum()), n), wilson(int(b.sum()), n)
    spread = math.sqrt(p * (1 - p) * q * (1 - q))
    phi = (float((a * b).mean()) - p * q) / spread if spread else 0.0
    low = math.sqrt(max(0.0, (p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2))
    high = math.sqrt(max(0.0, (u1 - p) ** 2 - 2 * phi * (u1 - p) * (q - l2) + (q - l2) ** 2))
    return p - q, p - q - low, p - q + high


@hookimpl
def xatlas_comparisons() -> list[type[Comparison]]:
    """Return the comparison."""
    return [CapabilityProfile]
