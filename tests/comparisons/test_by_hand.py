"""Numbers that were worked out by hand, or by a plain computation beside the one under test."""

import numpy as np
import pytest

from xatlas.comparisons.early_late import EarlyLate
from xatlas.comparisons.head_specialisation import HeadSpecialisation
from xatlas.comparisons.hub import Hub
from xatlas.comparisons.mlp_ratio import MlpRatio

TYPES = ["attention", "conv"] * 4
WITHOUT = "mean, last, bos always, quick, layer 0 excluded"


def joint(values):
    def plant(kl):
        kl[:, :, 2] = np.array(values, dtype=float)[None, :, None, None]
        return kl

    return plant


@pytest.mark.parametrize(
    ("effects", "whole", "without"),
    [
        ([100, 1, 3, 4, 6], (101 / 2) / (10 / 2), (4 / 2) / (10 / 2)),
        ([100, 2, 4, 7, 5, 3], (106 / 3) / (15 / 3), (6 / 2) / (8 / 2)),  # then the 7 is an odd middle layer
    ],
)
def test_early_over_late_with_and_without_layer_0(synthetic, effects, whole, without):
    result = synthetic.layer_result(["conv"] * len(effects), joint(effects))
    dataset = EarlyLate().compare(synthetic.tree_of(a={"layer_ablation": result}))
    found = dataset["sensitivity"].sel(finding="early_over_late|a")
    assert found.isel(setting=0).values == pytest.approx([whole] * 3)
    assert found.sel(setting=WITHOUT).values == pytest.approx([without] * 3)


@pytest.mark.parametrize("kind", [Hub, EarlyLate, MlpRatio, HeadSpecialisation])
def test_excluding_layer_0_is_what_a_result_without_it_gives(synthetic, kind):
    def plant(kl):
        kl[:, 0] *= 50  # first in everything, so that it matters whether it is there
        kl[:, 0, 1] *= 3
        kl[:, 3] *= 4
        kl[:, 3, 1] *= 2
        return kl

    if kind is HeadSpecialisation:
        result, probe = synthetic.head_result(["attention"] * 8, 4, plant), "head_ablation"
    else:
        result, probe = synthetic.layer_result(TYPES, plant), "layer_ablation"
    whole = kind().compare(synthetic.tree_of(a={probe: result})).sel(setting=WITHOUT)["sensitivity"]
    cut = kind().compare(synthetic.tree_of(a={probe: result.isel(layer=slice(1, None))})).isel(setting=0)["sensitivity"]
    numbers = cut.finding.values[cut.sel(bound="value").notnull().values]
    assert len(numbers)
    np.testing.assert_allclose(whole.sel(finding=numbers), cut.sel(finding=numbers), err_msg=str(numbers))


def falling(kl):
    kl *= (1.6 ** -np.arange(kl.shape[1]))[:, None, None, None]
    return kl


def test_early_over_late_is_tested_against_1_and_against_the_control(synthetic):
    """The larger p-value counts: an effect like its control's is none, and one beside a falling control neither."""
    steep, flat = synthetic.layer_result(TYPES, falling), synthetic.layer_result(TYPES)
    steep_alone = EarlyLate().compare(synthetic.tree_of(a={"layer_ablation": steep}))
    assert steep_alone["finding_p"].item() < 0.01
    for kl, control in ((steep, steep), (flat, steep)):
        result = kl.assign(kl_control=control["kl"])
        assert EarlyLate().compare(synthetic.tree_of(a={"layer_ablation": result}))["finding_p"].item() > 0.05


def test_the_control_of_two_profiles_is_where_random_orders_of_layers_lie(synthetic):
    results = [synthetic.layer_result(TYPES, falling, seed=seed) for seed in (0, 1)]
    dataset = EarlyLate().compare(
        synthetic.tree_of(**{name: {"layer_ablation": each} for name, each in zip("ab", results, strict=True)})
    )
    (pair,) = (finding for finding in EarlyLate().findings(dataset) if finding.name == "profile_correlation")
    depth = np.linspace(0, 1, 8)
    effects = [
        each["kl"].sel(ablation="mean", scope="last", component="joint").mean("prompt").values for each in results
    ]

    def ranks(values):
        return np.interp(np.linspace(0, 1, 20), depth, values).argsort().argsort()

    rng = np.random.default_rng(0)
    chance = [np.corrcoef(ranks(effects[0]), ranks(rng.permutation(effects[1])))[0, 1] for _ in range(4000)]
    assert 0.015 < np.mean(np.array(chance) >= pair.control_high) < 0.04
    assert 0.015 < np.mean(np.array(chance) <= pair.control_low) < 0.04
    assert pair.control == pytest.approx(np.mean(chance), abs=0.03)
