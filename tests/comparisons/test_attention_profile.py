"""Attention profiles: planted heads are found, with their scores and places; equal heads are none."""

from __future__ import annotations

import numpy as np
import pytest

from xatlas.comparisons.attention_profile import AttentionProfile

TYPES = ["conv", "attention"] * 4
EVEN = np.mean(1 / np.arange(3, 11))


def compare(synthetic, **models):
    results = {name: {"attention_patterns": result} for name, result in models.items()}
    return AttentionProfile().compare(synthetic.tree_of(**results))


def told(dataset):
    return {each.name: each for each in AttentionProfile().findings(dataset) if not each.model_other}


def test_planted_heads_are_found_with_their_scores_and_places(synthetic):
    planted = {"previous": [(1, 2, 0.7)], "induction": [(5, 0, 0.8), (7, 3, 0.5)]}
    dataset = compare(synthetic, a=synthetic.attention_result(TYPES, first=0.5, **planted))
    found = told(dataset)
    assert {name: each.verdict for name, each in found.items()} == dict.fromkeys(
        ("first_share", "previous_head", "induction_head", "induction_deeper"), "supported"
    )
    assert found["first_share"].value == pytest.approx(0.5, rel=0.1)
    assert found["first_share"].control == pytest.approx(EVEN)
    assert "head 2 of layer 1 attends most to the previous token" in found["previous_head"].sentence
    assert found["previous_head"].value == pytest.approx(0.7, abs=0.03)
    assert "head 0 of layer 5 attends most to what followed the same token before" in found["induction_head"].sentence
    assert found["induction_head"].value == pytest.approx(0.8, abs=0.03)
    assert found["induction_head"].control == pytest.approx(np.mean(1 / np.arange(26, 50)))
    # the centres of what exceeds the control: 1/7 against 5/7 and 1 in shares of 0.8 and 0.5
    assert 0.3 < found["induction_deeper"].value < 0.8
    assert float(dataset["induction"].sel(model="a", layer=5, head=0)) == pytest.approx(0.8, abs=0.02)
    assert dataset["first"].sel(layer=0).isnull().all()


def test_depth_is_that_of_heads_above_an_even_spread_alone(synthetic):
    result = synthetic.attention_result(TYPES)
    for kind, heads in {"previous": [(1, 2)], "induction": [(5, 0), (7, 3)]}.items():
        result[f"{kind}_score"] = result[f"{kind}_score"] * 0  # all others look away
        for layer, head in heads:
            result[f"{kind}_score"].loc[{"layer": layer, "head": head}] = 0.6
    found = told(compare(synthetic, a=result))["induction_deeper"]
    assert found.value == pytest.approx(6 / 7 - 1 / 7)


def test_previous_token_heads_behind_induction_heads_refute_the_order(synthetic):
    planted = {"previous": [(7, 2, 0.7)], "induction": [(1, 0, 0.8)]}
    found = told(compare(synthetic, a=synthetic.attention_result(TYPES, **planted)))
    assert found["induction_deeper"].verdict == "refuted"
    assert found["induction_deeper"].value < -0.3


def test_what_exceeds_its_control_by_little_counts_as_equal(synthetic):
    """One head in twenty parts looks where an induction head would: that is none."""
    found = told(compare(synthetic, a=synthetic.attention_result(TYPES, first=1.2 * EVEN, induction=[(5, 0, 0.08)])))
    for name in ("first_share", "induction_head"):
        assert (found[name].verdict, found[name].reason) == ("refuted", "equal within the margin of ±0.100")
    assert found["induction_head"].value == pytest.approx(0.08, abs=0.01)


def test_evenly_spread_attention_is_not_drawn_to_position_0(synthetic):
    found = told(compare(synthetic, a=synthetic.attention_result(TYPES, first=0.9 * EVEN)))
    assert found["first_share"].verdict == "refuted"
    assert found["first_share"].value < EVEN


def test_equal_heads_are_hardly_ever_told_apart(synthetic):
    """The strongest of many equal heads leads by luck; numbers are of templates that it was not chosen on."""
    runs = 15
    lucky = 0
    for seed in range(runs):
        found = told(compare(synthetic, a=synthetic.attention_result(TYPES, seed=seed)))
        lucky += sum(found[f"{kind}_head"].verdict == "supported" for kind in ("previous", "induction"))
    assert lucky <= 0.1 * 2 * runs


def test_models_are_compared_in_what_position_0_draws(synthetic):
    shares = {"a": 0.3, "b": 0.32, "c": 0.7}
    dataset = compare(synthetic, **{n: synthetic.attention_result(TYPES, first=s, seed=1) for n, s in shares.items()})
    pairs = {(f.model, f.model_other): f for f in AttentionProfile().findings(dataset) if f.model_other}
    assert "is the same in a and b" in pairs["a", "b"].sentence
    assert "differs between a and c" in pairs["a", "c"].sentence


def test_a_model_without_attention_has_no_heads_and_a_row(synthetic):
    bare = synthetic.attention_result(["conv"] * 3)
    dataset = compare(synthetic, a=bare, b=synthetic.attention_result(TYPES))
    assert not [each for each in AttentionProfile().findings(dataset) if "a" in (each.model, each.model_other)]
    (row,) = [row for row in AttentionProfile().table(dataset) if row["model"] == "a"]
    assert row["number"] == "no attention"
    figure = AttentionProfile().plot(dataset)
    names = {line.get_gid() for axes in figure.axes for line in axes.lines if line.get_gid()}
    assert names == {"first-b", "previous-b", "induction-b"}
    assert AttentionProfile().plot(compare(synthetic, a=bare)).axes


def test_the_figure_shows_means_of_position_0_and_the_strongest_heads(synthetic):
    dataset = compare(synthetic, a=synthetic.attention_result(TYPES, induction=[(5, 0, 0.8)]))
    panels = AttentionProfile().plot(dataset).axes
    lines = {line.get_gid(): line for axes in panels for line in axes.lines}
    one = dataset.sel(model="a", layer=[1, 3, 5, 7])
    np.testing.assert_allclose(lines["first-a"].get_ydata(), one["first"].mean("head"))
    np.testing.assert_allclose(lines["induction-a"].get_ydata(), one["induction"].max("head"))
    np.testing.assert_allclose(lines["induction-a"].get_xdata(), one["depth"])
    for axes, score in zip(panels, ("first", "previous", "induction"), strict=True):
        (points,) = (line.get_xydata() for line in axes.lines if line.get_marker() == ".")
        heads = [(float(at["depth"]), float(each)) for at in one[score].transpose("layer", "head") for each in at]
        assert sorted(map(tuple, points)) == sorted(heads)
        (even,) = (set(line.get_ydata()) for line in axes.lines if line.get_linestyle() == "--")
        assert even == {float(dataset["even"].sel(score=score, model="a"))}


def test_a_title_gives_the_range_of_the_models(synthetic):
    shares = {"a": 0.6, "b": 0.2}
    dataset = compare(
        synthetic, **{name: synthetic.attention_result(TYPES, first=share) for name, share in shares.items()}
    )
    found = {
        each.model: each
        for each in AttentionProfile().findings(dataset)
        if each.name == "first_share" and not each.model_other
    }
    title = AttentionProfile().plot(dataset).axes[0].get_title(loc="left")
    assert title == f"Position 0: mean {found['b'].value:.2f} to {found['a'].value:.2f}"
