"""Labelling datasets, and noticing every way in which one can be off its contract."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from running import read

from xatlas.contracts.adapter import HeadLayout
from xatlas.contracts.probe import Variable
from xatlas.errors import XatlasError
from xatlas.schema import cells, label, layer_coords, notes, suite_coords, validate
from xatlas.suites import Prompt, Suite

VARIABLES = {"kl": Variable(("prompt", "layer", "head"), "nats", "KL to the clean run")}
PROBE = SimpleNamespace(name="demo", variables=VARIABLES)
PROMPTS = [Prompt("a", "facts", "The sky is", template="t1"), Prompt("b", "sums", "1 + 1 =")]


def coords():
    return {
        **suite_coords(read(PROMPTS)),
        **layer_coords(["conv", "attention", "conv"]),
        **{"head": np.arange(4), "kv_group": ("head", [0, 0, 1, 1])},
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


def without_a_name(dataset):
    del dataset.kl.attrs["long_name"]
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
    "no name": (without_a_name, "'kl' has no long_name"),
    "no family": (lambda d: d.drop_vars("family"), "'prompt' lacks its coordinate 'family'"),
    "no depth": (lambda d: d.drop_vars("depth"), "'layer' lacks its coordinate 'depth'"),
    "no group": (lambda d: d.drop_vars("kv_group"), "'head' lacks its coordinate 'kv_group'"),
    "no labels": (lambda d: d.drop_vars("layer"), "'layer' has no coordinate of its own"),
    "same label": (lambda d: d.assign_coords(layer=[0, 0, 1]), "the label '0' twice"),
    "attribute": (lambda d: d.assign_attrs(absent={"a": 1}), "attribute 'absent' of the dataset is dict"),
    "flag": (lambda d: d.assign_attrs(whole=True), "attribute 'whole' of the dataset is bool"),
    "flag of a layer": (
        lambda d: d.assign_coords(layer=d.layer.assign_attrs(n=None)),
        "attribute 'n' of 'layer' is None",
    ),
    "complex labels": (lambda d: d.assign_coords(odd=("layer", [1j, 2, 3])), "coordinate 'odd' has dtype complex128"),
    "NaN beside layers": (lambda d: d.assign_coords(depth=("layer", [0, np.nan, 1])), "coordinate 'depth' holds NaN"),
    "no prompts": (lambda d: d.isel(prompt=[]), "no prompt is left"),
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


#: NaN in what is named, keys that name it, and keys that name something else.
REASONS = {
    "a variable": ({}, ["kl", "absent kl"], ["loss", "nothing", ""]),
    "a dimension": ({}, ["head", "layer"], ["scope"]),
    "a layer": (
        {"layer": 1},
        ["layer 1", "layer=0,1", "attention", "operator_type attention"],
        ["layer 0", "conv", "1"],
    ),
    "layers": ({"layer": [0, 2]}, ["conv", "layers 0, 2", cells(layer=[0, 2])], ["layer 0", "operator_type=attention"]),
    "a head in a layer": (
        {"layer": 1, "head": 3},
        ["layer 1 & head 3", "head=3", cells(layer=[1], head=[2, 3]), "attention head 3"],
        ["layer 1 & head 2", "layer=0 & head=3", "conv head 3"],
    ),
    "a prompt": ({"prompt": "a"}, ["a", "prompt a", "facts", "template=t1"], ["b", "prompt b", "sums"]),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_reason_excuses_what_it_names_and_nothing_else(case):
    where, fitting, others = REASONS[case]
    for keys, fits in ((fitting, True), (others, False)):
        for key in keys:
            dataset = good(absent={key: "it is so"})
            dataset.kl.loc[where] = np.nan
            if fits:
                validate(dataset, PROBE)
            else:
                with pytest.raises(XatlasError, match="'kl' holds NaN without a reason that names it, at prompt"):
                    validate(dataset, PROBE)


def test_a_reason_that_names_another_variable_excuses_that_one_alone():
    variables = VARIABLES | {"kl_control": Variable(("prompt", "layer", "head"), "nats", "of a control")}
    probe, zeros = SimpleNamespace(name="demo", variables=variables), np.zeros((2, 3, 4), np.float32)
    for name, other in (("kl", "kl_control"), ("kl_control", "kl")):
        both = {"kl": zeros.copy(), "kl_control": zeros.copy()}
        dataset = label(variables, both, coords(), absent={f"{name} layer 1": "it is so"})
        dataset[name].loc[{"layer": 1}] = np.nan
        validate(dataset, probe)
        dataset[other].loc[{"layer": 1}] = np.nan
        with pytest.raises(XatlasError, match=f"'{other}' holds NaN without a reason"):
            validate(dataset, probe)


def test_a_label_with_separators_is_named_whole():
    dataset = good(absent={"head=a, b = c": "odd"}).assign_coords(head=("head", ["a, b = c", "x", "y", "z"]))
    dataset.kl[:, :, 0] = np.nan
    with pytest.raises(XatlasError, match="whole numbers"):
        validate(dataset, PROBE)
    odd = SimpleNamespace(name="odd", variables={"kl": Variable(("direction",), "1", "x")})
    dataset = label(
        odd.variables,
        {"kl": np.array([np.nan, 1])},
        {"direction": ["a, b = c", "b"]},
        absent={"direction=a, b = c": ""},
    )
    validate(dataset, odd)


def test_nan_of_a_dropped_prompt_has_its_reason_there_alone():
    dataset = good(dropped={"a": "logits were not finite"})
    dataset.kl.loc[{"prompt": "a", "layer": 1}] = np.nan
    validate(dataset, PROBE)
    dataset.kl.loc[{"prompt": "b", "layer": 1, "head": 2}] = np.nan
    with pytest.raises(XatlasError, match="at prompt b, layer 1, head 2"):
        validate(dataset, PROBE)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_value_has_no_excuse(value):
    dataset = good(absent={"kl": "it is so"}, dropped={"a": "it is so"})
    dataset.kl[0, 0, 0] = value
    with pytest.raises(XatlasError, match="'kl' holds infinite values"):
        validate(dataset, PROBE)
    with pytest.raises(XatlasError, match="'depth' holds infinite values"):
        validate(good().assign_coords(depth=("layer", [0, 0.5, value])), PROBE)


MODEL = SimpleNamespace(
    n_layers=3, operator_types=["conv", "attention", "conv"], head_layouts=[None, HeadLayout(4, 2, 8), None]
)
SUITE = Suite("demo", (*PROMPTS, Prompt("c", "sums", "2 + 2 =")))
WRONG = {
    "prompt": ({"prompt": ["a", "x"]}, "prompt 'x' is none of the suite 'demo'"),
    "family": ({"family": ("prompt", ["facts", "facts"])}, "the family of prompt 'b' is 'sums', not 'facts'"),
    "template": ({"template": ("prompt", ["t2", "b"])}, "the template of prompt 'a' is 't1', not 't2'"),
    "layer": ({"layer": [0, 1, 3]}, "layer 3 is none of the model's, 0 to 2"),
    "layers from 1": ({"layer": [1, 2, 3]}, "depth of layer 1 of 3 is 0.5, not 0"),
    "negative layer": ({"layer": [-1, 0, 1]}, "labels of 'layer' must be whole numbers from 0"),
    "broken layers": ({"layer": [0.0, 1.0, 2.0]}, "labels of 'layer' must be whole numbers from 0"),
    "named layers": ({"layer": ["a", "b", "c"]}, "labels of 'layer' must be whole numbers from 0"),
    "depth": ({"depth": ("layer", [0, 0.4, 1])}, "the depth of layer 1 of 3 is 0.5, not 0.4"),
    "type": ({"operator_type": ("layer", ["conv"] * 3)}, "the operator of layer 1 is 'attention', not 'conv'"),
    "head": ({"head": [0, 1, 2, 4]}, "head 4 is none of the model's, 0 to 3"),
    "group": ({"kv_group": ("head", [0, 1, 0, 1])}, "the key/value group of head 1 is 0, not 1"),
    "no group": ({"kv_group": ("head", [-1, 0, 1, 1])}, "the key/value group of head 0 is 0, not -1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_labels_are_those_of_model_and_suite(case):
    coordinates, message = WRONG[case]
    validate(good(dropped={"c": "too long"}), PROBE, MODEL, SUITE)
    with pytest.raises(XatlasError, match=message):
        validate(good().assign_coords(coordinates), PROBE, MODEL, SUITE)


def test_a_head_that_reads_another_group_in_another_layer_may_have_none():
    uneven = SimpleNamespace(n_layers=3, operator_types=MODEL.operator_types, head_layouts=[HeadLayout(4, 4, 8), None])
    uneven.head_layouts[1] = HeadLayout(4, 2, 8)
    validate(good().assign_coords(kv_group=("head", [0, -1, -1, -1])), PROBE, uneven, SUITE)


def test_what_prompts_say_is_kept_as_text_that_commands_no_terminal():
    odd = Prompt("a", "f", "red \x1b[31m\u202e", target="\x07")
    found = suite_coords(read([odd]))
    assert all(text.isprintable() for name in ("text", "target") for text in found[name][1])


def test_a_part_of_the_layers_has_labels_too():
    validate(good().isel(layer=[0, 2], prompt=[1]), PROBE, MODEL, SUITE)


def test_a_dropped_prompt_is_the_suites():
    with pytest.raises(XatlasError, match="prompt 'z' is none of the suite"):
        validate(good(dropped={"z": "too long"}), PROBE, MODEL, SUITE)
