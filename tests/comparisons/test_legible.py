"""Figures are legible: with one model and with many, whatever they are called, at the widths of a paper."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import xarray as xr
from looking import boxes, drawn_ticks, marks
from matplotlib.figure import Figure
from matplotlib.text import Text

import xatlas
from xatlas import XatlasError, drawing
from xatlas.comparisons.capability_loss import CapabilityLoss
from xatlas.comparisons.capability_profile import CapabilityProfile
from xatlas.comparisons.conv_profile import ConvProfile
from xatlas.comparisons.deployment import Deployment
from xatlas.comparisons.early_late import EarlyLate
from xatlas.comparisons.figures import style
from xatlas.comparisons.head_specialisation import HeadSpecialisation
from xatlas.comparisons.hub import Hub
from xatlas.comparisons.mlp_ratio import MlpRatio
from xatlas.comparisons.patching_profile import PatchingProfile
from xatlas.comparisons.report import arrange
from xatlas.comparisons.speed_profile import SpeedProfile
from xatlas.comparisons.steering_profile import SteeringProfile
from xatlas.plugins.skills.tests import built_in

ALL = [Hub, MlpRatio, EarlyLate, HeadSpecialisation, ConvProfile, PatchingProfile, SteeringProfile]
LONG = "HuggingFaceTB--SmolLM2-135M-Instruct-quantised-to-4-bits@main+my-lora-{}$0123${}abcd"
SHORT = ["lfm2-mini", "qwen-mini", "smollm2-mini"]
TYPES = {"m0": ["conv", "attention"] * 3, "m1": ["conv", "conv", "attention"] * 6}


def results(synthetic, kind, seed, types):
    if kind is ConvProfile:
        return synthetic.conv_results(seed=seed, types=types, kernel=4)
    if kind is PatchingProfile:
        return {"activation_patching": synthetic.patching_result(types, 3, seed=seed)}
    if kind is SteeringProfile:
        strengths = (-1.0, -0.25, 0.001, 0.1, 0.25, 0.5, 1.0)
        return {"steering": synthetic.steering_result(growth=1.2, seed=seed, strengths=strengths, layers=len(types))}
    if kind is HeadSpecialisation:
        return {"head_ablation": synthetic.head_result(types, 16, seed=seed)}

    def plant(kl):  # one layer below every floor, one ratio beyond the panel
        kl[:, 4] *= 1e-7
        kl[:, 2, 1] *= 1e4
        return kl

    held = synthetic.layer_result(types, plant, seed=seed, ablations=("mean", "zero"))
    where = xr.DataArray([0.2, 1.0], dims="where", coords={"where": ["first", "rest"]})
    return {"layer_ablation": held.assign(kl_position=held["kl"].sel(ablation="zero", scope="last", drop=True) * where)}


@functools.cache
def of_two(synthetic, kind):
    """Return what a comparison makes of two models, the first beside two untrained twins."""
    held = {name: results(synthetic, kind, seed, types) for seed, (name, types) in enumerate(TYPES.items())}
    twins = {f"m0~untrained_{seed}": results(synthetic, kind, 7 + seed, TYPES["m0"]) for seed in range(2)}
    return kind().compare(synthetic.tree_of(**held, **twins))


def datasets(synthetic, kind, names):
    """Return a dataset of these models, the two by turns: to compare as many takes long."""
    two = of_two(synthetic, kind)
    models, findings = [], []
    for i, name in enumerate(names):
        at = (two["finding_model"] == f"m{i % 2}") & (two["finding_model_other"] == "")
        findings.append(two.isel(finding=np.flatnonzero(at)).assign(finding_model=("finding", [name] * int(at.sum()))))
        models.append(i % 2)
    of_models = [name for name, array in two.data_vars.items() if "model" in array.dims]
    of_findings = [name for name, array in two.data_vars.items() if "finding" in array.dims]
    rows = xr.concat([each[[*of_findings, "twin"]].drop_vars("finding") for each in findings], "finding")
    return two[of_models].isel(model=models).assign_coords(model=list(names)).merge(rows).assign_attrs(two.attrs)


@pytest.mark.parametrize("width", [pytest.param("page", marks=pytest.mark.slow), "column"])
@pytest.mark.parametrize("count", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 8)), 3])
@pytest.mark.parametrize("kind", ALL)
def test_no_text_is_clipped_hidden_or_too_small(synthetic, kind, count, width):
    names = SHORT if count == 3 else [LONG.format(i, i) for i in range(count)]
    assert_legible(xatlas.plot(datasets(synthetic, kind, names), width=width), width, names)


@pytest.mark.parametrize("kind", [CapabilityProfile, CapabilityLoss, SpeedProfile, Deployment])
def test_no_text_is_clipped_where_tests_and_speeds_are_shown(kind):
    """Of three models with long names, in a column: the categories' names are long, too."""
    names = [LONG.format(i, i) for i in range(3)]
    tests = built_in()
    coords = {"test": [test.id for test in tests], "category": ("test", [test.category for test in tests])}
    conditions = [name for layer in range(9) for name in (f"layer {layer}", f"layer {layer} (random)")]
    passed = xr.DataArray(np.arange(len(tests)) % 3 > 0, coords, "test").astype(float)
    under = passed.expand_dims(condition=["none", *conditions]).transpose("test", ...)
    axes = {"phase": ["prefill", "decode"], "length": [32, 128], "batch": [1, 8], "repeat": range(5)}
    rates = xr.DataArray(np.linspace(3, 4000, 40).reshape(2, 2, 2, 5), axes, list(axes))
    results = {"capability": passed.to_dataset(name="passed"), "ablated_capability": under.to_dataset(name="passed")}
    results["speed"] = rates.to_dataset(name="tokens_per_second")
    held = {f"/{name}/{probe}": each for name in names for probe, each in results.items()}
    figure = xatlas.plot(kind().compare(xr.DataTree.from_dict(held)), width="column")
    assert_legible(figure, "column", names)


