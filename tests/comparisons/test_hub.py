import numpy as np
import pytest

from xatlas import XatlasError
from xatlas.comparisons.hub import Hub
from xatlas.comparisons.measures import summary

TYPES = ["attention"] * 6


def planted(layer, factor=12.0):
    def plant(kl):
        kl[:, layer] *= factor
        return kl

    return plant


def compare(synthetic, **models):
    tree = synthetic.tree_of(**{name: {"layer_ablation": result} for name, result in models.items()})
    return Hub().compare(tree)


def sensitivity(dataset):
    return {row["setting"]: row for row in summary.sensitivity_rows(dataset) if row["number"] == "joint hub"}


def joint(dataset, model=0):
    return dataset.isel(model=model).sel(component="joint")


def test_a_planted_hub_is_found(synthetic):
    dataset = compare(synthetic, a=synthetic.layer_result(TYPES, planted(4)))
    one = joint(dataset)
    assert one["hub"] == 4
    assert one["hub_depth"] == pytest.approx(0.8)
    assert one["p_rank1"].values[4] == 1.0
    assert one["margin_low"] > 0
    assert not one["tie"]
    finding = Hub().findings(dataset)[0]
    assert finding.verdict == "supported"
    assert finding.p < 0.001
    assert finding.low < finding.value < finding.high
    assert "layer 4" in finding.sentence


def test_two_equal_layers_are_called_a_tie(synthetic):
    def plant(kl):
        kl[:, 2] *= 12
        kl[:, 4] = kl[:, 2]
        return kl

    dataset = compare(synthetic, a=synthetic.layer_result(TYPES, plant))
    assert joint(dataset)["tie"] == 1
    assert {int(joint(dataset)["hub"]), int(joint(dataset)["tied"].item())} == {2, 4}
    assert joint(dataset)["p_rank1"].values[2] == 0.5
    finding = Hub().findings(dataset)[0]
    assert finding.verdict != "supported"
    assert "ties with" in finding.sentence


def test_a_layer_without_effect_is_exactly_zero(synthetic):
    dataset = compare(synthetic, a=synthetic.layer_result(TYPES, planted(3, 0.0)))
    one = joint(dataset)
    assert one["effect"].values[3] == one["effect_low"].values[3] == one["effect_high"].values[3] == 0
    assert one["p_effect"].values[3] > 0.5
    assert one["p_rank1"].values[3] == 0


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_layer_labels_lose_support(synthetic, seed):
    result = synthetic.layer_result(TYPES, planted(4))
    dataset = compare(synthetic, a=synthetic.shuffle_layers(result, seed))
    assert "supported" not in [finding.verdict for finding in Hub().findings(dataset)]


def test_a_hub_no_larger_than_its_control_is_not_supported(synthetic):
    result = synthetic.layer_result(TYPES, planted(4))
    result["kl_control"] = result["kl"] * 1.5
    assert Hub().findings(compare(synthetic, a=result))[0].verdict == "refuted"


def test_ablation_kinds_that_disagree_leave_it_undecided(synthetic):
    result = synthetic.layer_result(TYPES, planted(4))
    result["kl"].loc[{"ablation": "zero", "layer": 1}] *= 100
    assert Hub().findings(compare(synthetic, a=result))[0].verdict == "undecided"


def test_operator_and_mlp_hubs_are_found_apart(synthetic):
    def plant(kl):
        kl[:, 1, 0] *= 12
        kl[:, 5, 1] *= 12
        return kl

    result = synthetic.layer_result(TYPES, plant)
    result["kl"].loc[{"ablation": "zero", "component": "mlp", "layer": 0}] *= 1000
    dataset = compare(synthetic, a=result)
    assert dataset["hub"].isel(model=0).sel(component=["operator", "mlp"]).values.tolist() == [1, 5]
    told = {finding.sentence.split(" of ")[0]: finding.verdict for finding in Hub().findings(dataset)[1:]}
    assert told == {"The operator hub": "supported", "The MLP hub": "undecided"}
    rows = {row["component"]: row for row in Hub().table(dataset)}
    assert rows["operator"]["verdict"] == "supported"
    assert rows["operator"]["sensitivity"].startswith("2 of 2 other settings agree")
    assert rows["mlp"]["sensitivity"].startswith("1 of 2 other settings agree")


def test_a_model_without_mlps_has_no_mlp_hub(synthetic):
    def plant(kl):
        kl[:, :, 1] = np.nan
        return planted(2)(kl)

    dataset = compare(synthetic, a=synthetic.layer_result(TYPES, plant))
    assert np.isnan(dataset["hub"].sel(component="mlp"))
    assert {row["component"] for row in Hub().table(dataset)} == {"joint", "operator"}


def test_prompts_that_are_absent_are_left_out(synthetic):
    result = synthetic.layer_result(TYPES, planted(4))
    whole = joint(compare(synthetic, a=result))
    result["kl"].values[0] = np.nan
    one = joint(compare(synthetic, a=result))
    assert np.isfinite(one["effect"]).all()
    assert one["hub"] == 4
    assert not np.array_equal(one["effect"], whole["effect"])


