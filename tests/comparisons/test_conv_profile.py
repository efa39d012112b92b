"""Conv profiles: the planted factor and tap carry, in the planted layer; elsewhere nothing is claimed."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from looking import explained, shows

from xatlas.comparisons.conv_profile import ConvProfile


def compare(synthetic, **models):
    return ConvProfile().compare(synthetic.tree_of(**models))


def told(dataset):
    return {finding.name: finding for finding in ConvProfile().findings(dataset)}


def both(synthetic, **more):
    plant = synthetic.conv_plant(1, **more)
    return synthetic.conv_results(plant, plant)


def test_the_planted_factor_and_tap_lead(synthetic):
    dataset = compare(synthetic, a=both(synthetic))
    assert dataset["factor_lead"].item() == "carrier"
    assert dataset["tap_lead"].item() == "-1"
    found = told(dataset)
    assert {name: finding.verdict for name, finding in found.items()} == {
        "factor_lead": "supported",
        "tap_lead": "supported",
    }
    assert "the carrier matters most" in found["factor_lead"].sentence
    assert "tap -1 matters most" in found["tap_lead"].sentence
    assert "summed over 4 conv layers" in found["tap_lead"].sentence
    # three layers of 3 and one of 30, over four of 1
    assert found["tap_lead"].value == pytest.approx(39 / 4, rel=0.25)
    for finding in found.values():
        assert finding.low < finding.value < finding.high
        assert finding.control_low < finding.control < finding.control_high


def test_the_number_is_of_effects_summed_over_conv_layers(synthetic):
    results = synthetic.conv_results()
    convs = results["conv_factors"]["operator_type"].values == "conv"
    kl = np.where(convs[:, None], np.array([8.0, 2.0, 0.5]), np.nan)
    results["conv_factors"]["kl"].values[:] = kl[None, :, :, None, None]
    dataset = compare(synthetic, a=results)
    assert told(dataset)["factor_lead"].value == pytest.approx(4)
    np.testing.assert_allclose(dataset["factor_effect"].isel(model=0, layer=0), np.tile([[8.0], [2.0], [0.5]], 3))


@pytest.mark.parametrize("seed", range(4))
def test_labels_permuted_within_templates_lead_nowhere(synthetic, seed):
    one, rng = both(synthetic), np.random.default_rng(seed)
    for part, probe in (("factor", "conv_factors"), ("tap", "conv_taps")):
        axis = one[probe]["kl"].get_axis_num(part) - 1
        for start in range(0, synthetic.N_PROMPTS, 2):
            order = rng.permutation(3)
            for row in (start, start + 1):
                one[probe]["kl"].values[row] = np.take(one[probe]["kl"].values[row], order, axis=axis)
    for models in (one, synthetic.conv_results(seed=seed)):
        findings = ConvProfile().findings(compare(synthetic, a=models))
        assert {finding.verdict for finding in findings} == {"undecided"}
        assert all(finding.reason.startswith("it ties with") for finding in findings)


def test_ablation_kinds_that_disagree_leave_it_undecided(synthetic):
    one = both(synthetic)
    one["conv_factors"]["kl"].loc[{"ablation": "resample", "layer": 5, "factor": "gate"}] *= 1000
    found = told(compare(synthetic, a=one))
    assert found["factor_lead"].reason == "kinds disagree: resample"
    assert found["tap_lead"].verdict == "supported"
    one["conv_factors"] = one["conv_factors"].sel(ablation=["mean"])
    assert told(compare(synthetic, a=one))["factor_lead"].reason == "one kind"


def test_what_the_control_does_too_is_not_supported(synthetic):
    one = both(synthetic)
    one["conv_taps"]["kl_control"] = one["conv_taps"]["kl"] ** 2 * 10
    assert told(compare(synthetic, a=one))["tap_lead"].verdict == "refuted"
    one["conv_taps"]["kl_control"] = one["conv_taps"]["kl"]
    assert told(compare(synthetic, a=one))["tap_lead"].verdict == "undecided"


def test_controls_of_several_draws_without_kinds_are_averaged(synthetic):
    one = both(synthetic)
    control = one["conv_factors"]["kl_control"].isel(draw=0, drop=True)
    one["conv_factors"] = (
        one["conv_factors"].drop_vars("kl_control").assign(kl_control=xr.concat([control, 3 * control], "draw"))
    )
    dataset = compare(synthetic, a=one)
    own = 2 * control.sel(scope="last", factor="gate", layer=0).mean()
    assert float(dataset["factor_control"].sel(model="a", factor="gate", layer=0, bound="value")) == pytest.approx(
        float(own)
    )
    assert told(dataset)["factor_lead"].verdict == "supported"


def test_kernels_of_other_length_and_models_without_are_lined_up(synthetic):
    wide = synthetic.conv_results(seed=1, kernel=4)
    none = synthetic.conv_results(types=["attention"] * 3, seed=2)
    dataset = compare(synthetic, a=synthetic.conv_results(), b=wide, c=none)
    assert dataset["tap"].values.tolist() == [-3, -2, -1, 0]
    own = synthetic.conv_results()["conv_taps"]["kl"].sel(tap=0, layer=0, scope="last")
    ours = dataset["tap_effect"].sel(model="a", tap=0, layer=0, bound="value")
    assert float(ours) == pytest.approx(float(own.mean()))
    assert dataset["tap_effect"].sel(model="a", tap=-3).isnull().all()
    assert dataset["factor_effect"].sel(model="c").isnull().all()
    rows = ConvProfile().table(dataset)
    assert [row["model"] for row in rows] == ["a"] * 2 + ["b"] * 2 + ["c"]
    assert rows[-1]["number"] == "no conv layers"
    assert {finding.model for finding in ConvProfile().findings(dataset)} == {"a", "b"}
    alone = compare(synthetic, c=none)
    assert ConvProfile().findings(alone) == []
    assert ConvProfile().plot(alone).axes


def test_the_figure_shows_conv_layers_only(synthetic):
    dataset = compare(synthetic, a=synthetic.conv_results(synthetic.conv_plant(1), synthetic.conv_plant(2)))
    figure = ConvProfile().plot(dataset)
    axes = figure.axes
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["0", "1", "3", "5"]
    lines = {line.get_gid(): line.get_ydata() for each in axes for line in each.lines}
    np.testing.assert_allclose(
        lines["tap-0"], dataset["tap_effect"].sel(model="a", tap=0, bound="value").values[[0, 1, 3, 5]]
    )
    assert lines["factor-carrier"].argmax() == 2
    for each, part in zip(axes, ("factor", "tap"), strict=True):
        one = dataset.sel(model="a").isel(layer=[0, 1, 3, 5])
        labels = one[part].values[:: -1 if part == "tap" else 1]
        controls = [line for line in each.lines if line.get_marker() == "_"]
        for label, spans, control in zip(labels, each.collections, controls, strict=True):
            at = one.sel({part: label})
            ends = [segment[:, 1] for segment in spans.get_segments()]
            np.testing.assert_allclose(
                ends, at[f"{part}_effect"].sel(bound=["low", "high"]).transpose("layer", "bound")
            )
            assert shows(control, at[f"{part}_control"].sel(bound="value"))
    looks = {line.get_gid(): (line.get_color(), line.get_marker()) for each in axes for line in each.lines}
    told = {text: (line.get_color(), line.get_marker()) for text, line in explained(figure).items()}
    for tap in (0, -1, -2):
        assert told[f"tap {tap}, zeroed"] == looks[f"tap-{tap}"]
    for factor in ("gate", "carrier", "signal"):
        assert told[f"{factor}, set to its mean"] == looks[f"factor-{factor}"]


def zeroed(held, values):
    odd = held["conv_factors"].sel(ablation=["mean"]).assign_coords(ablation=["zero"]).copy(deep=True)
    odd["kl"][:] = values(odd["kl"])
    held["conv_factors"] = xr.concat([held["conv_factors"], odd], "ablation")
    return held


def test_factors_that_are_zeroed_agree_by_algebra(synthetic):
    held = zeroed(both(synthetic), lambda kl: kl.sel(factor="gate"))
    found = told(compare(synthetic, a=held))
    assert found["zero_alike"].verdict == "artefact"
    assert found["zero_alike"].reason.startswith("algebra")
    assert found["zero_alike"].value == pytest.approx(1)
    assert found["factor_lead"].verdict == "supported"  # the kind that is algebra has no say
    for factor in ("gate", "carrier", "signal"):  # as a bias behind it would have it
        apart = zeroed(both(synthetic), lambda kl, one=factor: kl.sel(factor="gate") * (1 + (kl["factor"] == one)))
        assert told(compare(synthetic, a=apart))["zero_alike"].verdict == "refuted"
