import itertools

import numpy as np
import pytest
from looking import explained

from xatlas.comparisons.head_specialisation import (
    HeadSpecialisation,
    chance_of_wins,
    expected_wins,
    top_share,
    wins_per_index,
)
from xatlas.findings.readings import Source

TYPES = ["conv", "attention"] * 4
TWO = ("mean", "zero")


def compare(synthetic, result):
    return HeadSpecialisation().compare(synthetic.tree_of(a={"head_ablation": result}))


def found(dataset, name="top_share"):
    (finding,) = (each for each in HeadSpecialisation().findings(dataset) if each.name == name)
    return finding


def estimate(synthetic, result):
    source = Source(synthetic.tree_of(a={"head_ablation": result}), "a", HeadSpecialisation.requires)
    return HeadSpecialisation().estimate(*source.effects(source.settings[0]))


def few(kl):
    kl[:, 1, 2] *= 60
    kl[:, 3, 0] *= 30
    return kl


def same_index(kl):
    # one index everywhere, but layers still differ
    kl[:, :, 1] *= 20 * np.linspace(1, 3, kl.shape[1])[:, None, None]
    return kl


def test_top_share_of_a_known_map():
    effects = np.array([5.0, 1.0, 4.0, np.nan, 3.0, 2.0, 1.0, 0.5])
    assert top_share(effects) == pytest.approx(15 / 16.5)
    assert top_share(np.array([1.0, 2.0])) == 1.0
    assert np.isnan(top_share(np.zeros(8)))


def test_a_true_head_carries_the_effect(synthetic):
    def plant(kl):
        kl[:, 5, 3] *= 200
        return kl

    finding = found(compare(synthetic, synthetic.head_result(["attention"] * 8, 8, plant, ablations=TWO)))
    assert finding.verdict == "supported"
    assert finding.p < 0.01
    assert finding.descriptive
    assert finding.control < finding.low < finding.value < finding.high


def test_one_kind_alone_says_what_to_add(synthetic):
    finding = found(compare(synthetic, synthetic.head_result(["attention"] * 8, 8, few)))
    assert (finding.verdict, finding.reason) == ("undecided", "one kind")
    assert "--set head_ablation.ablations=mean,zero" in finding.sentence
    finding = found(compare(synthetic, synthetic.head_result(["attention"] * 8, 8, few, ablations=TWO)))
    assert "--set" not in finding.sentence


def test_equal_heads_hold_no_more_than_by_chance(synthetic):
    results = (synthetic.head_result(["attention"] * 6, 6, seed=seed) for seed in range(10))
    held = [estimate(synthetic, result)["top_share"] for result in results]
    assert all(each.p > 0.05 for each in held)
    # chosen on other templates: no luck
    assert sum(each.number[1] <= 5 / 36 <= each.number[2] for each in held) >= 7
    assert np.mean([each.number[0] for each in held]) == pytest.approx(5 / 36, rel=0.05)


def test_one_strong_layer_is_no_strong_head(synthetic):
    def plant(kl):
        kl[:, 2] *= 50
        return kl

    evidence = estimate(synthetic, synthetic.head_result(["attention"] * 6, 12, plant))["top_share"]
    assert evidence.p > 0.05
    assert evidence.number[0] < evidence.control[0]


def test_heads_that_share_at_random_are_not_called_special(synthetic):
    supported = 0
    for seed in range(12):
        shares = np.random.default_rng(seed).exponential(size=(6, 8))

        def plant(kl, shares=shares):
            return kl * shares[..., None, None]

        supported += (
            estimate(synthetic, synthetic.head_result(["attention"] * 6, 8, plant, seed=seed))["top_share"].p <= 0.05
        )
    assert supported <= 2


def test_leaders_of_families_are_counted(synthetic):
    def plant(kl):
        kl[:8, 5, 3] *= 100  # prompts of the first family
        kl[8:, 1, 0] *= 100
        kl[:8, 1, 0] *= 10
        return kl

    dataset = compare(synthetic, synthetic.head_result(TYPES, plant=plant))
    one = dataset.isel(model=0)
    assert one["best_layer"].values.tolist() == [5, 1, 1, 1, 1, 1]
    assert one["best_head"].values.tolist() == [3, 0, 0, 0, 0, 0]
    assert (one["best_p_rank1"] > 0.95).all()
    assert float(one["first"].sel(layer=1, head=0)) == 5
    assert float(one["first_or_second"].sel(layer=1, head=0)) == 6
    rows = {row["number"]: row["value"] for row in HeadSpecialisation().table(dataset)}
    named = [row for row in rows if row.startswith("head ")]
    assert {row: rows[row] for row in named} == {
        "head 1.0 by family": "1st in 5, 2nd in 1 of 6",
        "head 5.3 by family": rows["head 5.3 by family"],
    }
    assert named[0] == "head 1.0 by family"
    assert rows["head 5.3 by family"].startswith("1st in 1, ")


def test_the_best_head_of_a_family_of_one_wording_is_not_told_apart(synthetic):
    result = synthetic.head_result(TYPES)
    result["kl"].loc[{"layer": 1, "head": 2}] *= 100
    result["template"].values[:8] = "t0"  # the first family's
    dataset = compare(synthetic, result).isel(model=0)
    assert dataset["best_p_rank1"].isnull().values.tolist() == [True] + [False] * 5


def test_two_equal_heads_share_the_first_rank(synthetic):
    def plant(kl):
        kl[:, 1, 2] *= 60
        kl[:, 3, 0] = kl[:, 1, 2]
        return kl

    dataset = compare(synthetic, synthetic.head_result(TYPES, plant=plant)).isel(model=0)
    assert (dataset["best_p_rank1"] == 0.5).all()


