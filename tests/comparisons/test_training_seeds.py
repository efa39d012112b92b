"""Several training seeds of two architectures: models are compared seed by seed, architectures over their seeds."""

import numpy as np
import pytest
import xarray as xr

from xatlas.comparisons.early_late import EarlyLate
from xatlas.comparisons.hub import Hub
from xatlas.findings import Sample, closing, ranked
from xatlas.findings.comparison import pairs
from xatlas.findings.verdict import verdict

LAYERS = ["attention"] * 8


def falling(base, rng):
    def plant(kl):
        each = base * np.exp(rng.normal(0, 0.02))
        kl *= (each ** -np.arange(kl.shape[1]))[:, None, None, None]
        return kl

    return plant


def found(comparison, synthetic, bases, seeds=5):
    """Return architectures' findings and the others, of networks whose effects fall with depth by these factors."""
    rng, nodes = np.random.default_rng(0), {}
    for name, base in bases.items():
        for seed in range(seeds):
            slug = f"{name}~{seed}" if seed else name
            result = synthetic.layer_result(LAYERS, falling(base, rng), seed=seed)
            nodes[slug] = {"layer_ablation": result}
    findings = comparison.findings(comparison.compare(synthetic.tree_of(**nodes)))
    wide = {finding.name: finding for finding in findings if finding.unit == "architecture"}
    return wide, [finding for finding in findings if finding.unit != "architecture"]


def test_models_are_compared_seed_by_seed_where_architectures_come_in_several():
    assert pairs(["a", "a~1", "b", "b~1"]) == [("a", "b"), ("a~1", "b~1")]
    assert pairs(["a", "a~1", "c"]) == [("a", "c"), ("a~1", "c")]
    assert pairs(["a", "a~1", "a~2"]) == [("a", "a~1"), ("a", "a~2"), ("a~1", "a~2")]
    assert pairs(["a", "b~1", "c"]) == [("a", "b~1"), ("a", "c"), ("b~1", "c")]


def test_architectures_differ_where_their_seeds_do(synthetic):
    wide, others = found(EarlyLate(), synthetic, {"a": 1.6, "b": 1.3})
    ratio = wide["early_over_late"]
    assert (ratio.verdict, ratio.model, ratio.model_other) == ("supported", "a (5 seeds)", "b (5 seeds)")
    assert ratio.p == pytest.approx(2 / 252)  # the two most extreme of all ways of dealing ten seeds out
    assert ratio.low < (1.6 / 1.3) ** 4 < ratio.high
    assert "differs between a (5 seeds) and b (5 seeds): ratio" in ratio.sentence
    told = {(each.model, each.model_other) for each in others if each.model_other}
    assert told == {("a", "b"), *((f"a~{seed}", f"b~{seed}") for seed in range(1, 5))}
    assert ranked([*others, ratio])[0] is ratio
    models = [f"{name}~{seed}" if seed else name for name in "ab" for seed in range(5)]
    first = closing([*others, ratio], models).split("\n")[0]
    assert first == "a (5 seeds) and b (5 seeds): different in the ratio of early to late layers."


def test_four_seeds_decide_nothing_about_architectures(synthetic):
    wide, _ = found(EarlyLate(), synthetic, {"a": 1.6, "b": 1.3}, seeds=4)
    assert (wide["early_over_late"].verdict, wide["early_over_late"].reason) == ("undecided", "too few training seeds")


def test_a_seed_without_a_number_is_not_counted(synthetic):
    rng, nodes = np.random.default_rng(0), {}
    for name, base in {"a": 1.6, "b": 1.3}.items():
        for seed in range(5):
            result = synthetic.layer_result(LAYERS, falling(base, rng), seed=seed)
            if name == "a" and seed > 2:
                result["kl"] *= np.nan
            nodes[f"{name}~{seed}" if seed else name] = {"layer_ablation": result}
    made = EarlyLate().findings(EarlyLate().compare(synthetic.tree_of(**nodes)))
    (wide,) = [each for each in made if each.unit == "architecture"]
    assert (wide.verdict, wide.reason) == ("undecided", "too few training seeds")


def test_the_hub_of_two_architectures_is_in_the_same_place_where_it_is_in_all_seeds(synthetic):
    wide, _ = found(Hub(), synthetic, {"a": 3.0, "b": 2.5})
    assert set(wide) == {"hub"}
    assert wide["hub"].verdict == "supported"
    text = "The hub is in the same place in a (5 seeds) and b (5 seeds) (depths 0.00 to 0.00 and 0.00 to 0.00)"
    assert wide["hub"].sentence.startswith(text)
    tied, _ = found(Hub(), synthetic, {"a": 3.0, "b": 1.0})
    assert tied["hub"].verdict == "undecided"


def test_architectures_whose_controls_differ_as_much_are_not_told_apart(synthetic):
    """Where random changes tell two architectures apart as well, nothing is said of their layers."""
    rng, nodes = np.random.default_rng(0), {}
    for name, base in {"a": 1.6, "b": 1.3}.items():
        for seed in range(5):
            result = synthetic.layer_result(LAYERS, falling(base, rng), seed=seed)
            result["kl_control"] *= (base ** -result["layer"].astype(float)).transpose("layer")
            nodes[f"{name}~{seed}" if seed else name] = {"layer_ablation": result}
    comparison = EarlyLate()
    made = comparison.findings(comparison.compare(synthetic.tree_of(**nodes)))
    (wide,) = [each for each in made if each.unit == "architecture"]
    assert wide.verdict == "undecided"
    assert wide.control_low < (1.6 / 1.3) ** 4 < wide.control_high
    assert ", control " in wide.sentence


def test_architectures_of_which_random_changes_tell_more_are_refuted():
    """The number differs one way, and over the control's the other way."""
    sample = Sample(["f"] * 4, list("stuv"))

    def seeds(level, control):
        """Return evidence of five seeds, each a little apart from the others."""
        for seed in range(5):
            values = xr.DataArray([level, 1.1 * level, 0.9 * level, level], dims="prompt") * 1.01**seed
            yield sample.mean(values, log=True).against(sample.mean(control / level * values, log=True)).evidence()

    first, second = list(seeds(2.0, 9.0)), list(seeds(1.0, 1.0))
    found = EarlyLate().architectures(EarlyLate.claims[0], first, second)
    assert found.number[1] > 1
    assert verdict(found, found.p, unit="architecture") == ("refuted", "its control does so even more")
    other = EarlyLate().architectures(EarlyLate.claims[0], list(seeds(2.0, 1.0)), second)
    assert verdict(other, other.p, unit="architecture") == ("supported", "")
