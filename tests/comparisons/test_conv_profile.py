"""Conv profiles: the planted factor and tap carry, in the planted layer; elsewhere nothing is claimed."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from xatlas.comparisons.conv_profile import ConvProfile


def compare(synthetic, **models):
    return ConvProfile().compare(synthetic.tree_of(**models))


def test_the_planted_factor_and_tap_are_found_in_their_layer(synthetic):
    dataset = compare(synthetic, a=synthetic.conv_results(synthetic.conv_plant(1), synthetic.conv_plant(1)))
    assert dataset["factor_lead"].item() == "carrier"
    assert dataset["tap_lead"].item() == "-1"
    factor, tap = ConvProfile().findings(dataset)
    assert (factor.verdict, tap.verdict) == ("supported", "supported")
    assert "the carrier outweighs" in factor.sentence
    assert "tap -1 outweighs" in tap.sentence
    assert dataset["factor_peak"].item() == dataset["tap_peak"].item() == 3
    assert 15 < tap.low < tap.value < tap.high < 60
    carriers = dataset["tap_carrier"].isel(model=0).values.tolist()
    assert carriers == ["-1", "-1", "", "-1", "", "-1"]


def test_shuffled_layers_and_equal_effects_support_nothing(synthetic):
    one = synthetic.conv_results(synthetic.conv_plant(1), synthetic.conv_plant(1))
    rng = np.random.default_rng(0)
    conv = np.flatnonzero([kind == "conv" for kind in synthetic.CONV_TYPES])
    for dataset in one.values():
        for i in range(dataset.sizes["prompt"]):
            dataset["kl"].values[i, conv] = dataset["kl"].values[i, rng.permutation(conv)]
    for models in (one, synthetic.conv_results()):
        findings = ConvProfile().findings(compare(synthetic, a=models))
        assert all(finding.verdict != "supported" for finding in findings)


def test_ablation_kinds_that_disagree_leave_it_undecided(synthetic):
    one = synthetic.conv_results(synthetic.conv_plant(1), synthetic.conv_plant(1))
    one["conv_factors"]["kl"].loc[{"ablation": "resample", "layer": 5, "factor": "carrier"}] *= 1000
    factor, tap = ConvProfile().findings(compare(synthetic, a=one))
    assert (factor.verdict, tap.verdict) == ("undecided", "supported")


def test_what_the_control_does_too_is_not_supported(synthetic):
    one = synthetic.conv_results(synthetic.conv_plant(1), synthetic.conv_plant(1))
    one["conv_taps"]["kl_control"] = one["conv_taps"]["kl"] ** 2 * 10
    assert ConvProfile().findings(compare(synthetic, a=one))[1].verdict == "not supported"


def test_kernels_of_other_length_and_models_without_are_lined_up(synthetic):
    wide = synthetic.conv_results(seed=1, kernel=4)
    none = synthetic.conv_results(types=["attention"] * 3, seed=2)
    dataset = compare(synthetic, a=synthetic.conv_results(), b=wide, c=none)
    assert dataset["tap"].values.tolist() == [-3, -2, -1, 0]
    own = synthetic.conv_results()["conv_taps"]["kl"].sel(tap=0, layer=0, scope="last")
    ours = dataset["tap_effect"].sel(model="a", tap=0, layer=0)
    assert float(ours) == pytest.approx(float(own.mean()))
    assert dataset["tap_effect"].sel(model="a", tap=-3).isnull().all()
    assert dataset["factor_effect"].sel(model="c").isnull().all()
    rows = ConvProfile().table(dataset)
    assert [row["model"] for row in rows] == ["a"] * 4 + ["b"] * 4 + ["c"]
    assert rows[-1]["tap"] == "–"
    assert {finding.model for finding in ConvProfile().findings(dataset)} == {"a", "b"}
    alone = compare(synthetic, c=none)
    assert [finding.verdict for finding in ConvProfile().findings(alone)] == ["undecided"]
    assert ConvProfile().plot(alone).axes


def test_the_figure_shows_conv_layers_only(synthetic):
    dataset = compare(synthetic, a=synthetic.conv_results(synthetic.conv_plant(1), synthetic.conv_plant(2)))
    axes = ConvProfile().plot(dataset).axes
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["0", "1", "3", "5"]
    lines = {line.get_gid(): line.get_ydata() for each in axes for line in each.lines}
    np.testing.assert_allclose(lines["tap-0-a"], dataset["tap_effect"].sel(model="a", tap=0).values[[0, 1, 3, 5]])
    assert lines["factor-carrier-a"].argmax() == 2


def test_zero_ablation_has_no_say(synthetic):
    plant = synthetic.conv_plant(1)
    held = synthetic.conv_results(plant, plant)
    odd = held["conv_factors"].sel(ablation=["mean"]).assign_coords(ablation=["zero"]).copy(deep=True)
    odd["kl"][:] = odd["kl"].values[:, ::-1]
    held["conv_factors"] = xr.concat([held["conv_factors"], odd], "ablation", data_vars="minimal")
    assert float(ConvProfile().compare(synthetic.tree_of(a=held))["factor_kinds_agree"][0]) == 1
