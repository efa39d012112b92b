"""What figures are made from: numbers stand in their own rows, what lies beyond a panel is no measurement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from looking import explained, rows
from matplotlib.figure import Figure

from xatlas.comparisons.figures import curves, forest, lettering, rows as panels, style
from xatlas.comparisons.hub_shift import HubShift

MODELS = ["a", "b"]


def test_numbers_of_models_stand_on_their_own_intervals_in_the_row_that_is_named():
    names = ["plain", "with_a_line", "three"]
    values = np.arange(18).reshape(2, 3, 3)[..., [1, 0, 2]] / 20  # (model, row, bound)
    coords = {"model": MODELS, "row": names, "bound": ["value", "low", "high"]}
    share = xr.DataArray(values, coords, list(coords), attrs={"long_name": "share"})
    figure = panels.draw(
        share.to_dataset(name="share").assign_attrs(suite="suite quick"),
        [share],
        lines={0.25: "fair", 0.75: "good"},
        notes={"b": ", slow"},
    )
    (axes,) = figure.axes
    colours = style.colours(MODELS)
    shown = {
        (name.replace("_", " "), colours[model]): [pytest.approx(sorted(share.sel(model=model, row=name).values))]
        for model in MODELS
        for name in names
    }
    assert rows(axes) == shown
    heights = {line.get_color(): line.get_ydata()[0] for line in axes.lines[::-1] if line.get_marker() == "o"}
    assert heights[colours["a"]] > heights[colours["b"]]  # as in the legend
    told = explained(figure)
    assert {name: told[name].get_color() for name in ("a", "b, slow")} == {"a": colours["a"], "b, slow": colours["b"]}
    marks = {line.get_xdata()[0]: line.get_linestyle() for line in axes.lines if line.get_color() == style.CONTROL}
    assert marks == {0.25: told["fair (0.25)"].get_linestyle(), 0.75: told["good (0.75)"].get_linestyle()}


def test_names_are_no_formulas():
    assert lettering.fitted("a_$x^$", 9, 8) == r"a_\$x^\$"
    figure = Figure()
    figure.suptitle(lettering.fitted("$broken{$", 9, 8))
    figure.draw_without_rendering()


@pytest.mark.parametrize("size", [6, 12])
@pytest.mark.parametrize("text", ["plain words, broken where they end", "one-name/without_a+space@any", "x" * 30])
def test_text_that_is_broken_fits_and_loses_nothing(text, size):
    lines = lettering.fitted(text, 1.0, size).split("\n")
    assert len(lines) > 1
    assert max(lettering.width_of(line, size) for line in lines) <= 1.0
    assert text in (" ".join(lines), "".join(lines))


def test_of_text_that_takes_too_many_lines_the_middle_is_left_out():
    lines = lettering.fitted("begin" + "x" * 500 + "end", 1.0, 8, lines=3).split("\n")
    assert len(lines) == 3
    assert (lines[0][:5], lines[-1][-3:]) == ("begin", "end")
    assert "".join(lines).count("…") == 1


def test_a_curve_goes_through_what_lies_in_the_panel_and_marks_what_does_not():
    values = xr.DataArray(
        [[1.0, 0.5, 2.0], [1e-6, 1e-7, 1e-5], [9.0, 5.0, 20.0], [np.nan] * 3, [50.0, 40.0, 60.0]],
        {"bound": ["value", "low", "high"]},
        ["layer", "bound"],
    )
    axes = Figure().subplots()
    assert curves.draw(axes, np.arange(5), values, color="red", edges=(1e-3, 10.0), gid="curve")
    drawn = {line.get_marker(): line.get_data() for line in axes.lines}
    np.testing.assert_array_equal(drawn["."][1], [1, np.nan, 9, np.nan, np.nan])
    assert [list(map(float, each)) for each in drawn["v"]] == [[1], [1e-3]]
    assert [list(map(float, each)) for each in drawn["^"]] == [[4], [10]]
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), set(band[:, 0])) == (0.5, {0.0})
    assert not curves.draw(axes, np.arange(2), values[[0, 3]], color="red", edges=(1e-3, 10.0))


def test_operator_types_are_marked_where_something_was_measured_in_the_panel():
    types = ["conv", "attention", "conv", "attention", "conv"]
    values = xr.DataArray([1.0, 2.0, 1e-9, np.nan, 3.0], {"operator_type": ("layer", types)}, "layer")
    axes = Figure().subplots()
    curves.draw(axes, np.arange(5), values, color="red", typed=True, edges=(1e-3, 10.0))
    marks = {line.get_marker(): line.get_xydata().tolist() for line in axes.lines}
    assert marks[style.marker("conv")] == [[0, 1], [4, 3]]
    assert marks[style.marker("attention")] == [[1, 2]]


def finding(number, control, twins=(), verdict="supported", name="more"):
    """Return a finding's numbers as a dataset holds them."""
    data = {"finding_number": ("bound", list(number)), "finding_control": ("bound", list(control))}
    data |= {"twin": (("twin", "bound"), np.reshape(twins, (-1, 3)))}
    texts = {"verdict": verdict, "name": name, "model": "a", "reason": "why not"}
    return xr.Dataset(data | {f"finding_{part}": text for part, text in texts.items()})


