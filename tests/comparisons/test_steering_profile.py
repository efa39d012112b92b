"""Steering profiles: what is only the norm of the stream is called an artefact."""

from __future__ import annotations

import numpy as np
import pytest
from looking import shows

from xatlas.comparisons.steering_profile import SteeringProfile
from xatlas.findings.readings import Source

LAYERS = 8


def compare(synthetic, **models):
    return SteeringProfile().compare(synthetic.tree_of(**{name: {"steering": one} for name, one in models.items()}))


def told(dataset, model="a"):
    found = SteeringProfile().findings(dataset)
    return {finding.name: finding for finding in found if finding.model == model and not finding.model_other}


def steeper(synthetic, base, **more):
    """Return a result in which own families' directions do more in early layers, matched ones alike in all."""
    return synthetic.steering_result(family=base ** -np.arange(LAYERS), **more)


def test_the_norm_of_the_stream_is_an_artefact(synthetic):
    """Early layers steer better at one length, for the stream is short there; at one share of it they don't."""
    finding = told(compare(synthetic, a=synthetic.steering_result(growth=1.4)))["early_over_late"]
    assert finding.value == pytest.approx(1, abs=0.25)
    assert float(finding.sentence.split("at one length ")[1].split(")")[0]) > 5
    assert finding.verdict == "artefact"


def test_early_layers_that_do_steer_better_are_supported_and_lost_when_shuffled(synthetic):
    one = steeper(synthetic, 1.5)
    assert told(compare(synthetic, a=one))["early_over_late"].verdict == "supported"
    rng = np.random.default_rng(0)
    shuffled = one.copy(deep=True)
    for i in range(one.sizes["prompt"]):
        shuffled["kl"].values[i] = one["kl"].values[i, rng.permutation(LAYERS)]
    assert told(compare(synthetic, a=shuffled))["early_over_late"].verdict != "supported"


def test_what_matched_directions_do_too_is_not_supported(synthetic):
    assert told(compare(synthetic, a=synthetic.steering_result(early=1.5)))["early_over_late"].verdict == "undecided"


def test_late_layers_that_steer_better_are_refuted(synthetic):
    assert told(compare(synthetic, a=steeper(synthetic, 0.7)))["early_over_late"].verdict == "refuted"


def test_two_models_differ_in_early_over_late_and_are_not_compared_at_different_doses(synthetic):
    steep, flat = steeper(synthetic, 1.5), steeper(synthetic, 1.0, seed=1)
    (pair,) = (f for f in SteeringProfile().findings(compare(synthetic, a=steep, b=flat)) if f.model_other)
    assert pair.verdict == "supported"
    other = steeper(synthetic, 1.0, strengths=(3.0,))
    (pair,) = (f for f in SteeringProfile().findings(compare(synthetic, a=steep, b=other)) if f.model_other)
    assert pair.reason == "steered at different doses"


def test_families_directions_that_do_more_rank_high(synthetic):
    one = synthetic.steering_result(family=np.full(LAYERS, 9.0), matched=20)
    finding = told(compare(synthetic, a=one))["rank"]
    assert finding.verdict == "supported"
    assert 0.95 < finding.low < finding.value <= finding.high
    assert finding.control_low < finding.control < finding.control_high < 0.9
    less = told(compare(synthetic, a=synthetic.steering_result(family=np.full(LAYERS, 0.1), matched=20)))["rank"]
    assert less.verdict == "refuted"
    few = told(compare(synthetic, a=synthetic.steering_result(family=np.full(LAYERS, 9.0), matched=4)))["rank"]
    assert few.reason == "too few matched directions"


def test_the_rank_is_the_share_of_matched_directions_that_do_less(synthetic):
    one = synthetic.steering_result(matched=4)
    matched = np.flatnonzero(one["direction_kind"].values == "matched")
    own = (one["direction_family"] == one["family"]) & (one["direction_kind"] == "family")
    one["kl"].values[:] = np.where(own.transpose("prompt", "direction"), 2.5, 0)[:, None, :, None, None]
    one["kl"].values[:, :, matched] = np.array([1.0, 2.0, 2.5, 3.0])[:, None, None]
    np.testing.assert_allclose(compare(synthetic, a=one)["rank"].sel(bound="value"), 2.5 / 4)


def test_directions_that_are_strong_by_chance_are_not_the_families(synthetic):
    """At most 3 of 30, nor weak ones: each direction has a strength of its own, the families' as the matched ones."""
    strong = weak = 0
    for seed in range(30):
        one, rng = synthetic.steering_result(matched=20, seed=seed), np.random.default_rng(seed)
        one["kl"] = one["kl"] * rng.lognormal(0, 1, one.sizes["direction"])[None, None, :, None, None]
        source = Source(synthetic.tree_of(a={"steering": one}), "a", SteeringProfile.requires)
        rank = SteeringProfile().estimate(*source.effects(source.settings[0]))["rank"]
        strong += rank.p <= 0.05 and rank.side > 0
        weak += rank.side < 0
    assert max(strong, weak) <= 3


