"""No number lies outside its own interval, however small the sample and however odd the values."""

import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from test_estimates import array

from xatlas.comparisons.early_late import EarlyLate
from xatlas.comparisons.head_specialisation import HeadSpecialisation
from xatlas.comparisons.hub import Hub
from xatlas.comparisons.mlp_ratio import MlpRatio
from xatlas.findings.estimates import Sample
from xatlas.findings.groups import layer_types, rank_correlation, welch
from xatlas.findings.places import largest
from xatlas.stats import quantile, t_quantile

VALUES = st.sampled_from([0.0, 1e-9, 1e-3, 0.1, 0.1, 0.1000001, 1.0, 7.0, math.nan])


@st.composite
def samples(draw, items=4):
    """Return a sample of a few prompts, and values ``(prompt, item)``."""
    labels = st.tuples(st.sampled_from("ab"), st.sampled_from("stu"))
    prompts = draw(st.lists(labels, min_size=1, max_size=8))
    values = draw(st.lists(VALUES, min_size=items * len(prompts), max_size=items * len(prompts)))
    return Sample(*zip(*prompts, strict=True)), np.reshape(values, (-1, items))


def inside(bounds):
    value, low, high = map(float, bounds)
    return math.isnan(value) or (math.isnan(low) and math.isnan(high)) or low <= value <= high


@settings(max_examples=60, deadline=None)
@given(samples())
def test_numbers_lie_within_their_intervals(drawn):
    sample, values = drawn
    one, two = array(values[:, :2], "layer"), array(values[:, 2:], "layer")
    first, second = (sample.mean(each, log=True) for each in (one, two))
    statistics = [first, first - second, sample.mean(one), sample.ratio(one, two), sample.share(one, one + two)]
    for statistic in statistics:
        assert all(map(inside, statistic.bounds().values))
        assert all(map(inside, statistic.bounds(0.9).values))
        assert inside(statistic.isel({"layer": 0}).evidence().number)
    for log in (False, True):
        assert inside(sample.cross_fit(values, lambda means: np.eye(4)[[0, 3]], log=log)[0])
    place = largest(sample, array(values, "layer"))
    if place is not None:
        assert inside(place.margin)
        assert inside(place.over_next)
    logs = [float(value) for value in values.ravel() if math.isfinite(value)]
    if len(logs) > 1:
        assert inside(welch(logs[:-1], logs[-1:], log=True).number)
        types = ["conv", "attention"] * len(logs)
        assert inside(
            layer_types(np.array(logs), types[: len(logs)], np.arange(len(logs)), ("conv", "attention")).number
        )


def results(rng, families, templates, layers, zeros):
    """Return results of layers and of heads, on a few prompts."""
    n = families * templates
    coords = {
        "family": ("prompt", np.repeat([f"f{i}" for i in range(families)], templates)),
        "template": ("prompt", np.tile([f"t{i}" for i in range(templates)], families)),
        "prompt": np.arange(n),
        "layer": np.arange(layers),
        "depth": ("layer", np.arange(layers) / max(layers - 1, 1)),
        "operator_type": ("layer", ["conv", "attention"] * (layers // 2) + ["conv"] * (layers % 2)),
        "ablation": ["mean", "zero"],
    }

    def result(name, labels):
        shape = (n, layers, len(labels))
        kl, control = (rng.lognormal(0, 2, (*shape, 2)) * (rng.random((*shape, 2)) >= zeros) for _ in range(2))
        data = {"kl": (("prompt", "layer", name, "ablation"), kl)}
        data |= {"kl_control": (("prompt", "layer", name, "draw"), control)}
        return xr.Dataset(data, {**coords, name: labels})

    layer_ablation = result("component", ["operator", "mlp", "joint"])
    return {"layer_ablation": layer_ablation, "head_ablation": result("head", [0, 1, 2])}


@pytest.mark.parametrize("comparison", [Hub, MlpRatio, EarlyLate, HeadSpecialisation])
@pytest.mark.parametrize(("families", "templates", "layers", "zeros"), [(1, 2, 2, 0.0), (2, 2, 3, 0.7), (1, 3, 5, 0.2)])
def test_findings_of_tiny_suites_lie_within_their_intervals(comparison, families, templates, layers, zeros):
    rng = np.random.default_rng(layers)
    models = {name: results(rng, families, templates, layers, zeros) for name in ("a", "b")}
    tree = xr.DataTree.from_dict(
        {f"/{name}/{probe}": each for name, own in models.items() for probe, each in own.items()}
    )
    dataset = comparison().compare(tree)
    for finding in comparison().findings(dataset):
        assert inside((finding.value, finding.low, finding.high)), finding.sentence
        assert inside((finding.control, finding.control_low, finding.control_high)), finding.sentence
    for name, each in dataset.data_vars.items():
        if "bound" in each.dims:
            assert all(map(inside, each.transpose(..., "bound").values.reshape(-1, 3))), name


def test_draws_of_few_templates_are_stretched_as_t_is_wider_than_normal():
    """Of three templates there are two degrees of freedom: 4.30 standard errors to either side for 1.96."""
    sample, stretch = Sample(["f"] * 3, list("stu")), float(t_quantile(2)) / 1.959964
    values = array([[3.0, 1.0], [4.0, 1.5], [5.5, 1.0]], "layer")
    draws = sample.clusters.macro_draws(values.values)
    value = float((values[:, 0] - values[:, 1]).mean())
    low, high = (value + (float(quantile(draws[:, 0] - draws[:, 1], q)) - value) * stretch for q in (0.025, 0.975))
    assert largest(sample, values).margin == pytest.approx((value, low, high))
    rng, profile = np.random.default_rng(0), np.arange(9.0)
    curves = profile + rng.normal(0, 4, (2, 9))
    drawn = curves[:, None] + rng.normal(0, 0.2, (2, 500, 9))
    wide, narrow = (rank_correlation(sample, curves, drawn, freedom, "chance").number for freedom in (2.0, 1e6))
    assert wide[0] == narrow[0]
    for end in (1, 2):
        assert wide[end] == pytest.approx(np.clip(wide[0] + (narrow[end] - wide[0]) * stretch, -1, 1), abs=1e-4)
        assert -1 < narrow[end] < 1
