"""What breaks without a layer: planted answers, beyond the control's."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import xatlas
from xatlas.comparisons.capability_loss import CapabilityLoss
from xatlas.stats import mcnemar

CONDITIONS = ("none", "layer 0", "layer 0 (random)", "layer 1", "layer 1 (random)")


def planted(removed, control, asked=20):
    """Return a result of two categories in which layer 0 breaks so many tests of math, and layer 1 none."""
    passed = np.ones((2 * asked, len(CONDITIONS)))
    passed[:removed, 1] = 0
    passed[:control, 2] = 0
    names = [f"{asked}-{i}" for i in range(2 * asked)]
    coords = {"test": names, "condition": list(CONDITIONS), "category": ("test", ["math"] * asked + ["code"] * asked)}
    return xr.Dataset({"passed": (("test", "condition"), passed)}, coords)


def found(**results):
    comparison = CapabilityLoss()
    tree = xr.DataTree.from_dict({f"/{name}/ablated_capability": each for name, each in results.items()})
    data = comparison.compare(tree)
    return comparison, data, {(each.model, each.name): each for each in comparison.findings(data)}


def test_a_category_breaks_where_more_is_lost_than_under_the_control():
    comparison, data, findings = found(a=planted(15, 1), b=planted(15, 15), c=planted(1, 15), d=planted(3, 0, asked=3))
    one = findings["a", "layer 0: math"]
    assert one.p == mcnemar(14, 0)  # against the control, which is the larger
    assert one.p_adjusted == pytest.approx(4 * one.p)  # two layers, two categories
    assert one.value == pytest.approx(0.75)
    assert one.control == pytest.approx(0.05)
    assert data["loss"].sel(model="a", removed="layer 0", category="math", bound="value") == pytest.approx(0.75)
    verdicts = {
        model: (findings[model, "layer 0: math"].verdict, findings[model, "layer 0: math"].reason) for model in "abc"
    }
    assert verdicts == {
        "a": ("supported", ""),
        "b": ("undecided", "no more than its control"),
        "c": ("refuted", "the interval lies on the other side"),
    }
    assert {each.verdict for (_, name), each in findings.items() if "layer 1" in name} == {"undecided"}
    rows = [row for row in comparison.table(data) if row["model"] == "a"]
    assert [row["breaks"] for row in rows] == ["math", "–"]
    assert findings["a", "layer 0: all"].verdict == "supported"
    assert [name for model, name in findings if model == "d"] == ["layer 0: all", "layer 1: all"]  # of three, nothing


def test_layers_that_a_model_lacks_are_left_out():
    fewer = planted(15, 1).isel(condition=slice(3)).assign_coords(condition=["none", *CONDITIONS[3:]])
    comparison, data, findings = found(a=planted(15, 1), b=fewer)
    assert ("b", "layer 0: math") not in findings
    assert [row["removed"] for row in comparison.table(data)] == ["layer 0", "layer 1", "layer 1"]
    for axes, model, layers in zip(xatlas.plot(data).axes, "ab", (["layer 0", "layer 1"], ["layer 1"]), strict=False):
        across, up = (
            [text.get_text() for text in labels] for labels in (axes.get_xticklabels(), axes.get_yticklabels())
        )
        assert up == layers
        own = [each.verdict == "supported" for (name, _), each in findings.items() if name == model]
        assert axes.get_title(loc="left").replace("\n", " ") == f"{model} {sum(own)} of {len(own)} claims hold"
        marked = {(up[int(line.get_ydata()[0])], across[int(line.get_xdata()[0])]) for line in axes.lines}
        assert marked == {(layers[0], "math"), (layers[0], "all")}
        lost = (data["loss"] - data["control"]).sel(model=model, removed=layers, bound="value")
        shown = axes.collections[0].get_array().reshape(len(up), len(across))
        np.testing.assert_allclose(shown, lost.transpose("removed", "category"))
