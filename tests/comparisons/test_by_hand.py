"""Numbers that were worked out by hand, or by a plain computation beside the one under test."""

import numpy as np
import pytest

from xatlas.comparisons.early_late import EarlyLate
from xatlas.comparisons.head_specialisation import HeadSpecialisation
from xatlas.comparisons.hub import Hub
from xatlas.comparisons.mlp_ratio import MlpRatio
from xatlas.stats import DRAWS

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
    assert dataset["early_over_late"].item() == pytest.approx(whole)
    excluded = dataset.sel(setting=WITHOUT, model="a")
    ends = [float(excluded[f"sensitivity{end}"]) for end in ("", "_low", "_high")]
    assert ends == pytest.approx([without] * 3)


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
    dataset = kind().compare(synthetic.tree_of(a={probe: result})).sel(setting=WITHOUT)
    alone = kind().compare(synthetic.tree_of(a={probe: result.isel(layer=slice(1, None))})).isel(setting=0)
    layers = {f"sensitivity{component}" for component in ("", "_mlp", "_operator")} if kind is Hub else set()
    layers |= {"sensitivity"} if kind is MlpRatio else set()
    numbers = [str(name) for name in dataset.data_vars if f"{name}_low" in dataset and str(name)[:11] == "sensitivity"]
    assert numbers
    for name in numbers:
        for end in ("", "_low", "_high"):
            expected = alone[name + end].item() + (name in layers)  # numbers of layers are one lower there
            assert dataset[name + end].item() == pytest.approx(expected), name + end


@pytest.mark.parametrize(("layer", "verdict"), [(5, "supported"), (7, "refuted")])
def test_hubs_lie_apart_from_half_a_layer_of_the_shallower_model_on(synthetic, layer, verdict):
    """Half a layer of six is 0.1: layer 4 of 6 (0.8) is 0.175 from layer 5 of 9, and 0.075 from layer 7."""

    def hub(at):
        def plant(kl):
            kl[:, at] *= 30
            return kl

        return plant

    shallow = synthetic.layer_result(TYPES[:6], hub(4))
    deep = synthetic.layer_result([*TYPES, "conv"], hub(layer), seed=1)
    dataset = Hub().compare(synthetic.tree_of(a={"layer_ablation": shallow}, b={"layer_ablation": deep}))
    (pair,) = (finding for finding in Hub().findings(dataset) if not finding.model)
    assert pair.value == pytest.approx(4 / 5 - layer / 8)
    assert pair.verdict == verdict
    assert pair.p == pytest.approx(2 / (1 + DRAWS))  # no draw reaches 0, from either side


def test_intervals_are_95_percent_intervals(synthetic):
    """About 1.96 standard errors to each side, from the spread of template means within families."""
    result = synthetic.layer_result(TYPES)
    dataset = Hub().compare(synthetic.tree_of(a={"layer_ablation": result}))
    kl = result["kl"].sel(ablation="mean", scope="last", component="joint").values  # (prompt, layer)
    means = kl.reshape(6, 4, 2, len(TYPES)).mean(2)  # (family, template, layer)
    error = np.sqrt((means.var(1, ddof=1) / 4).sum(0)) / 6
    one = dataset.isel(model=0).sel(component="joint")
    np.testing.assert_allclose(one["effect"], means.mean((0, 1)))
    half = (one["effect_high"] - one["effect_low"]).values / 2
    assert np.all(half > 0.85 * 1.96 * error)
    assert np.all(half < 1.5 * 1.96 * error)
    assert float(one["margin_low"]) < 0 < float(one["margin"])  # the largest of eight like ones


def falling(kl):
    kl *= (1.6 ** -np.arange(kl.shape[1]))[:, None, None, None]
    return kl


def test_early_over_late_is_tested_against_1_and_against_the_control(synthetic):
    """The larger p-value counts: an effect like its control's is none, and one beside a falling control neither."""
    steep, flat = synthetic.layer_result(TYPES, falling), synthetic.layer_result(TYPES)
    steep_alone = EarlyLate().compare(synthetic.tree_of(a={"layer_ablation": steep}))
    assert steep_alone["p"].item() < 0.01
    for kl, control in ((steep, steep), (flat, steep)):
        result = kl.assign(kl_control=control["kl"])
        assert EarlyLate().compare(synthetic.tree_of(a={"layer_ablation": result}))["p"].item() > 0.05


def test_one_random_order_of_layers_in_twenty_reaches_the_control_of_two_profiles(synthetic):
    results = [synthetic.layer_result(TYPES, falling, seed=seed) for seed in (0, 1)]
    dataset = EarlyLate().compare(
        synthetic.tree_of(**{name: {"layer_ablation": each} for name, each in zip("ab", results, strict=True)})
    )
    control = float(dataset["profile_correlation_control"].isel(model=0, model_other=1, kind=0))
    depth = np.linspace(0, 1, 8)
    effects = [
        each["kl"].sel(ablation="mean", scope="last", component="joint").mean("prompt").values for each in results
    ]

    def ranks(values):
        return np.interp(np.linspace(0, 1, 20), depth, values).argsort().argsort()

    rng = np.random.default_rng(0)
    chance = [np.corrcoef(ranks(effects[0]), ranks(rng.permutation(effects[1])))[0, 1] for _ in range(4000)]
    assert 0.03 < np.mean(np.array(chance) >= control) < 0.07


def test_a_hub_that_is_layer_0_has_no_setting_without_it_on_its_side(synthetic):
    def plant(kl):
        kl[:, 0] *= 30
        return kl

    dataset = Hub().compare(synthetic.tree_of(a={"layer_ablation": synthetic.layer_result(TYPES, plant)}))
    note = "2 of 2 other settings agree, 0 of 3 without layer 0"
    assert Hub().table(dataset)[0]["sensitivity"].startswith(note)
