"""Labelling datasets, and noticing every way in which one can be off its contract."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from xatlas.errors import XatlasError
from xatlas.probe import Variable
from xatlas.schema import head_coords, label, layer_coords, notes, prompt_coords, validate
from xatlas.suites import Prompt

VARIABLES = {"kl": Variable(("prompt", "layer", "head"), "nats", "KL to the clean run")}
PROBE = SimpleNamespace(name="demo", variables=VARIABLES)
PROMPTS = [Prompt("a", "facts", "The sky is", template="t1"), Prompt("b", "sums", "1 + 1 =")]


def coords():
    return {
        **prompt_coords(PROMPTS, [4, 5], [0, 1]),
        **layer_coords(["conv", "attention", "conv"]),
        **head_coords(4, 2),
    }


def good(**changes):
    return label(VARIABLES, {"kl": np.zeros((2, 3, 4), np.float32)}, coords(), **changes)


def test_label_gives_what_the_probe_promised():
    dataset = good(dropped={"c": "too long"})
    validate(dataset, PROBE)
    assert dataset.kl.dims == ("prompt", "layer", "head")
    assert dataset.kl.attrs == {"units": "nats", "long_name": "KL to the clean run"}
    assert list(dataset.template.values) == ["t1", "b"]
    assert list(dataset.depth.values) == [0, 0.5, 1]
    assert list(dataset.kv_group.values) == [0, 0, 1, 1]
    assert notes(dataset, "dropped") == {"c": "too long"}


def test_depth_of_a_single_layer_is_zero():
    assert list(layer_coords(["conv"])["depth"][1]) == [0]


def test_label_refuses_arrays_that_do_not_fit():
    with pytest.raises(XatlasError, match=r"'kl' has shape \(2, 3\)"):
        label(VARIABLES, {"kl": np.zeros((2, 3))}, coords())
    with pytest.raises(XatlasError, match="differ: kl, other"):
        label(VARIABLES, {"other": np.zeros((2, 3, 4))}, coords())
    with pytest.raises(XatlasError, match="do not fit together"):
        label(VARIABLES, {"kl": np.zeros((2, 7, 4))}, coords())


def without_units(dataset):
    del dataset.kl.attrs["units"]
    return dataset


def with_nan(dataset):
    dataset.kl[0, 0, 0] = np.nan
    return dataset


OFF = {
    "a list": (lambda d: [1], "not an xarray.Dataset"),
    "order": (lambda d: d.transpose("layer", "prompt", "head"), "the order is off"),
    "missing dim": (lambda d: d.isel(head=0, drop=True), "missing: head"),
    "extra dim": (lambda d: d.expand_dims(scope=["last"], axis=3), "not declared: scope"),
    "missing variable": (lambda d: d.drop_vars("kl"), "missing variables: kl"),
    "extra variable": (lambda d: d.assign(loss=d.kl), "undeclared variables: loss"),
    "float16": (lambda d: d.assign(kl=d.kl.astype("f2").assign_attrs(d.kl.attrs)), "dtype float16"),
    "objects": (lambda d: d.assign(kl=d.kl.astype(object).assign_attrs(d.kl.attrs)), "dtype object"),
    "units": (without_units, "has units None"),
    "no family": (lambda d: d.drop_vars("family"), "'prompt' lacks its coordinate 'family'"),
    "no depth": (lambda d: d.drop_vars("depth"), "'layer' lacks its coordinate 'depth'"),
    "no labels": (lambda d: d.drop_vars("layer"), "'layer' has no coordinate of its own"),
    "same label": (lambda d: d.assign_coords(layer=[0, 0, 1]), "the label '0' twice"),
    "attribute": (lambda d: d.assign_attrs(absent={"a": 1}), "attribute 'absent' of the dataset is dict"),
    "NaN": (with_nan, "NaN without a reason"),
}


@pytest.mark.parametrize("case", OFF)
def test_validate_names_what_is_off(case):
    spoil, message = OFF[case]
    spoiled = spoil(good())
    if case == "missing variable":
        spoiled = spoiled.assign_coords(good().coords)
    with pytest.raises(XatlasError, match="probe 'demo'") as caught:
        validate(spoiled, PROBE)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_with_a_reason_passes():
    validate(with_nan(good(absent={"heads of conv layers": "a conv has none"})), PROBE)
