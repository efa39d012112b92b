from dataclasses import replace

import numpy as np
import pytest
from looking import shows

from xatlas import XatlasError
from xatlas.comparisons.figures import style
from xatlas.comparisons.mlp_ratio import MlpRatio, operator_types
from xatlas.findings.readings import Source

HYBRID = ["conv", "attention"] * 6


def compare(synthetic, types, plant=None, **keywords):
    result = synthetic.layer_result(types, plant, **keywords)
    return MlpRatio().compare(synthetic.tree_of(a={"layer_ablation": result}))


def found(dataset, name):
    (finding,) = (each for each in MlpRatio().findings(dataset) if each.name == name and not each.model_other)
    return finding


def estimate(synthetic, result):
    source = Source(synthetic.tree_of(a={"layer_ablation": result}), "a", MlpRatio.requires)
    return MlpRatio().estimate(*source.effects(source.settings[0]))


def scale_mlp(*factors):
    def plant(kl):
        kl[:, :, 1] = kl[:, :, 0] * np.array(factors)[:, None, None]
        return kl

    return plant


def test_the_ratio_is_the_one_planted(synthetic):
    dataset = compare(synthetic, ["attention"] * 4, scale_mlp(2.0, 0.5, 1.0, 8.0))
    ratio = dataset["mlp_over_operator"].isel(model=0)
    np.testing.assert_allclose(ratio.sel(bound="value"), [2, 0.5, 1, 8])
    assert dataset["p_rank1"].isel(model=0).values.tolist() == [0, 0, 0, 1]


def test_a_ratio_is_one_of_means(synthetic):
    def plant(kl):
        kl[:] = 1.0
        kl[::2, :, 1] = 100.0
        kl[:, 1, :2] *= 3
        return kl

    dataset = compare(synthetic, ["attention"] * 2, plant)
    np.testing.assert_allclose(dataset["mlp_over_operator"].isel(model=0).sel(bound="value"), 50.5)


def test_over_all_layers_it_is_the_ratio_of_sums(synthetic):
    def plant(kl):
        kl[:] = 1.0
        kl[:, 0, 0], kl[:, 0, 1], kl[:, 1, 1] = 4.0, 12.0, 8.0
        return kl

    finding = found(compare(synthetic, ["attention"] * 2, plant), "mlp_over_operator")
    assert finding.value == pytest.approx(20 / 5)
    assert finding.verdict == "supported"


def test_layers_without_an_mlp_and_prompts_that_lack_one_are_left_out_of_both(synthetic):
    def plant(kl):
        kl[:] = 1.0
        kl[:, :, 1] = 3.0
        kl[:, 2, 0], kl[:, 2, 1] = 1000.0, np.nan  # the layer has none
        kl[5, 1, 0], kl[5, 1, 1] = 1000.0, np.nan
        return kl

    dataset = compare(synthetic, ["attention"] * 3, plant)
    assert found(dataset, "mlp_over_operator").value == pytest.approx(3)
    assert dataset["mlp_over_operator"].sel(model="a", bound="value").values == pytest.approx(
        [3, 3, np.nan], nan_ok=True
    )


def test_equal_components_are_refuted_and_a_control_that_shares_the_ratio_decides_nothing(synthetic):
    assert (
        found(compare(synthetic, ["attention"] * 12), "mlp_over_operator").reason
        == "equal within the margin of 0.80 to 1.25"
    )
    result = synthetic.layer_result(["attention"] * 6, scale_mlp(*[4.0] * 6))
    result["kl_control"].loc[{"component": "mlp"}] = 4 * result["kl_control"].sel(component="operator")
    dataset = MlpRatio().compare(synthetic.tree_of(a={"layer_ablation": result}))
    assert found(dataset, "mlp_over_operator").verdict == "undecided"


def noisy_peak(synthetic):
    result = synthetic.layer_result(["attention"] * 6, scale_mlp(*[1.0] * 5, 9.0))
    result["kl"] *= np.exp(0.3 * np.random.default_rng(1).normal(size=result["kl"].shape))
    return result