@pytest.mark.parametrize("control", [(1.5, 1.2, 1.9), (1.0, math.nan, math.nan)])
@pytest.mark.parametrize("hollow", ["undecided", "refuted", "artefact"])
def test_a_row_shows_a_control_that_has_an_interval_and_every_twin_as_what_it_is(control, hollow):
    axes, twins = Figure().subplots(), [(0.7, 0.5, 0.9), (0.4, 0.3, 0.6)]
    found = [finding((3.0, 2.0, 4.0), control, twins), finding((0.2, 0.1, 0.3), control, twins, hollow)]
    assert not forest.draw(axes, [("one", "red", found[0]), ("heading", "red", ""), ("two", "blue", found[1])], "ratio")
    beside = [("|", *control)] if not math.isnan(control[1]) else []
    beside += [(".", *twin) for twin in twins]
    for y, colour, each, fill in ((0, "red", found[0], "red"), (2, "blue", found[1], "white")):
        own = [line for line in axes.lines if y - 0.1 < line.get_ydata()[0] < y + 0.9]
        numbers = [("o", *each["finding_number"].values), *beside]
        expected = [part for mark, value, *ends in numbers for part in (("", *ends), (mark, value))]
        assert [(line.get_marker(), *line.get_xdata()) for line in own] == expected
        assert (own[1].get_color(), own[1].get_markerfacecolor()) == (colour, fill)
    labels = [(text.get_text(), text.get_color()) for text in axes.get_yticklabels()]
    assert labels == [("one", "red"), ("heading", "red"), ("two", "blue")]


def test_what_lies_beyond_an_edge_is_marked_there_alone():
    axes = Figure().subplots()
    held = finding((500.0, 0.001, 900.0), (1.0, math.nan, math.nan))
    assert forest.draw(axes, [("one", "red", held)], "ratio", edges=(0.01, 100.0))
    assert [(line.get_marker(), *line.get_xdata()) for line in axes.lines] == [
        ("", 0.01, 100.0),
        ("<", 0.01),
        (">", 100.0),
    ]


def test_a_number_that_is_not_known_has_its_reason_in_its_row():
    axes = Figure().subplots()
    unknown = finding((math.nan,) * 3, (math.nan,) * 3)
    forest.draw(axes, [("one", "red", unknown), ("two", "red", "one layer")], "ratio")
    assert [(text.get_position()[1], text.get_text().strip()) for text in axes.texts] == [
        (0, "why not"),
        (1, "one layer"),
    ]
    assert not axes.lines


@pytest.mark.parametrize(
    ("verdicts", "title"),
    [
        (["supported"], "Held: supported"),
        (["refuted"], "Held? refuted"),
        ([None], "Held"),
        (["supported", "undecided", None], "Held in 1 of 3"),
        (["supported", None], "Held in 1 of 2"),
        ([None, None], "Held"),
    ],
)
def test_a_title_counts_all_models_that_are_drawn(verdicts, title):
    models = [f"m{i}" for i in range(len(verdicts))]
    said = [(model, verdict, "", "held") for model, verdict in zip(models, verdicts, strict=True) if verdict]
    said += [("other", "supported", "", "held"), ("m0", "supported", "m1", "held"), ("m0", "supported", "", "else")]
    parts = zip(("model", "verdict", "model_other", "name"), zip(*said, strict=True), strict=True)
    dataset = xr.Dataset({f"finding_{part}": ("finding", list(each)) for part, each in parts}, {"model": models})
    assert style.counted("Held", dataset, "held") == title


def test_what_is_said_of_a_model_has_its_verdict_and_reason():
    about = [
        ("a", "supported", "", 1.0),
        ("b", "undecided", "p = 0.2", 1.0),
        ("c", "artefact", "it is algebra", 1.0),
        ("d", "undecided", "one layer", math.nan),
    ]
    models, verdicts, reasons, numbers = zip(*about, strict=True)
    texts = {"model": models, "verdict": verdicts, "reason": reasons, "short": ["it falls"] * 4, "name": ["held"] * 4}
    data = {f"finding_{part}": ("finding", list(each)) for part, each in (texts | {"model_other": [""] * 4}).items()}
    data["finding_number"] = ("finding", "bound"), np.repeat(np.array(numbers)[:, None], 3, 1)
    dataset = xr.Dataset(data, {"model": [*models, "e"]})
    assert style.said(dataset, "held", "nothing there") == [
        "it falls: supported",
        "it falls: undecided (p=0.2)",
        "it falls: artefact",
        "one layer",
        "nothing there",
    ]


def test_models_that_lack_something_are_named():
    values = xr.DataArray([[1.0, np.nan], [np.nan] * 2, [0.0, 2.0]], {"model": list("abc")}, ["model", "layer"])
    held, without = style.having(values.to_dataset(name="effect"), "effect")
    assert (held["model"].values.tolist(), without) == (["a", "c"], ["b"])


def test_types_without_a_marker_of_their_own_take_one_that_no_named_type_has():
    taken = {style.marker(f"kind {i}") for i in range(30)}
    assert len(taken) == 5
    assert not taken & {style.marker(kind) for kind in style.MARKERS}


def test_a_comparison_without_a_figure_of_its_own_shows_every_number_with_its_verdict(synthetic):
    def plant(kl):
        kl[:, 2] *= 12
        return kl

    results = {"clear": plant, "even": None}
    held = {
        name: {"layer_ablation": synthetic.layer_result(["conv"] * 4, each, ablations=("mean", "zero"))}
        for name, each in results.items()
    }
    dataset = HubShift().compare(synthetic.tree_of(**held))
    (axes,) = HubShift().plot(dataset).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == list(held)
    points = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == "o"}
    for row, found in enumerate(HubShift().findings(dataset)):
        assert points[row].get_xdata()[0] == found.value
        assert (
            (points[row].get_markerfacecolor() == "black") == (found.verdict == "supported") == (found.model == "clear")
        )
        spans = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "None"]
        assert [found.low, found.high] == list(spans[row])
