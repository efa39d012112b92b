"""The depth at which the lens shows the answer: where it was planted, against chance, twins and other models."""

import math

import numpy as np
import pytest
from looking import explained, rows

from xatlas.comparisons.figures import style
from xatlas.comparisons.lens_profile import LensProfile


def compare(synthetic, **models):
    return LensProfile().compare(synthetic.tree_of(**{name: {"logit_lens": each} for name, each in models.items()}))


def findings(dataset):
    return {finding.model + finding.model_other: finding for finding in LensProfile().findings(dataset)}


def test_the_planted_depth_is_found_and_supported(synthetic):
    result = synthetic.lens_result(4)
    found = findings(compare(synthetic, a=result))["a"]
    top = result.target_rank.sel(site="resid_post") == 1
    assert found.value == pytest.approx(float(top.argmax("layer").mean()) / 7)
    assert found.low < found.value < found.high
    assert found.verdict == "supported"
    assert "48 of 48 prompts" in found.sentence
    assert found.value < found.control


def test_chance_is_what_the_layers_give_in_random_order(synthetic):
    """By drawing orders: k hits among the layers before the last, and how many of them end the row."""
    result = synthetic.lens_result(4, flicker=0.3)
    found = findings(compare(synthetic, a=result))["a"]
    rng, depths = np.random.default_rng(1), []
    for top in (result.target_rank.sel(site="resid_post") == 1).values:
        orders = rng.permuted(np.tile(top[:-1], (2000, 1)), axis=1)
        depths.append((7 - np.logical_and.accumulate(orders[:, ::-1], axis=1).sum(1)).mean() / 7)
    assert found.control == pytest.approx(np.mean(depths), abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_answers_on_top_after_any_layers_are_not_supported(synthetic, seed):
    result = synthetic.lens_result(99, flicker=0.5, seed=seed)
    found = findings(compare(synthetic, a=result))["a"]
    assert found.verdict == "undecided" or found.p_adjusted > 0.01
    assert found.value == pytest.approx(found.control, abs=0.08)


def test_an_answer_that_only_the_output_gives_is_no_finding(synthetic):
    found = findings(compare(synthetic, a=synthetic.lens_result(99)))["a"]
    assert (found.value, found.control) == (1.0, 1.0)
    assert found.verdict == "undecided"


def test_prompts_that_a_model_gets_wrong_do_not_count(synthetic):
    """Nor do they where two models are compared; without a right one nothing is said."""
    some, all_wrong = synthetic.lens_result(4, wrong=20), synthetic.lens_result(4, wrong=48)
    dataset = compare(synthetic, a=some, b=all_wrong, c=synthetic.lens_result(4))
    found = findings(dataset)
    assert "28 of 48 prompts" in found["a"].sentence
    top = some.target_rank.sel(site="resid_post").isel(prompt=slice(20, None)) == 1
    assert found["a"].value == pytest.approx(float(top.argmax("layer").mean()) / 7, abs=0.03)
    assert found["b"].reason == "it gets no prompt right"
    assert "ab" not in found
    assert found["ac"].value == 0  # the same network on the prompts that both get right
    assert float(dataset["right"].sel(model="a")) == 28
    assert float(dataset["rank"].sel(model="a", layer=7, bound="value")) == 1  # those that it gets right
    assert math.isnan(float(dataset["on_top"].sel(model="b", layer=0, bound="value")))


def test_half_a_layer_of_the_shallower_is_the_same_depth(synthetic):
    early, same, late = (synthetic.lens_result(4, layers=8, seed=s) for s in (0, 1, 2))
    late = synthetic.lens_result(12, layers=16, seed=3)
    found = findings(compare(synthetic, a=early, b=same, c=late))
    assert found["ab"].verdict == "supported"
    assert found["ab"].short.endswith("is the same")
    assert found["ac"].short.endswith("differs")


def test_what_twins_settle_on_as_early_is_not_learnt(synthetic):
    trained, early, late = (
        synthetic.lens_result(4),
        synthetic.lens_result(4, seed=5),
        synthetic.lens_result(7, seed=6),
    )
    for twin in (early, late):  # nothing of theirs is right; their own first token comes first from some layer on
        twin["target_rank"][:] = 500.0
    learnt = {}
    for name, twin in (("early", early), ("late", late)):
        tree = {"net": {"logit_lens": trained}, **{f"net~untrained_{seed}": {"logit_lens": twin} for seed in range(3)}}
        dataset = LensProfile().compare(synthetic.tree_of(**tree))
        (found,) = LensProfile().findings(dataset)
        learnt[name] = found.learnt
        assert dataset["twin"].sizes == {"finding": 1, "twin": 3, "bound": 3}
    assert learnt == {"early": False, "late": True}


def test_twins_are_asked_about_all_prompts_right_or_not(synthetic):
    twin = synthetic.lens_result(4, wrong=20)
    settled = np.where(np.arange(48) < 20, 2, 5)
    twin["top_is_final"][:] = (np.arange(8) >= settled[:, None])[..., None].astype(float)
    dataset = LensProfile().compare(
        synthetic.tree_of(**{"a": {"logit_lens": synthetic.lens_result(4)}, "a~untrained_0": {"logit_lens": twin}})
    )
    number = dataset["twin"].sel(finding="onset|a", bound="value")
    assert number.values == pytest.approx([(20 * 2 + 28 * 5) / 48 / 7])  # families are of one size


def test_two_layers_are_too_few(synthetic):
    found = findings(compare(synthetic, a=synthetic.lens_result(0, layers=2)))["a"]
    assert (found.verdict, found.reason) == ("undecided", "too few layers")


def test_intervals_are_drawn_within_what_shares_and_ranks_can_be(synthetic):
    dataset = LensProfile().compare(synthetic.tree_of(a={"logit_lens": synthetic.lens_result(3)}))
    dataset["on_top"].loc[{"bound": "low"}] = -0.2
    dataset["rank"].loc[{"bound": "low"}] = 0.1
    top, rank, _ = LensProfile().plot(dataset).axes
    for axes, least in ((top, 0), (rank, 1)):
        assert axes.collections[0].get_paths()[0].vertices[:, 1].min() == least


def test_titles_say_from_where_on_it_holds_to_the_end(synthetic):
    dataset = compare(synthetic, a=synthetic.lens_result(3, layers=6), b=synthetic.lens_result(3, layers=5))
    dataset["on_top"].loc[{"model": "a", "bound": "value"}] = [0.1, 0.7, 0.2, 0.4, 0.5, 0.9]
    dataset["on_top"].loc[{"model": "b", "bound": "value"}] = [0.1, 0.7, 0.2, 0.5, 0.4, np.nan]
    dataset["rank"].loc[{"model": "a", "bound": "value"}] = [9, 40, 10, 10, 10, 1]
    dataset["rank"].loc[{"model": "b", "bound": "value"}] = [9, 40, 11, 10, 1, np.nan]
    top, rank, _ = LensProfile().plot(dataset).axes
    assert top.get_title(loc="left") == "On top in half of them from depth 0.80"  # in b it never stays
    assert rank.get_title(loc="left").split("–") == ["Among the first ten from depth 0.40", "0.75"]


def test_a_rank_at_random_is_that_of_each_models_own_vocabulary(synthetic):
    """The geometric mean of 1 to V is near V / e: the mean of their logarithms is log V - 1."""
    large = synthetic.lens_result(3, seed=1).assign_attrs(vocabulary=50_000)
    dataset = compare(synthetic, a=synthetic.lens_result(3), b=large)
    figure = LensProfile().plot(dataset)
    told = explained(figure)
    lines = {line.get_color(): line.get_ydata()[0] for line in figure.axes[1].lines if len(line.get_xdata()) == 2}
    for model, size in (("a", 1000), ("b", 50_000)):
        drawn = np.exp(np.log(np.arange(1, size + 1)).mean())
        assert lines[told[model].get_color()] == pytest.approx(drawn, rel=0.01)


def test_the_rank_is_a_geometric_mean(synthetic):
    result = synthetic.lens_result(7)
    rank = compare(synthetic, a=result)["rank"].sel(model="a", bound="value")
    expected = np.exp(np.log(result.target_rank.sel(site="resid_post")).mean("prompt"))  # families are of one size
    np.testing.assert_allclose(rank, expected)


def test_each_models_depth_stands_in_its_row_with_its_control_and_what_it_settles_on(synthetic):
    held = {name: {"logit_lens": synthetic.lens_result(at, seed=at, wrong=9)} for name, at in (("a", 3), ("b", 5))}
    held["b~untrained_0"] = {"logit_lens": synthetic.lens_result(6, seed=9)}
    dataset = LensProfile().compare(synthetic.tree_of(**held))
    figure = LensProfile().plot(dataset)
    drawn, told = rows(figure.axes[2]), explained(figure)
    for name, finding in findings(dataset).items():
        if name in held:
            settled = float(dataset["settled"].sel(model=name, bound="value"))
            onset = sorted([finding.value, finding.low, finding.high])
            assert drawn[name, told[name].get_color()] == [pytest.approx(onset), [settled]]
            chance = pytest.approx(sorted([finding.control_low, finding.control_high]))
            twins = dataset["twin"].sel(finding=f"onset|{name}", bound="value").values
            assert drawn[name, style.CONTROL] == [chance, pytest.approx(twins, nan_ok=True)]