def test_a_prompts_own_family_is_told_from_the_others(synthetic):
    dataset = compare(synthetic, a=synthetic.steering_result(family=np.full(LAYERS, 9.0)))
    at = dataset["effect"].isel(model=0).sel(scale="relative", dose=0.25, bound="value")
    assert (at.sel(kind="family") > 5 * at.sel(kind="off_task")).all()


def test_the_spread_holds_95_percent_of_the_single_directions(synthetic):
    result = synthetic.steering_result()
    dataset = compare(synthetic, a=result).isel(model=0).sel(dose=0.25)
    both = result["kl"].sel(strength=[-0.25, 0.25]).mean(["prompt", "strength"])  # families are of one size
    for kind in ("random", "matched"):
        chosen = both.isel(direction=np.flatnonzero(result["direction_kind"] == kind))
        each = chosen.transpose("direction", "scale", "layer")
        for end, share in (("low", 0.025), ("high", 0.975)):
            np.testing.assert_allclose(dataset["spread"].sel(kind=kind, bound=end), np.quantile(each, share, axis=0))


def test_both_signs_of_a_dose_are_averaged(synthetic):
    one = synthetic.steering_result()
    one["kl"].loc[{"strength": -0.25}] = 3.0
    one["kl"].loc[{"strength": 0.25}] = 1.0
    dataset = compare(synthetic, a=one)
    assert dataset["dose"].values.tolist() == [0.1, 0.25, 1.0]
    np.testing.assert_allclose(dataset["effect"].sel(dose=0.25, bound="value"), 2.0)


def test_the_dose_shown_is_the_nearest_as_a_ratio(synthetic):
    """0.5 is twice 0.25, which is more than twice 0.1."""
    dataset = compare(synthetic, a=synthetic.steering_result(strengths=(0.1, 0.5)))
    assert dataset["dose_shown"].item() == 0.5


def test_models_of_other_depth_and_strengths_are_lined_up(synthetic):
    dataset = compare(
        synthetic,
        a=synthetic.steering_result(),
        b=synthetic.steering_result(strengths=(0.25, 2.0), layers=5),
        c=synthetic.steering_result(layers=1),
    )
    assert dataset["dose"].values.tolist() == [0.1, 0.25, 1.0, 2.0]
    assert dataset["dose_shown"].values.tolist() == [0.25] * 3
    assert dataset["effect"].sel(model="b").isel(layer=slice(5, None)).isnull().all()
    assert dataset["effect"].sel(model="a", dose=2.0).isnull().all()
    assert told(dataset, "c")["early_over_late"].reason == "one layer has no halves"
    assert SteeringProfile().plot(dataset).axes


def test_twins_are_drawn_at_the_same_share_of_the_norm(synthetic):
    held = {name: {"steering": synthetic.steering_result(growth=1.3)} for name in ("a", "a~untrained_0")}
    dataset = SteeringProfile().compare(synthetic.tree_of(**held))
    lines = {line.get_gid(): line.get_ydata() for line in SteeringProfile().plot(dataset).axes[0].lines}
    np.testing.assert_allclose(lines["twin"], lines["family-relative"])
    assert not np.allclose(lines["twin"], lines["family-absolute"], rtol=0.2)


def test_the_figure_shows_both_scales_and_marks_what_lies_below_the_floor(synthetic):
    one = synthetic.steering_result(growth=1.3)
    one["kl"].loc[{"strength": 0.1}] = 1e-6
    dataset = compare(synthetic, a=one)
    figure = SteeringProfile().plot(dataset)
    gids = {line.get_gid(): line for axes in figure.axes for line in axes.lines}
    absolute, relative = (gids[f"family-{scale}"].get_ydata() for scale in ("absolute", "relative"))
    assert absolute[0] > 5 * absolute[-1]
    assert relative[0] < 2 * relative[-1]
    assert np.isnan(gids["dose-family"].get_ydata()).tolist() == [True, False, False]
    effect = dataset.sel(model="a", bound="value")
    own = effect["effect"].sel(dose=0.25)
    for kind, scale in (("matched", "relative"), ("family", "absolute"), ("family", "relative")):
        assert shows(gids[f"{kind}-{scale}"], own.sel(kind=kind, scale=scale))
    assert shows(gids["rank"], effect["rank"])
    for kind in ("matched", "family"):
        response = effect["response"].sel(kind=kind)
        assert shows(gids[f"dose-{kind}"], response.where(response >= 1e-4))
    assert any(text.get_text().startswith("below") for text in figure.legends[0].get_texts())