def test_a_planted_peak_is_supported_and_lost_when_shuffled(synthetic):
    result = noisy_peak(synthetic)
    finding = found(MlpRatio().compare(synthetic.tree_of(a={"layer_ablation": result})), "peak")
    assert finding.verdict == "supported"
    assert "layer 5 (depth 1.00, attention)" in finding.sentence
    assert finding.low < finding.value < finding.high
    for seed in range(3):
        tree = synthetic.tree_of(a={"layer_ablation": synthetic.shuffle_layers(result, seed)})
        assert found(MlpRatio().compare(tree), "peak").verdict != "supported"


def test_layers_of_one_ratio_and_different_sizes_have_no_peak(synthetic):
    def plant(kl):
        kl *= (2.0 ** -np.arange(6))[:, None, None, None]
        return kl

    held = [
        estimate(synthetic, synthetic.layer_result(["attention"] * 6, plant, seed=seed, ablations=("mean",)))["peak"]
        for seed in range(15)
    ]
    assert sum(each.p <= 0.05 and not each.blocked for each in held) <= 2
    assert np.mean([each.p for each in held]) > 0.2


def test_a_peak_that_the_control_exceeds_is_an_artefact(synthetic):
    result = noisy_peak(synthetic)
    result["kl_control"].loc[{"component": "mlp", "layer": 5}] *= 60
    dataset = MlpRatio().compare(synthetic.tree_of(a={"layer_ablation": result}))
    assert found(dataset, "peak").verdict == "artefact"


def conv_times(factor, component=slice(None)):
    def plant(kl):
        convs = [kind == "conv" for kind in HYBRID]
        kl[:, convs, component] *= factor
        return kl

    return plant


def test_conv_layers_that_matter_three_times_as_much_are_found(synthetic):
    dataset = compare(synthetic, HYBRID, conv_times(3.0))
    for name in ("types_mlp", "types_operator"):
        finding = found(dataset, name)
        assert finding.value == pytest.approx(3, rel=0.25)
        assert finding.verdict == "supported"
    assert "of conv layers" in finding.sentence
    assert found(dataset, "types_ratio").verdict != "supported"
    assert "MLPs conv/attention" in {row["number"] for row in MlpRatio().table(dataset)}


def test_conv_layers_that_work_through_their_mlps_are_found(synthetic):
    finding = found(compare(synthetic, HYBRID, conv_times(3.0, 1)), "types_ratio")
    assert finding.value == pytest.approx(3, rel=0.25)
    assert finding.verdict == "supported"


def test_layer_effects_without_types_and_depth_alone_support_no_type(synthetic):
    """Layers differ, prompts hardly: over prompts any two types would."""
    supported = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        size = np.exp(0.5 * rng.normal(size=(12, 3)) - 0.2 * np.arange(12)[:, None])

        def plant(kl, size=size):
            return kl * size[:, :, None, None]

        evidence = estimate(synthetic, synthetic.layer_result(HYBRID, plant, seed=seed, ablations=("mean",)))
        supported += sum(
            each.p <= 0.05 / 3 and each.side > 0 and not each.blocked
            for name, each in evidence.items()
            if name.startswith("types") and each.number[0] > 0
        )
    assert supported <= 4  # of 60


def test_layers_of_one_type_are_compared_with_nothing(synthetic):
    dataset = compare(synthetic, ["conv"] * 4)
    assert {each.name for each in MlpRatio().findings(dataset)} == {"mlp_over_operator", "peak"}
    assert operator_types(["conv", "", "conv"]) is None
    assert MlpRatio().plot(dataset).axes


def test_few_layers_of_a_type_decide_nothing(synthetic):
    dataset = compare(synthetic, ["conv", "attention"] * 4, None)
    assert found(dataset, "types_mlp").reason == "too few layers"


def test_any_two_operator_types_are_compared():
    assert operator_types(["attention", "ssm", "conv", "conv", "attention"]) == ("conv", "attention")
    assert operator_types(["ssm", "conv"]) == ("conv", "ssm")


def test_two_named_operator_types_are_compared(synthetic):
    types = ["attention", "attention", "ssm", "recurrent"] * 6

    def plant(kl):
        kl[:, np.array(types) == "recurrent", 0] *= 4
        return kl

    tree = synthetic.tree_of(a={"layer_ablation": synthetic.layer_result(types, plant)})
    dataset = MlpRatio(types="recurrent,ssm").compare(tree)
    (finding,) = (each for each in MlpRatio().findings(dataset) if each.name == "types_operator")
    assert finding.verdict == "supported"
    assert finding.value == pytest.approx(4, rel=0.3)
    assert "operators of recurrent layers" in finding.sentence
    assert dataset["types"].item() == "recurrent / ssm"
    with pytest.raises(XatlasError, match="two operator types"):
        MlpRatio(types="ssm,ssm")


