"""Steering profiles: what is only the norm of the stream is called an artefact."""

from __future__ import annotations

import numpy as np
import pytest

from xatlas.comparisons.steering_profile import SteeringProfile
from xatlas.errors import XatlasError

LAYERS = 8


def compare(synthetic, **models):
    return SteeringProfile().compare(synthetic.tree_of(**{name: {"steering": one} for name, one in models.items()}))


def verdicts(dataset):
    return [finding.verdict for finding in SteeringProfile().findings(dataset)]


def test_the_norm_of_the_stream_is_an_artefact(synthetic):
    """Early layers steer better at one length, for the stream is short there; at one share of it they don't."""
    dataset = compare(synthetic, a=synthetic.steering_result(growth=1.4))
    ratio = dataset["early_over_late"].isel(model=0).sel(kind="random", dose=0.25)
    assert float(ratio.sel(scale="absolute")) > 5
    assert float(ratio.sel(scale="relative")) == pytest.approx(1, abs=0.25)
    assert verdicts(dataset)[:2] == ["artefact", "artefact"]


def test_too_little_evidence_is_no_artefact(synthetic):
    """An interval above 1 that misses significance does not say that the claim fails."""
    dataset = compare(synthetic, a=synthetic.steering_result(growth=1.4))
    at = {"kind": "random", "scale": "relative", "dose": 0.25}
    for name, value in (("", 1.97), ("_low", 1.16), ("_high", 2.81), ("_p", 0.094)):
        dataset[f"early_over_late{name}"].loc[at] = value
    assert verdicts(dataset)[0] == "undecided"


def test_early_layers_that_do_steer_better_are_supported_and_lost_when_shuffled(synthetic):
    one = synthetic.steering_result(early=1.5)
    assert verdicts(compare(synthetic, a=one))[0] == "supported"
    rng = np.random.default_rng(0)
    shuffled = one.copy(deep=True)
    for i in range(one.sizes["prompt"]):
        shuffled["kl"].values[i] = one["kl"].values[i, rng.permutation(LAYERS)]
    assert verdicts(compare(synthetic, a=shuffled))[0] != "supported"


def test_late_layers_that_steer_better_are_not_supported(synthetic):
    assert verdicts(compare(synthetic, a=synthetic.steering_result(early=0.7)))[0] == "refuted"


def test_the_layer_of_a_familys_own_direction_is_found(synthetic):
    family = np.ones(LAYERS)
    family[5] = 6
    dataset = compare(synthetic, a=synthetic.steering_result(family=family))
    finding = SteeringProfile().findings(dataset)[-1]
    assert finding.verdict == "supported"
    assert dataset["peak"].item() == 5
    assert 3 < finding.low < finding.value < finding.high < 12
    assert finding.control == pytest.approx(1, abs=0.3)
    plain = SteeringProfile().findings(compare(synthetic, a=synthetic.steering_result()))[-1]
    assert plain.verdict != "supported"


def test_a_prompts_own_family_is_told_from_the_others(synthetic):
    dataset = compare(synthetic, a=synthetic.steering_result(family=np.full(LAYERS, 9.0)))
    at = dataset["effect"].isel(model=0).sel(scale="relative", dose=0.25)
    assert (at.sel(kind="family") > 5 * at.sel(kind="off_task")).all()
    for kind in ("random", "matched"):
        low, high = (dataset[f"{kind}_{end}"].isel(model=0).sel(scale="relative", dose=0.25) for end in ("low", "high"))
        assert ((low < at.sel(kind=kind)) & (at.sel(kind=kind) < high)).all(), kind


def test_both_signs_of_a_dose_are_averaged(synthetic):
    one = synthetic.steering_result()
    one["kl"].loc[{"strength": -0.25}] = 3.0
    one["kl"].loc[{"strength": 0.25}] = 1.0
    dataset = compare(synthetic, a=one)
    assert dataset["dose"].values.tolist() == [0.1, 0.25, 1.0]
    np.testing.assert_allclose(dataset["effect"].sel(dose=0.25), 2.0)


def test_models_of_other_depth_and_strengths_meet_in_what_they_share(synthetic):
    dataset = compare(
        synthetic,
        a=synthetic.steering_result(),
        b=synthetic.steering_result(strengths=(0.25, 2.0), layers=5),
        c=synthetic.steering_result(layers=1),
    )
    assert dataset["dose"].values.tolist() == [0.25]
    assert dataset["effect"].sel(model="b").isel(layer=slice(5, None)).isnull().all()
    assert [row["model"] for row in SteeringProfile().table(dataset)] == ["a", "a", "b", "b", "c", "c"]
    alone = synthetic.steering_result(strengths=(3.0,))
    with pytest.raises(XatlasError, match="different strengths"):
        compare(synthetic, a=synthetic.steering_result(), b=alone)


def test_the_figure_shows_both_scales_and_a_line_per_layer(synthetic):
    figure = SteeringProfile().plot(compare(synthetic, a=synthetic.steering_result(growth=1.3)))
    gids = {line.get_gid(): line for axes in figure.axes for line in axes.lines}
    absolute, relative = (gids[f"random-{scale}-a"].get_ydata() for scale in ("absolute", "relative"))
    assert absolute[0] > 5 * absolute[-1]
    assert relative[0] < 2 * relative[-1]
    assert all(f"dose-a-{layer}" in gids for layer in range(LAYERS))


def test_early_over_late_is_tested_on_both_sides(synthetic):
    held = {"steering": synthetic.steering_result(early=1 / 1.5)}
    p = SteeringProfile().compare(synthetic.tree_of(a=held))["early_over_late_p"]
    assert float(p.sel(kind="random", scale="relative").max()) < 0.05
