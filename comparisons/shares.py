"""Shares of tests that are passed, and whether two of them differ on the same tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from xatlas.findings.estimates import side
from xatlas.findings.readings import find, models
from xatlas.findings.verdict import Bounds, Evidence
from xatlas.stats import mcnemar, wilson

if TYPE_CHECKING:
    import xarray as xr

#: What stands for all categories together.
ALL = "all"


def joined(tree: xr.DataTree, probe: str) -> tuple[xr.DataArray, Mapping[str, xr.Dataset]]:
    """Return what each model passed ``(model, test, ...)`` with ``category_of (test)``, NaN where it was not asked.

    The second is each model's own result.
    """
    import xarray as xr

    held = {model: find(tree, model, probe)[0].dataset for model in models(tree)}
    category = {
        str(test): str(name)
        for one in held.values()
        for test, name in zip(one["test"].values, one["category"].values, strict=True)
    }
    bare = [one["passed"].reset_coords(drop=True) for one in held.values()]
    passed = xr.concat(bare, xr.Variable("model", list(held)), join="outer")
    passed = passed.assign_coords(category_of=("test", [category[str(test)] for test in passed["test"].values]))
    passed.attrs = {"units": "1", "long_name": "whether the answer passes the test"}
    return passed, held


def categories(passed: xr.DataArray) -> list[str]:
    """Return all categories, and what stands for all of them first."""
    return [ALL, *dict.fromkeys(map(str, passed["category_of"].values))]


def of(passed: xr.DataArray, category: str) -> xr.DataArray:
    """Return what of a category was asked in all of ``(..., test)``."""
    own = passed if category == ALL else passed.isel(test=passed["category_of"].values == category)
    return own.dropna("test")


def share(passed: xr.DataArray) -> Bounds:
    """Return the share that is passed with its Wilson interval; NaN when nothing was asked."""
    total, right = passed.size, int(passed.sum())
    return (right / total if total else math.nan, *wilson(right, total))


def half(passed: xr.DataArray) -> Evidence:
    """Return what speaks for a share's lying above a half: its Wilson interval, and the exact binomial test."""
    bounds, right = share(passed), int(passed.sum())
    undecided = bounds[1] <= 0.5 <= bounds[2]
    return Evidence(
        number=bounds,
        p=mcnemar(right, passed.size - right),
        against="a half (exact binomial)",
        side=side(*bounds[1:], 0.5),
        answer=bounds[0] > 0.5,
        control=(0.5, math.nan, math.nan),
        blocked="the interval includes a half" if undecided else "",
        least_p=mcnemar(passed.size, 0),
        sample="tests",
        words={"passed": str(right), "tests": str(passed.size)},
    )


def paired(first: xr.DataArray, second: xr.DataArray) -> Evidence:
    """Return what speaks for the first's passing more of the same tests: exact McNemar, Newcombe's interval."""
    a, b = first.values, second.values
    alone = int((a > b).sum()), int((a < b).sum())
    bounds = difference(a, b)
    return Evidence(
        number=bounds,
        p=mcnemar(*alone),
        against="no difference (exact McNemar)",
        side=side(*bounds[1:], 0.0),
        answer=int(np.sign(bounds[0])) if len(a) else None,
        own=side(*bounds[1:], 0.0),
        least_p=mcnemar(len(a), 0),
        sample="tests",
        words={"tests": str(len(a)), "one": str(alone[0]), "two": str(alone[1])},
    )


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Return the difference of two shares on the same tests, with Newcombe's interval for pairs (1998, method 10)."""
    n = len(a)
    if not n:
        return math.nan, math.nan, math.nan
    p, q = float(a.mean()), float(b.mean())
    (l1, u1), (l2, u2) = wilson(int(a.sum()), n), wilson(int(b.sum()), n)
    spread = math.sqrt(p * (1 - p) * q * (1 - q))
    joint = float((a * b).mean()) - p * q
    if joint > 0:
        joint = max(joint - 0.5 / n, 0.0)  # corrected for continuity
    phi = joint / spread if spread else 0.0
    low = math.sqrt(max(0.0, (p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2))
    high = math.sqrt(max(0.0, (u1 - p) ** 2 - 2 * phi * (u1 - p) * (q - l2) + (q - l2) ** 2))
    return p - q, p - q - low, p - q + high
