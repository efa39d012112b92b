"""Shares, their intervals, and pairs of models: by hand, on planted answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr

from xatlas.comparisons.capability_profile import CapabilityProfile
from xatlas.comparisons.shares import difference
from xatlas.stats import mcnemar, wilson


def planted(passed, categories):
    tests = [f"t{i:03d}" for i in range(len(passed))]
    return xr.Dataset(
        {"passed": ("test", np.asarray(passed, float))}, {"test": tests, "category": ("test", categories)}
    )


@pytest.fixture(scope="module")
def made():
    categories = ["math"] * 30 + ["code"] * 30
    strong = [1] * 28 + [0] * 2 + [1] * 15 + [0] * 15
    weak = [1] * 4 + [0] * 26 + [1] * 15 + [0] * 15
    tree = xr.DataTree.from_dict(
        {"/strong/capability": planted(strong, categories), "/weak/capability": planted(weak, categories)}
    )
    comparison = CapabilityProfile()
    return comparison, comparison.compare(tree)


def test_shares_have_wilson_intervals(made):
    _, data = made
    np.testing.assert_allclose(data["share"].sel(model="strong", category="math"), [28 / 30, *wilson(28, 30)])
    np.testing.assert_allclose(data["share"].sel(model="weak", category="all"), [19 / 60, *wilson(19, 60)])


def test_pairs_are_tested_on_what_one_alone_passes(made):
    comparison, data = made
    found = {finding.name: finding for finding in comparison.findings(data) if finding.model_other}
    assert found["all"].p == pytest.approx(mcnemar(24, 0))
    assert found["math"].p_adjusted == pytest.approx(2 * mcnemar(24, 0))
    assert found["math"].verdict == "supported"
    assert found["math"].low > 0.5
    assert found["code"].p == 1.0
    other = {each.name: each for each in comparison.findings(data.isel(model=[1, 0])) if each.model_other}
    assert (other["math"].verdict, other["math"].value) == ("supported", -found["math"].value)  # whoever is first
    assert found["code"].verdict == "undecided"
    about = {finding.model: finding.verdict for finding in comparison.findings(data) if not finding.model_other}
    assert about == {"strong": "supported", "weak": "refuted"}
    assert len(comparison.table(data)) == 6


def test_tests_that_one_model_was_not_asked_are_left_out_of_pairs():
    one, other = planted([1, 0, 1, np.nan], ["a"] * 4), planted([0, 0, 1, 1, 1, 1], ["a"] * 5 + ["b"])
    comparison = CapabilityProfile()
    data = comparison.compare(xr.DataTree.from_dict({"/x/capability": one, "/y/capability": other}))
    (whole,) = [each for each in comparison.findings(data) if each.model_other and each.name == "all"]
    assert "Of 3 tests" in whole.sentence
    assert whole.value == pytest.approx(1 / 3)
    own = {each.model: each.value for each in comparison.findings(data) if not each.model_other}
    assert own == pytest.approx({"x": 2 / 3, "y": 4 / 6})  # of all that it was asked itself
    assert [row["tests"] for row in comparison.table(data)] == [3, 6, 3, 5, 0, 1]


def test_the_interval_of_a_difference_is_newcombes():
    """What both pass or fail makes it narrower, at both ends, than that of two unpaired shares."""

    def widths(a, b):
        value, low, high = difference(a, b)
        (l1, u1), (l2, u2) = (wilson(int(each.sum()), 50) for each in (a, b))
        p, q = a.mean(), b.mean()
        assert value == pytest.approx(p - q)
        assert difference(b, a) == pytest.approx((-value, -high, -low))
        return (value - low) / math.hypot(p - l1, u2 - q), (high - value) / math.hypot(u1 - p, q - l2)

    first = np.arange(50) < 36
    assert max(widths(first, np.arange(50) < 24)) < 0.8
    assert min(widths(first, np.arange(50) >= 24)) > 1.1
    # 19 are passed by both, and 18.7 by chance: too little to count
    assert widths(first, (np.arange(50) >= 17) & (np.arange(50) < 43)) == pytest.approx((1, 1))
    assert difference(np.ones(10), np.ones(10))[1] <= 0 <= difference(np.ones(10), np.ones(10))[2]
