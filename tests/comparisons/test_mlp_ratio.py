import numpy as np
import pytest

from xatlas.comparisons.measures.mlp import type_ratios
from xatlas.comparisons.mlp_ratio import MlpRatio

HYBRID = ["conv", "attention"] * 6


def compare(synthetic, types, plant=None, **keywords):
    result = synthetic.layer_result(types, plant, **keywords)
    return MlpRatio().compare(synthetic.tree_of(a={"layer_ablation": result}))


def scale_mlp(*factors):
    def plant(kl):
        kl[:, :, 1] = kl[:, :, 0] * np.array(factors)[:, None, None]
        return kl

    return plant


def test_the_ratio_is_the_one_planted(synthetic):
    def plant(kl):
        kl[:] = np.exp(np.random.default_rng(0).normal(size=(len(kl), 1, 1, 1, 1)))
        return scale_mlp(2.0, 0.5, 1.0, 8.0)(kl)

    dataset = compare(synthetic, ["attention"] * 4, plant).isel(model=0)
    np.testing.assert_allclose(dataset["mlp_over_operator"], [2, 0.5, 1, 8], rtol=1e-3)
    assert dataset["mean_ratio"] == pytest.approx(8**0.25, rel=1e-3)
    assert dataset["peak"] == 3


def test_a_mean_of_logs_is_not_a_ratio_of_means(synthetic):
    def plant(kl):
        kl[:] = 1.0
        kl[::2, :, 1] = 100.0
        return kl

    dataset = compare(synthetic, ["attention"] * 2, plant).isel(model=0)
    np.testing.assert_allclose(dataset["mlp_over_operator"], 10, rtol=1e-3)


def test_a_planted_peak_is_supported_and_lost_when_shuffled(synthetic):
    plant = scale_mlp(*[1.0] * 5, 9.0)
    result = synthetic.layer_result(["attention"] * 6, plant)
    result["kl"] *= np.exp(0.3 * np.random.default_rng(1).normal(size=result["kl"].shape))
    tree = synthetic.tree_of(a={"layer_ablation": result})
    (finding,) = MlpRatio().findings(MlpRatio().compare(tree))
    assert finding.verdict == "supported"
    assert "layer 5" in finding.sentence
    for seed in range(5):
        shuffled = synthetic.shuffle_layers(result, seed)
        tree = synthetic.tree_of(a={"layer_ablation": shuffled})
        assert MlpRatio().findings(MlpRatio().compare(tree))[0].verdict != "supported"


def test_a_ratio_that_the_control_shares_is_not_supported(synthetic):
    result = synthetic.layer_result(["attention"] * 6, scale_mlp(*[1.0] * 5, 9.0))
    result["kl_control"].loc[{"component": "mlp", "layer": 5}] *= 30
    dataset = MlpRatio().compare(synthetic.tree_of(a={"layer_ablation": result}))
    assert MlpRatio().findings(dataset)[0].verdict == "refuted"


def conv_times(factor):
    def plant(kl):
        kl[:, [kind == "conv" for kind in HYBRID]] *= factor
        return kl

    return plant


def test_conv_over_attention_is_supported_within_tertiles_and_lost_when_shuffled(synthetic):
    result = synthetic.layer_result(HYBRID, conv_times(3.0))
    dataset = MlpRatio().compare(synthetic.tree_of(a={"layer_ablation": result}))
    ratio = dataset["conv_over_attention"].isel(model=0).sel(component="mlp")
    assert ratio.sel(part="raw") == pytest.approx(3, rel=0.25)
    assert ratio.sel(part="within") == pytest.approx(3, rel=0.25)
    assert [finding.verdict for finding in MlpRatio().findings(dataset)[1:]] == ["supported"] * 2
    for seed in range(5):
        tree = synthetic.tree_of(a={"layer_ablation": synthetic.shuffle_layers(result, seed)})
        verdicts = [finding.verdict for finding in MlpRatio().findings(MlpRatio().compare(tree))[1:]]
        assert "supported" not in verdicts


def test_a_type_effect_that_is_only_depth_is_an_artefact(synthetic):
    # conv layers come early, and effects fall with depth in steps: within a tertile types don't differ
    types = ["conv"] * 3 + ["attention"] + ["conv"] * 2 + ["attention"] * 2 + ["conv"] + ["attention"] * 3

    def plant(kl):
        tertile = np.minimum((np.linspace(0, 1, 12) * 3).astype(int), 2)
        kl *= np.array([9.0, 3.0, 1.0])[tertile][:, None, None, None]
        return kl

    dataset = compare(synthetic, types, plant)
    raw = dataset["conv_over_attention_low"].isel(model=0).sel(part="raw")
    assert (raw > 1.5).all()
    verdicts = [finding.verdict for finding in MlpRatio().findings(dataset)[1:]]
    assert verdicts == ["artefact", "artefact"]
    # within tertiles above 1, but not beyond doubt: too little evidence for either
    for name, value in (("", 1.9), ("_low", 1.2), ("_high", 2.8), ("_p", 0.09)):
        dataset[f"conv_over_attention{name}"].loc[{"component": "mlp", "part": "within"}] = value
    verdicts = [finding.verdict for finding in MlpRatio().findings(dataset)[1:]]
    assert verdicts == ["undecided", "artefact"]


def test_one_operator_type_is_nan_with_a_reason(synthetic):
    dataset = compare(synthetic, ["conv"] * 4)
    assert np.isnan(dataset["conv_over_attention"]).all()
    assert "one operator type" in dataset.attrs["absent"]
    assert len(MlpRatio().findings(dataset)) == 1
    assert MlpRatio().table(dataset)[0]["conv / attention, mlp"] == "–"


def test_tertiles_without_both_types_are_left_out():
    types, depth = ["conv", "conv", "attention", "conv", "attention", "attention"], np.linspace(0, 1, 6)
    logs = np.log(np.array([[8.0, 8.0, 1.0, 4.0, 1.0, 1.0]]))
    parts = np.exp(type_ratios(logs, types, depth))[0]
    # thirds hold conv conv | attention conv | attention attention
    np.testing.assert_allclose(parts, [256 ** (1 / 3), 4, np.nan, 4, np.nan])


def test_without_mlps_there_is_no_ratio(synthetic):
    def plant(kl):
        kl[:, :, 1] = np.nan
        return kl

    dataset = compare(synthetic, ["attention"] * 3, plant)
    assert np.isnan(dataset["mlp_over_operator"]).all()
    assert MlpRatio().findings(dataset)[0].verdict == "undecided"
    assert MlpRatio().table(dataset)[0]["largest in layer"] == "–"
