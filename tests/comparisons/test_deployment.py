"""Advice rests on ends of intervals and on speed; speeds compare on one machine."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from xatlas import XatlasError
from xatlas.comparisons.deployment import Deployment, advice, further
from xatlas.comparisons.speed_profile import SpeedProfile
from xatlas.stats import wilson


def asked(right, total, category="math"):
    passed = [1.0] * right + [0.0] * (total - right) + [np.nan]  # one does not fit the context
    tests = [f"t{i}" for i in range(len(passed))]
    return xr.Dataset({"passed": ("test", passed)}, {"test": tests, "category": ("test", [category] * len(passed))})


def timed(decode, **where):
    rates = np.stack([np.full(len(decode), 100.0), np.asarray(decode, float)])[:, None, None]
    coords = {"phase": ["prefill", "decode"], "length": [8], "batch": [1], "repeat": range(len(decode))}
    about = json.dumps({"platform": "one", "device": "cuda:0", "device_name": "small", "threads": 2} | where)
    dims = ("phase", "length", "batch", "repeat")
    return xr.Dataset({"tokens_per_second": (dims, rates)}, coords, {"xatlas": about})


def grid(decode, more):
    """Return speeds that are so many times as large in a batch of eight, and once more at a greater length."""
    one = timed(decode)
    row = xr.concat([one, more * one.assign_coords(batch=[8])], "batch")
    return xr.concat([row, more * row.assign_coords(length=[64])], "length").assign_attrs(one.attrs)


@pytest.mark.parametrize(
    ("right", "total", "decode", "wanted"),
    [
        (59, 60, [20, 21, 22], "use"),
        (20, 20, [20, 21, 22], "use"),
        (15, 20, [20, 21, 22], "with care"),
        (12, 20, [20, 21, 22], "can't tell"),
        (2, 20, [20, 21, 22], "avoid"),
        (60, 60, [1, 2, 3], "avoid"),
        (60, 60, [4, 6, 7], "can't tell"),
    ],
)
def test_advice_rests_on_the_ends_of_intervals(right, total, decode, wanted):
    tree = xr.DataTree.from_dict({"/m/capability": asked(right, total), "/m/speed": timed(decode)})
    comparison = Deployment()
    data = comparison.compare(tree)
    assert advice(data, "m", "calculating")[0] == wanted
    assert comparison.table(data)[0]["advice"] == wanted
    (found,) = comparison.findings(data)
    assert found.verdict == {"use": "supported", "avoid": "refuted"}.get(wanted, "undecided")


def test_uses_are_those_that_every_model_was_tested_for_and_thresholds_those_that_are_asked():
    one, two = (
        asked(20, 20),
        xr.concat([asked(20, 20), asked(20, 20, "code").assign_coords(test=lambda d: "c" + d.test)], "test"),
    )
    results = {f"/{name}/capability": each for name, each in (("a", one), ("b", two))}
    tree = xr.DataTree.from_dict(results | {f"/{name}/speed": timed([4, 4, 4]) for name in "ab"})
    assert Deployment().compare(tree)["use"].values.tolist() == ["calculating"]
    own = xr.DataTree.from_dict({"/a/capability": asked(20, 20, "mine"), "/a/speed": timed([4, 4, 4])})
    assert Deployment().compare(own)["use"].values.tolist() == ["mine"]
    held = {limit: advice(Deployment(tokens_per_second=limit).compare(own), "a", "mine")[0] for limit in (3.0, 5.0)}
    assert held == {3.0: "use", 5.0: "avoid"}
    strict = Deployment(good=0.95, fair=0.9, tokens_per_second=1.0)
    assert advice(strict.compare(own), "a", "mine")[0] == "can't tell"  # 20 of 20: from 0.84 on
    for wrong in ({"good": 0.4}, {"fair": 0.0}, {"good": 1.1}):
        with pytest.raises(XatlasError, match="0 < fair <= good <= 1"):
            Deployment(**wrong).compare(own)


def test_speed_is_that_of_the_smallest_length_and_batch():
    results = {"/m/capability": asked(20, 20), "/m/speed": grid([4, 6, 7], 10)}
    data = Deployment().compare(xr.DataTree.from_dict(results))
    assert data["speed"].values.tolist() == [[4, 6, 7]]
    pair = xr.DataTree.from_dict({"/a/speed": grid([20] * 5, 10), "/b/speed": grid([10] * 5, 1)})
    found = SpeedProfile().findings(SpeedProfile().compare(pair))
    assert {each.name: each.value for each in found} == {"prefill": 1, "decode": 2}


def test_how_many_more_tests_would_decide():
    more = int(further(12, 20, 0.8, 0.5))
    assert wilson(round(0.6 * (20 + more)), 20 + more)[0] >= 0.5
    assert wilson(round(0.6 * (19 + more)), 19 + more)[0] < 0.5
    assert further(20, 20, 0.8, 0.5) == 0
    assert np.isnan(further(10, 20, 0.8, 0.5))


def test_speeds_are_ratios_on_one_machine():
    comparison = SpeedProfile()
    tree = xr.DataTree.from_dict({"/a/speed": timed([20, 21, 22, 23, 24]), "/b/speed": timed([10, 10.5, 11, 11.5, 12])})
    data = comparison.compare(tree)
    found = {each.name: each for each in comparison.findings(data) if each.model_other}
    assert found["decode"].value == pytest.approx(2.0)
    assert 20 / 12 <= found["decode"].low < 2
    assert found["decode"].verdict == "supported"
    assert found["decode"].p == pytest.approx(
        2 / 252
    )  # of two ways of 252 the medians lie as far apart, to either side
    assert found["prefill"].verdict == "undecided"
    few = comparison.compare(tree.map_over_datasets(lambda each: each.isel(repeat=slice(3)) if each else each))
    assert {(each.verdict, each.reason) for each in comparison.findings(few)} == {("undecided", "too few repeats")}


def test_repeats_of_two_models_are_drawn_independently():
    """What one repeat was like says nothing of another model's: equal repeats leave their ratio uncertain."""
    tree = xr.DataTree.from_dict({f"/{name}/speed": timed([10, 12, 14, 16, 18]) for name in "ab"})
    found = {each.name: each for each in SpeedProfile().findings(SpeedProfile().compare(tree))}["decode"]
    assert found.low < 0.9 < found.value == 1 < 1.1 < found.high


@pytest.mark.parametrize(
    "other", [{"platform": "two"}, {"device": "cpu"}, {"device_name": "large"}, {"threads": 8}], ids=str
)
def test_speeds_of_two_machines_are_not_compared(other):
    tree = xr.DataTree.from_dict({"/a/speed": timed([20]), "/b/speed": timed([10], **other)})
    with pytest.raises(XatlasError, match=f"one machine only.*{next(iter(other.values()))}"):
        SpeedProfile().compare(tree)