def test_operator_types_are_told_apart_and_explained_where_they_occur(synthetic):
    types = ["attention", "conv", "ssm", "linear_attention", "recurrent", "attention+ssm", "experts", "some_new_kind"]
    for shown in (types, types[:2]):
        figure = MlpRatio().plot(compare(synthetic, shown * 2))
        held = zip(figure.legends[0].get_texts(), figure.legends[0].get_lines(), strict=True)
        legend = {text.get_text(): line.get_marker() for text, line in held if text.get_text().endswith(" layer")}
        assert set(legend) == {f"{kind} layer" for kind in shown}
        assert len(set(legend.values())) == len(shown)
        assert {line.get_marker() for line in figure.axes[0].lines} >= set(legend.values())


def test_without_mlps_there_is_no_ratio(synthetic):
    def plant(kl):
        kl[:, :, 1] = np.nan
        return kl

    dataset = compare(synthetic, HYBRID, plant)
    assert np.isnan(dataset["mlp_over_operator"]).all()
    assert [each.name for each in MlpRatio().findings(dataset)] == ["types_operator"]
    assert MlpRatio().plot(dataset).axes


def test_models_share_the_ratio_or_do_not(synthetic):
    results = [
        synthetic.layer_result(["attention"] * 8, scale_mlp(*[factor] * 8), seed=seed)
        for seed, factor in enumerate((4.0, 4.1, 1.0))
    ]
    tree = synthetic.tree_of(**{name: {"layer_ablation": each} for name, each in zip("abc", results, strict=True)})
    same, *other = (each for each in MlpRatio().findings(MlpRatio().compare(tree)) if each.model_other)
    assert "is the same in a and b" in same.sentence
    assert [each.verdict for each in (same, *other)] == ["supported"] * 3
    assert [each.value for each in other] == pytest.approx([4.0, 4.1])


def test_the_figure_marks_operator_types_and_findings(synthetic):
    dataset = compare(synthetic, HYBRID, conv_times(3.0))
    curves, below = MlpRatio().plot(dataset).axes
    assert {line.get_marker() for line in curves.lines} >= {"o", "^"}
    assert curves.get_yscale() == below.get_xscale() == "log"
    control = dataset["mlp_over_operator_control"].sel(model="a", bound="value")
    (line,) = (line for line in curves.lines if line.get_color() == style.CONTROL)
    assert shows(line, control)
    drawn = {line.get_gid(): line for line in below.lines}
    assert drawn["types_mlp-a"].get_xdata()[0] == found(dataset, "types_mlp").value


def test_rows_name_each_models_own_types(synthetic):
    models = {"a": ["conv", "attention", "attention"], "b": ["attention", "ssm", "ssm"]}
    held = {
        name: {"layer_ablation": synthetic.layer_result(types, ablations=("mean",))} for name, types in models.items()
    }
    dataset = MlpRatio().compare(synthetic.tree_of(**held))
    names = [text.get_text().replace("\n", " ") for text in MlpRatio().plot(dataset).axes[-1].get_yticklabels()]
    kinds = {"a": "conv / attention", "b": "ssm / attention"}
    of_types = {name: [f"{part}, {kind}" for part in ("MLPs", "operators", "ratio")] for name, kind in kinds.items()}
    assert names == [row for name in models for row in (name, "MLP / operator", *of_types.get(name, []))]


def test_without_layer_0_the_layer_of_the_largest_ratio_keeps_its_number(synthetic):
    source = Source(synthetic.tree_of(a={"layer_ablation": noisy_peak(synthetic)}), "a", MlpRatio.requires)
    peaks = [
        MlpRatio().estimate(*source.effects(replace(source.usual, layer0=layer0)))["peak"] for layer0 in (True, False)
    ]
    assert [(peak.answer, peak.words["layer"]) for peak in peaks] == [(5, "5")] * 2
