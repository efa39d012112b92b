import numpy as np
import pytest
import xarray as xr

from xatlas.comparisons.early_late import EarlyLate, interpolated
from xatlas.findings.groups import halves


def compare(synthetic, **models):
    tree = synthetic.tree_of(**{name: {"layer_ablation": result} for name, result in models.items()})
    return EarlyLate().compare(tree)


def falling(base):
    def plant(kl):
        kl *= (base ** -np.arange(kl.shape[1]))[:, None, None, None]
        return kl

    return plant


def ratio(dataset, setting=0):
    return dataset["sensitivity"].sel(finding="early_over_late|a").isel(setting=setting).values


def test_an_odd_middle_layer_is_left_out():
    early, late = halves(xr.DataArray([1.0, 3.0, 100.0, 4.0, 6.0], dims="layer"))
    assert (early, late) == (2.0, 5.0)
    assert np.isnan(halves(xr.DataArray([1.0], dims="layer"))).all()


def test_the_ratio_is_of_mean_joint_effects(synthetic):
    def plant(kl):
        kl[:] = 1.0
        kl[:, :3, 2] = 6.0
        return kl

    dataset = compare(synthetic, a=synthetic.layer_result(["attention"] * 7, plant))
    assert ratio(dataset) == pytest.approx([6] * 3)


def test_early_effects_are_supported_and_lost_when_shuffled(synthetic):
    result = synthetic.layer_result(["attention"] * 8, falling(1.6))
    dataset = compare(synthetic, a=result)
    (finding,) = EarlyLate().findings(dataset)
    assert finding.verdict == "supported"
    assert finding.low > 1
    assert finding.short == "early layers matter more"
    shuffled = [compare(synthetic, a=synthetic.shuffle_layers(result, seed)) for seed in range(20)]
    assert sum(EarlyLate().findings(each)[0].verdict == "supported" for each in shuffled) <= 3  # 5 % of them by luck


def test_late_effects_are_told_from_early_ones(synthetic):
    (finding,) = EarlyLate().findings(compare(synthetic, a=synthetic.layer_result(["conv"] * 8, falling(0.7))))
    assert finding.verdict == "supported"
    assert finding.short == "late layers matter more"
    assert finding.high < 1


@pytest.mark.parametrize("base", [1.6, 0.6])
def test_what_the_control_does_too_is_not_supported(synthetic, base):
    result = synthetic.layer_result(["attention"] * 8, falling(base))
    result["kl_control"] = 0.1 * result["kl"] ** 2
    found = EarlyLate().findings(compare(synthetic, a=result))[0]
    assert (found.verdict, found.reason) == ("refuted", "its control does so even more")
    assert found.short == "early / late"  # no title says which


def test_models_of_different_length_share_a_profile(synthetic):
    dataset = compare(
        synthetic,
        a=synthetic.layer_result(["attention"] * 8, falling(1.6)),
        b=synthetic.layer_result(["conv", "attention"] * 6, falling(1.4), seed=1),
        c=synthetic.layer_result(["attention"] * 10, falling(0.7), seed=2),
    )
    found = {f.model + f.model_other: f for f in EarlyLate().findings(dataset) if f.name == "profile_correlation"}
    assert [found[pair].verdict for pair in ("ab", "ac", "bc")] == ["supported", "refuted", "refuted"]
    assert found["ab"].value > 0.9
    assert found["ac"].value < -0.9
    assert -1 <= found["ab"].control_low < -0.3 < found["ab"].control < 0.3 < found["ab"].control_high <= 1


def test_pairs_of_models_are_told_apart_or_alike_by_the_ratio_of_halves(synthetic):
    steep, same, flat = (synthetic.layer_result(["attention"] * 8, falling(base)) for base in (1.6, 1.6, 1.0))
    dataset = compare(synthetic, a=steep, b=same, c=flat)
    found = {f.model + f.model_other: f for f in EarlyLate().findings(dataset) if f.name == "early_over_late"}
    assert found["ab"].verdict == found["ac"].verdict == "supported"
    assert found["ab"].short.endswith("is the same")
    assert found["ac"].short.endswith("differs")
    assert found["ac"].value == pytest.approx(found["a"].value / found["c"].value)


