import numpy as np
import pytest

from xatlas.comparisons.early_late import EarlyLate
from xatlas.comparisons.measures.summary import halves


def compare(synthetic, **models):
    tree = synthetic.tree_of(**{name: {"layer_ablation": result} for name, result in models.items()})
    return EarlyLate().compare(tree)


def falling(base):
    def plant(kl):
        kl *= (base ** -np.arange(kl.shape[1]))[:, None, None, None]
        return kl

    return plant


def test_an_odd_middle_layer_is_left_out():
    early, late = halves(np.array([1.0, 3.0, 100.0, 4.0, 6.0]))
    assert (early, late) == (2.0, 5.0)
    early, late = halves(np.array([100.0, 1.0, 3.0, 4.0, 6.0]), start=1)
    assert (early, late) == (2.0, 5.0)
    assert np.isnan(halves(np.array([1.0]))).all()


def test_the_ratio_is_of_mean_joint_effects(synthetic):
    def plant(kl):
        kl[:] = 1.0
        kl[:, :3, 2] = 6.0
        return kl

    dataset = compare(synthetic, a=synthetic.layer_result(["attention"] * 7, plant))
    assert dataset["early_over_late"].item() == pytest.approx(6)


def test_early_effects_are_supported_and_lost_when_shuffled(synthetic):
    result = synthetic.layer_result(["attention"] * 8, falling(1.6))
    dataset = compare(synthetic, a=result)
    (finding,) = EarlyLate().findings(dataset)
    assert finding.verdict == "supported"
    assert finding.low > 1
    assert "matters more" in finding.sentence
    for seed in range(5):
        shuffled = compare(synthetic, a=synthetic.shuffle_layers(result, seed))
        assert EarlyLate().findings(shuffled)[0].verdict != "supported"


def test_late_effects_are_told_from_early_ones(synthetic):
    (finding,) = EarlyLate().findings(compare(synthetic, a=synthetic.layer_result(["conv"] * 8, falling(0.7))))
    assert finding.verdict == "supported"
    assert "matters less" in finding.sentence


@pytest.mark.parametrize("base", [1.6, 0.6])
def test_what_the_control_does_too_is_not_supported(synthetic, base):
    result = synthetic.layer_result(["attention"] * 8, falling(base))
    result["kl_control"] = 0.1 * result["kl"] ** 2
    assert EarlyLate().findings(compare(synthetic, a=result))[0].verdict == "refuted"


def test_models_of_different_length_share_a_profile(synthetic):
    dataset = compare(
        synthetic,
        a=synthetic.layer_result(["attention"] * 8, falling(1.6)),
        b=synthetic.layer_result(["conv", "attention"] * 6, falling(1.4), seed=1),
        c=synthetic.layer_result(["attention"] * 10, falling(0.7), seed=2),
    )
    findings = EarlyLate().findings(dataset)[3:]
    assert [finding.verdict for finding in findings] == ["supported", "refuted", "refuted"]
    assert findings[0].value > 0.9
    assert findings[1].value < -0.9


def test_the_profile_is_interpolated_between_layers(synthetic):
    def plant(kl):
        kl[:] = 1.0
        kl[:, 1] = 3.0
        return kl

    dataset = compare(synthetic, a=synthetic.layer_result(["attention"] * 2, plant))
    np.testing.assert_allclose(dataset["profile"].values[0], np.linspace(0.5, 1.5, 20))


def test_one_layer_has_no_halves(synthetic):
    dataset = compare(synthetic, a=synthetic.layer_result(["conv"]), b=synthetic.layer_result(["conv"] * 4))
    findings = EarlyLate().findings(dataset)
    assert [finding.model for finding in findings] == ["a", "b"]
    assert findings[0].verdict == "undecided"
    assert EarlyLate().table(dataset)[0]["early / late"] == "–"