def test_wins_leave_out_ties_and_layers_without_heads():
    effects = np.array([[np.nan] * 3, [1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 2.0, 1.0], [0.0, 1.0, 4.0]])
    np.testing.assert_array_equal(wins_per_index(effects), [1, 0, 2])
    np.testing.assert_array_equal(wins_per_index(effects[:, :1]), [0])


def growing(kl):
    return kl * (2.0 ** np.arange(kl.shape[1]))[:, None, None, None]  # layers differ, heads don't


def test_random_heads_win_at_chance_level(synthetic):
    result = synthetic.head_result(["attention"] * 12, plant=growing, ablations=TWO)
    finding = found(compare(synthetic, result), "index_wins")
    luckiest = np.random.default_rng(0).multinomial(12, [0.25] * 4, size=20_000).max(1).mean()
    assert finding.control == pytest.approx(luckiest, abs=0.05)
    assert finding.verdict in ("refuted", "undecided")
    assert finding.p > 0.05


def test_one_index_that_wins_everywhere_is_found(synthetic):
    result = synthetic.head_result(["attention"] * 12, plant=same_index, ablations=TWO)
    finding = found(compare(synthetic, result), "index_wins")
    assert (finding.value, finding.verdict) == (12, "supported")
    assert finding.p < 0.001
    assert "head index 1 " in finding.sentence
    shuffled = found(compare(synthetic, synthetic.shuffle_layers(result)), "index_wins")
    assert shuffled.reason == "layers can't be told apart"


def test_two_layers_are_too_few_for_an_index(synthetic):
    """Of four indices one wins two of two layers in a quarter of all cases."""
    result = synthetic.head_result(["attention"] * 2, plant=same_index, ablations=TWO)
    finding = found(compare(synthetic, result), "index_wins")
    assert finding.verdict == "undecided"
    assert finding.p >= 0.25
    assert estimate(synthetic, result)["index_wins"].least_p == pytest.approx(0.25)


def test_another_kind_must_favour_the_same_index(synthetic):
    result = synthetic.head_result(["attention"] * 12, plant=same_index, ablations=TWO)
    result["kl"].loc[{"ablation": "zero"}] = result["kl"].sel(ablation="zero").values[:, :, [1, 0, 2, 3]]
    assert found(compare(synthetic, result), "index_wins").reason == "kinds disagree: zero"


def test_the_share_of_all_heads_is_undecided(synthetic):
    dataset = compare(synthetic, synthetic.head_result(["attention"], 4, ablations=TWO))
    assert found(dataset).reason == "no more than five heads"
    assert found(dataset).value == pytest.approx(1)


def test_one_head_a_layer_wins_nothing(synthetic):
    spread = np.linspace(1, 3, 8)[:, None, None, None]
    dataset = compare(synthetic, synthetic.head_result(["attention"] * 8, 1, lambda kl: kl * spread, ablations=TWO))
    assert found(dataset, "index_wins").reason == "no layer has a winner"


def test_layers_without_heads_stay_nan(synthetic):
    effect = compare(synthetic, synthetic.head_result(TYPES))["effect"].isel(model=0)
    assert np.isnan(effect[::2]).all()
    assert np.isfinite(effect[1::2]).all()


def test_a_model_without_heads_is_said_to_have_none(synthetic):
    dataset = compare(synthetic, synthetic.head_result(["conv"] * 3))
    assert HeadSpecialisation().findings(dataset) == []
    (row,) = HeadSpecialisation().table(dataset)
    assert (row["number"], row["value"]) == ("heads", "none")
    HeadSpecialisation().plot(dataset)


def test_the_map_rings_the_top_five(synthetic):
    dataset = compare(synthetic, synthetic.head_result(TYPES, plant=few))
    figure = HeadSpecialisation().plot(dataset)
    ringed = next(line for axes in figure.axes for line in axes.lines if line.get_gid() == "top")
    effect = dataset["effect"].isel(model=0).sel(bound="value").values
    expected = sorted(np.sort(effect[np.isfinite(effect)])[-5:])
    assert sorted(effect[ringed.get_ydata(), ringed.get_xdata()]) == expected
    mesh = figure.axes[0].collections[0]
    shown = mesh.get_array().reshape(effect.shape)
    np.testing.assert_array_equal(shown.mask, np.isnan(effect))
    np.testing.assert_allclose(shown.compressed(), (effect / np.nanmean(effect))[np.isfinite(effect)].clip(0.01))
    assert mesh.norm.vmin <= shown.min() < shown.max() <= mesh.norm.vmax
    first = np.nan_to_num(dataset["first"].isel(model=0).transpose("layer", "head").values)
    dots = (line for axes in figure.axes for line in axes.lines if line.get_gid() == "first")
    sizes = {(line.get_ydata()[0], line.get_xdata()[0]): line.get_markersize() for line in dots}
    assert sizes.keys() == {*zip(*np.nonzero(first), strict=True)}
    told, most = explained(figure), int(first.max())
    largest = told[f"in {most} families"].get_markersize()
    assert {sizes[at] for at in sizes if first[at] == most} == {largest}
    assert told["strongest in 1 family"].get_markersize() < largest


def test_chance_of_wins_by_enumeration():
    sequences = list(itertools.product(range(3), repeat=4))
    for wins in range(1, 5):
        share = np.mean([max(np.bincount(s)) >= wins for s in sequences])
        assert chance_of_wins(4, 3, wins) == pytest.approx(share)
    assert expected_wins(4, 3) == pytest.approx(np.mean([max(np.bincount(s)) for s in sequences]))
    assert chance_of_wins(30, 9, 30) == pytest.approx(9.0**-29)
