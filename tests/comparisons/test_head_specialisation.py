import numpy as np
import pytest

from xatlas.comparisons.head_specialisation import HeadSpecialisation
from xatlas.comparisons.measures import readings
from xatlas.comparisons.measures.head import share_of, top_share, wins_per_index

TYPES = ["conv", "attention"] * 4


def compare(synthetic, result):
    return HeadSpecialisation().compare(synthetic.tree_of(a={"head_ablation": result}))


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
    assert top_share(effects, [0, 1]) == pytest.approx(6 / 16.5)
    assert top_share(np.array([1.0, 2.0])) == 1.0
    assert np.isnan(top_share(np.zeros(8)))


def test_a_planted_head_is_first_and_its_share_supported(synthetic):
    result = synthetic.head_result(TYPES, plant=few)
    dataset = compare(synthetic, result)
    share, _ = HeadSpecialisation().findings(dataset)
    assert share.verdict == "supported"
    assert share.p < 0.01
    row = HeadSpecialisation().table(dataset)[0]
    assert (row["strongest head"], row["tie"]) == ("1.2", "none")
    assert float(row["P(rank 1)"]) > 0.99
    for seed in range(5):
        shuffled = compare(synthetic, synthetic.shuffle_layers(result, seed))
        assert "supported" not in [finding.verdict for finding in HeadSpecialisation().findings(shuffled)]


def test_best_head_per_family(synthetic):
    def plant(kl):
        kl[:8, 5, 3] *= 100  # prompts of the first family
        kl[8:, 1, 0] *= 100
        return kl

    dataset = compare(synthetic, synthetic.head_result(TYPES, plant=plant)).isel(model=0)
    assert dataset["best_layer"].values.tolist() == [5, 1, 1, 1, 1, 1]
    assert dataset["best_head"].values.tolist() == [3, 0, 0, 0, 0, 0]
    assert (dataset["best_tie"] == 0).all()
    text = HeadSpecialisation().table(dataset.expand_dims("model"))[0]["best per family"]
    assert text.startswith("family0 5.3, family1 1.0")


def test_the_best_head_of_a_family_of_one_wording_is_not_told_apart(synthetic):
    result = synthetic.head_result(TYPES)
    result["kl"].loc[{"layer": 1, "head": 2}] *= 100
    result["template"].values[:8] = "t0"  # the first family's
    dataset = compare(synthetic, result).isel(model=0)
    assert dataset["best_tie"].values.tolist() == [1, 0, 0, 0, 0, 0]
    assert dataset["best_p_rank1"].isnull().values.tolist() == [True] + [False] * 5


def test_two_equal_heads_tie(synthetic):
    def plant(kl):
        kl[:, 1, 2] *= 60
        kl[:, 3, 0] = kl[:, 1, 2]
        return kl

    dataset = compare(synthetic, synthetic.head_result(TYPES, plant=plant)).isel(model=0)
    assert dataset["first_tie"] == 1
    assert dataset["first_p_rank1"] == 0.5
    assert (dataset["best_tie"] == 1).all()


def test_wins_leave_out_ties_and_layers_without_heads():
    effects = np.array([[np.nan] * 3, [1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 2.0, 1.0], [0.0, 1.0, 4.0]])
    np.testing.assert_array_equal(wins_per_index(effects), [1, 0, 2])
    np.testing.assert_array_equal(wins_per_index(effects[:, :1]), [0])


def test_random_heads_win_at_chance_level(synthetic):
    dataset = compare(synthetic, synthetic.head_result(["attention"] * 12)).isel(model=0)
    assert dataset["n_layers_won"] == 12
    luckiest = np.random.default_rng(0).multinomial(12, [0.25] * 4, size=20_000).max(1).mean()
    assert dataset["index_wins_chance"] == pytest.approx(luckiest, abs=0.05)
    finding = HeadSpecialisation().findings(dataset.expand_dims("model"))[1]
    assert finding.verdict != "supported"
    assert finding.p > 0.05


def test_without_an_interval_wins_are_not_even_refused(synthetic):
    def plant(kl):
        return kl * (2.0 ** np.arange(12))[:, None, None, None]  # layers differ, heads don't

    result = synthetic.head_result(["attention"] * 12, plant=plant)
    assert HeadSpecialisation().findings(compare(synthetic, result))[1].verdict == "not supported"
    result["template"] = ("prompt", result["family"].values)
    assert HeadSpecialisation().findings(compare(synthetic, result))[1].verdict == "undecided"