def assert_legible(figure, width, names):
    arrange(figure)
    drawn_ticks(figure)
    found = boxes(figure)
    across, high = figure.canvas.get_width_height()
    outside = [
        (text, box)
        for (text, _), box in found.items()
        if box.x0 < -1 or box.y0 < -1 or box.x1 > across + 1 or box.y1 > high + 1
    ]
    assert not outside
    over = [
        (one[0], other[0])
        for (one, a), (other, b) in itertools.combinations(found.items(), 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]
    assert not over
    inches = figure.get_size_inches()
    assert inches[0] == pytest.approx(drawing.WIDTHS[width])
    assert inches[1] < 45
    shown = [text for text in figure.findobj(Text) if text.get_text().strip()]
    assert min(text.get_fontsize() for text in shown) >= 6
    assert min(axes.get_position().width * inches[0] for axes in figure.axes) > 1.2
    written = "".join("".join(text.get_text().split()) for text in shown).replace("\\", "")
    assert all(name in written for name in names)


@pytest.mark.parametrize("kind", ALL)
def test_marks_are_explained_findings_stated_and_nothing_is_drawn_twice(synthetic, kind):
    names = SHORT[:2]  # of a third the data are those of the first
    dataset = datasets(synthetic, kind, names)
    figure = xatlas.plot(dataset)
    assert marks([line for axes in figure.axes for line in axes.lines]) <= marks(figure.legends[0].get_lines())
    for name in names:
        assert any(axes.get_title(loc="left").startswith(f"{name}\n") for axes in figure.axes)
    numbers = {
        f"{name}-{model}": number
        for name, model, number in zip(
            dataset["finding_name"].values,
            dataset["finding_model"].values,
            dataset["finding_number"].sel(bound="value").values,
            strict=True,
        )
    }
    curves, twins = {}, 0
    for axes in figure.axes:
        twins += sum(line.get_gid() == "twin" and np.isfinite(line.get_ydata()).any() for line in axes.lines)
        for line in axes.lines:
            if line.get_gid() in numbers:  # none is drawn at an edge as if it were measured there
                assert line.get_xdata()[0] == numbers[line.get_gid()]
            values = np.asarray(line.get_ydata(), dtype=float)
            if np.isfinite(values).sum() > 4 and np.ptp(values[np.isfinite(values)]) and line.get_gid() != "other":
                curves.setdefault((line.get_color(), values.tobytes()), set()).add(axes)
    assert all(len(where) == 1 for where in curves.values())
    assert twins == (2 if kind.curves else 0)  # those of the first model
    explained = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("untrained twins" in explained) == (bool(twins) or kind is HeadSpecialisation)  # of heads, rows


@pytest.mark.parametrize(("low", "high"), [(0.08, 4), (0.5, 30), (0.02, 0.9e3), (1e-7, 1e5)])
def test_ticks_of_ratios_are_even_and_hold_1(low, high):
    ticks = style.round_ticks(low, high)
    assert 1 in ticks
    assert 3 <= len(ticks) <= 6
    assert np.ptp(np.diff(np.log10(ticks))) < 0.05


@pytest.mark.parametrize("kind", ALL)
def test_a_user_may_give_axes_for_one_model_and_a_size(synthetic, kind):
    dataset = datasets(synthetic, kind, SHORT)
    figure = Figure()
    axes, other = figure.subplots(1, 2)
    assert xatlas.plot(dataset.sel(model=["qwen-mini"]), ax=axes) is figure
    assert axes.get_title().startswith("qwen-mini: ") or axes.get_title(loc="left").startswith("qwen-mini: ")
    assert axes.lines
    assert marks(axes.lines) <= marks(axes.get_legend().get_lines())
    assert not other.lines
    with pytest.raises(XatlasError, match="axes hold one model, and the data 3"):
        xatlas.plot(dataset, ax=axes)
    assert xatlas.plot(dataset, figsize=(6, 5)).get_size_inches().tolist() == [6, 5]