def test_hubs_at_different_depths_in_models_of_different_length(synthetic):
    dataset = compare(
        synthetic,
        a=synthetic.layer_result(TYPES, planted(0)),
        b=synthetic.layer_result(["conv", "attention"] * 5, planted(9), seed=1),
        c=synthetic.layer_result(["attention"] * 11, planted(0), seed=2),
    )
    pairs = Hub().findings(dataset)[3:6]
    assert [(pair.value, pair.verdict) for pair in pairs] == [
        (-1.0, "supported"),
        (0.0, "refuted"),
        (1.0, "supported"),
    ]
    assert np.isnan(dataset["effect"].sel(model="a").values[:, 6:]).all()


def test_one_layer_is_no_hub(synthetic):
    dataset = compare(synthetic, a=synthetic.layer_result(["conv"]))
    assert Hub().findings(dataset)[0].verdict == "undecided"
    assert joint(dataset)["hub_depth"] == 0


def test_without_anything_to_resample_nothing_is_supported(synthetic):
    """One prompt per family: the depths of two hubs have no interval either, even beside a model that has one."""
    few = synthetic.layer_result(TYPES, planted(4)).isel(prompt=[0, 8, 16])
    for other in (few, synthetic.layer_result(TYPES, planted(0), seed=1)):
        dataset = compare(synthetic, a=few, b=other)
        assert np.isnan(joint(dataset)["effect_low"]).all()
        assert np.isnan(joint(dataset)["p_rank1"]).all()
        hub, _, pair, *_ = Hub().findings(dataset)
        assert (hub.verdict, pair.verdict) == ("undecided", "undecided")
        assert np.isnan([hub.p, pair.p, pair.low, pair.high]).all()
        assert pair.value == joint(dataset)["hub_depth"] - joint(dataset, 1)["hub_depth"]
        assert Hub().table(dataset)[0]["P(rank 1)"] == "–"


def test_a_model_without_joint_effect_has_no_depth_to_compare(synthetic):
    none = synthetic.layer_result(TYPES)
    none["kl"].loc[{"component": "joint"}] = np.nan
    pair = Hub().findings(compare(synthetic, a=none, b=synthetic.layer_result(TYPES, planted(4))))[2]
    assert np.isnan([pair.value, pair.p]).all()
    assert pair.verdict == "undecided"


def test_a_missing_sensitivity_row_gives_the_command(synthetic):
    result = synthetic.layer_result(TYPES, planted(0), ablations=("mean",))
    rows = sensitivity(compare(synthetic, a=result))
    assert rows["mean, last, bos always, quick"]["value"] == 0
    other = rows["mean, last, bos always, quick, layer 0 excluded"]
    assert other["command"] == ""
    assert other["value"] > 0
    missing = rows["mean, all, bos always, quick"]
    assert (missing["model"], missing["value"], missing["low"], missing["high"]) == ("a", "not run", "", "")
    assert missing["command"] == (
        "xatlas run a --probes layer_ablation --suite quick --bos always --set layer_ablation.scopes=last,all"
    )
    assert rows["mean, last, bos native, quick"]["command"].endswith("--suite quick --bos native")
    assert "--suite standard --bos always" in rows["zero, last, bos always, standard"]["command"]
    # the probe measures zero unless it is told not to
    assert rows["zero, last, bos always, quick"]["command"].endswith("--suite quick --bos always")


def test_variants_fill_sensitivity_rows(synthetic):
    nodes = {
        "layer_ablation": synthetic.layer_result(TYPES, planted(4)),
        "layer_ablation@bos=native": synthetic.layer_result(TYPES, planted(1), bos="native"),
        "layer_ablation@suite=standard": synthetic.layer_result(TYPES, planted(4), suite="standard"),
    }
    dataset = Hub().compare(synthetic.tree_of(a=nodes))
    rows = {setting: row["value"] for setting, row in sensitivity(dataset).items()}
    assert rows["mean, last, bos native, quick"] == 1
    assert rows["mean, last, bos always, standard"] == 4
    assert rows["mean, last, bos native, standard"] == "not run"
    assert Hub().findings(dataset)[0].verdict == "supported"
    assert "5 of 8 other settings agree" in Hub().table(dataset)[0]["sensitivity"]


def test_a_missing_result_says_how_to_get_it(synthetic):
    tree = synthetic.tree_of(a={"head_ablation": synthetic.head_result(TYPES)})
    with pytest.raises(XatlasError, match="xatlas run a --probes layer_ablation"):
        Hub().compare(tree)


def test_the_main_row_needs_mean_at_last(synthetic):
    with pytest.raises(XatlasError, match="ablation 'mean'"):
        compare(synthetic, a=synthetic.layer_result(TYPES, ablations=("zero",)))


def test_findings_survive_the_file(synthetic, tmp_path):
    import xarray as xr

    dataset = compare(synthetic, a=synthetic.layer_result(TYPES, planted(4)))
    dataset.to_netcdf(tmp_path / "hub.nc")
    with xr.open_dataset(tmp_path / "hub.nc") as again:
        assert Hub().findings(again.load()) == Hub().findings(dataset)
        assert Hub().table(again) == Hub().table(dataset)