def test_one_index_that_wins_everywhere_is_found(synthetic):
    result = synthetic.head_result(["attention"] * 12, plant=same_index)
    dataset = compare(synthetic, result)
    finding = HeadSpecialisation().findings(dataset)[1]
    assert (finding.value, finding.verdict) == (12, "supported")
    assert finding.p == pytest.approx(4.0**-11)
    shuffled = compare(synthetic, synthetic.shuffle_layers(result))
    assert HeadSpecialisation().findings(shuffled)[1].verdict != "supported"


def test_an_index_that_its_control_favours_too_is_an_artefact(synthetic):
    result = synthetic.head_result(["attention"] * 12, plant=same_index)
    rng = np.random.default_rng(0)
    result["kl_control"] = 0.5 * result["kl"] * np.exp(0.3 * rng.normal(size=result["kl"].shape))
    assert HeadSpecialisation().findings(compare(synthetic, result))[1].verdict == "artefact"


def test_wins_of_another_index_over_its_control_do_not_speak_for_the_winner(synthetic):
    def plant(kl):
        kl *= np.linspace(1, 3, kl.shape[1])[:, None, None, None]
        kl[:, :, 0] *= 6
        return kl

    result = synthetic.head_result(["attention"] * 8, plant=plant)
    result["kl_control"].loc[{"head": 0}] *= 40
    result["kl_control"].loc[{"head": 2}] /= 20
    dataset = compare(synthetic, result)
    finding = HeadSpecialisation().findings(dataset)[1]
    assert (dataset["index"].item(), finding.value, finding.verdict) == (0, 8, "artefact")
    assert dataset["index_wins_over_control"].item() == 0


def test_without_controls_of_heads_nothing_rests_on_them(synthetic):
    result = synthetic.head_result(["attention"] * 12, plant=same_index).drop_vars("kl_control")
    dataset = compare(synthetic, result)
    share, wins = HeadSpecialisation().findings(dataset)
    assert (wins.value, wins.verdict) == (12, "supported")
    assert wins.p == pytest.approx(4.0**-11)
    assert share.control == dataset["top_share_chance"].item()
    assert not [finding for finding in (share, wins) if "control" in finding.sentence or "nan" in finding.sentence]
    assert HeadSpecialisation().table(dataset)[0]["control"] == "–"
    HeadSpecialisation().plot(dataset)


def test_another_kind_must_favour_the_same_index(synthetic):
    result = synthetic.head_result(["attention"] * 12, plant=same_index, ablations=("mean", "zero"))
    assert HeadSpecialisation().findings(compare(synthetic, result))[1].verdict == "supported"
    result["kl"].loc[{"ablation": "zero"}] = result["kl"].sel(ablation="zero").values[:, :, [1, 0, 2, 3]]
    assert HeadSpecialisation().findings(compare(synthetic, result))[1].verdict == "undecided"


def test_the_share_of_all_heads_is_undecided(synthetic):
    """Four of four heads hold everything; rounding can put the control's share above 1."""
    dataset = compare(synthetic, synthetic.head_result(["attention"], 4))
    dataset["top_share_high"].values[:], dataset["top_share_control"].values[:] = 1, np.nextafter(1, 2)
    assert HeadSpecialisation().findings(dataset)[0].verdict == "undecided"


def test_one_head_a_layer_wins_nothing(synthetic):
    spread = np.linspace(1, 3, 8)[:, None, None, None]
    dataset = compare(synthetic, synthetic.head_result(["attention"] * 8, 1, lambda kl: kl * spread))
    assert (dataset["layers_p"] <= 0.05).all()
    assert HeadSpecialisation().findings(dataset)[1].verdict == "undecided"


def test_layers_without_heads_stay_nan(synthetic):
    effect = compare(synthetic, synthetic.head_result(TYPES))["effect"].isel(model=0)
    assert np.isnan(effect[::2]).all()
    assert np.isfinite(effect[1::2]).all()


def test_a_model_without_heads_is_said_to_have_none(synthetic):
    dataset = compare(synthetic, synthetic.head_result(["conv"] * 3))
    assert HeadSpecialisation().findings(dataset) == []
    assert HeadSpecialisation().table(dataset) == [{"model": "a", "top 5 share": "no heads"}]
    HeadSpecialisation().plot(dataset)


def test_the_share_of_a_draw_is_that_of_the_same_five_heads(synthetic):
    tree = synthetic.tree_of(a={"head_ablation": synthetic.head_result(["attention"] * 6, 4)})
    main = readings.read(tree, "a", "head_ablation")[0]
    point, draws = main.macro("kl")
    point, draws = point.ravel(), draws.reshape(len(draws), -1)
    five = np.argsort(-point)[:5]
    low, high = np.quantile(draws[:, five].sum(1) / draws.sum(1), [0.025, 0.975])
    found = share_of(main)
    assert np.allclose([found.low, found.high], [low, high])