def test_a_difference_between_models_that_their_controls_show_too_is_none(synthetic):
    steep, flat = (synthetic.layer_result(["attention"] * 8, falling(base)) for base in (1.6, 1.2))
    for result in (steep, flat):
        result["kl_control"] = 0.1 * result["kl_control"]
    (apart,) = (
        f
        for f in EarlyLate().findings(compare(synthetic, a=steep, b=flat))
        if f.name == "early_over_late" and f.model_other
    )
    assert apart.verdict == "supported"
    for result in (steep, flat):
        result["kl_control"] = result["kl_control"].copy(
            data=np.broadcast_to(
                0.1 * result["kl"].sel(ablation="mean").expand_dims(draw=2).transpose(*result["kl_control"].dims),
                result["kl_control"].shape,
            )
        )
    (same,) = (
        f
        for f in EarlyLate().findings(compare(synthetic, a=steep, b=flat))
        if f.name == "early_over_late" and f.model_other
    )
    assert (same.verdict, same.reason) == ("undecided", "no more than its control")
    assert same.control == pytest.approx(same.value)
    assert "control" in same.sentence


def test_the_profile_is_interpolated_between_layers_for_correlations_alone(synthetic):
    def plant(kl):
        kl[:] = 1.0
        kl[:, 1] = 3.0
        return kl

    dataset = compare(synthetic, a=synthetic.layer_result(["attention"] * 2, plant))
    np.testing.assert_allclose(dataset["profile"].sel(bound="value").values[0], [0.5, 1.5])
    np.testing.assert_allclose(interpolated(np.array([0.5, 1.5])), np.linspace(0.5, 1.5, 20))


def test_one_layer_has_no_halves(synthetic):
    dataset = compare(synthetic, a=synthetic.layer_result(["conv"]), b=synthetic.layer_result(["conv"] * 4))
    (alone,) = (
        finding for finding in EarlyLate().findings(dataset) if finding.model == "a" and not finding.model_other
    )
    assert alone.verdict == "undecided"
    assert "–" in EarlyLate().table(dataset)[0]["value"]


def test_profiles_stand_on_one_axis_before_those_of_the_others(synthetic):
    steep, flat = (synthetic.layer_result(["conv"] * n, falling(base)) for n, base in ((6, 4.0), (4, 1.0)))
    dataset = compare(synthetic, a=steep, b=flat)
    first, second, below = EarlyLate().plot(dataset).axes
    assert first.get_ylim() == second.get_ylim()
    assert first.get_yticks().tolist() == second.get_yticks().tolist()
    profile = dataset["profile"].sel(bound="value")
    for axes, own, other in ((first, "a", "b"), (second, "b", "a")):
        lines = {line.get_gid(): line.get_xydata() for line in axes.lines}
        for gid, model in (("profile", own), ("other", other)):
            one = profile.sel(model=model).dropna("layer")
            np.testing.assert_allclose(lines[gid], np.column_stack([one["depth"], one]))
    for y, model in enumerate("ab"):
        (marks,) = (line for line in below.lines if line.get_marker() == "|" and set(line.get_ydata()) == {y})
        settings = dataset["sensitivity"].sel(finding=f"early_over_late|{model}", bound="value")[1:]
        np.testing.assert_array_equal(marks.get_xdata(), settings)


def test_two_models_differ_where_other_kinds_of_ablation_say_so_too(synthetic):
    steep, flat = (
        synthetic.layer_result(["conv"] * 4, falling(base), seed=seed) for seed, base in enumerate((3.0, 1.0))
    )
    for times, said in ((1.0, ("supported", "")), (1e3, ("undecided", "kinds disagree: zero"))):
        flat["kl"].loc[{"ablation": "zero", "layer": 0}] *= times
        findings = EarlyLate().findings(compare(synthetic, a=steep, b=flat))
        (pair,) = (each for each in findings if each.name == "early_over_late" and each.model_other)
        assert (pair.verdict, pair.reason) == said
