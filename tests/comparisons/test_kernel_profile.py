"""Kernel profiles: the planted tap leads, by each size; and what looks ahead only as it is usually read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from looking import explained
from matplotlib.colors import to_hex

from xatlas.comparisons.kernel_profile import KernelProfile

MANY = ["conv", "conv", "attention"] * 4
TAPS = {-2: np.array([3.0, 1, 1]), -1: np.array([1, 3.0, 1]), 0: np.array([1, 1, 3.0])}


def compare(synthetic, **models):
    return KernelProfile().compare(synthetic.tree_of(**models))


def told(dataset):
    return {each.name: each for each in KernelProfile().findings(dataset)}


@pytest.mark.parametrize("tap", TAPS)
def test_a_planted_tap_leads_by_every_size(synthetic, tap):
    plant = TAPS[tap]
    dataset = compare(synthetic, a=synthetic.kernel_results(MANY, plant, plant, 5 * plant))
    found = told(dataset)
    for name in ("weight_lead", "effective_lead"):
        assert found[name].verdict == "supported"
        assert f"tap {tap} has the largest" in found[name].sentence
        assert found[name].value == pytest.approx(0.6, abs=0.02)
    assert found["size_is_causal"].verdict == "supported"
    assert found["size_is_causal"].value == 1
    assert float(dataset["causal_share"].sel(model="a", layer=0, tap=tap)) == pytest.approx(0.6, abs=0.05)
    assert dataset["causal_share"].sel(layer=2).isnull().all()


@pytest.mark.parametrize(("tap", "verdict"), [(0, "artefact"), (-1, "refuted"), (-2, "refuted")])
def test_a_kernel_whose_last_tap_is_the_largest_does_not_look_ahead(synthetic, tap, verdict):
    found = told(compare(synthetic, a=synthetic.kernel_results(MANY, TAPS[tap], TAPS[tap])))["looks_ahead"]
    assert found.verdict == verdict
    assert ("its last tap is the current token's" in found.reason) == (verdict == "artefact")


def test_what_does_look_ahead_is_said_to(synthetic):
    found = told(compare(synthetic, a=synthetic.kernel_results(MANY, TAPS[0], TAPS[0], ahead=0.4)))["looks_ahead"]
    assert found.verdict == "supported"
    assert found.value == pytest.approx(0.4, rel=0.1)


def test_weight_and_effect_may_name_other_taps(synthetic):
    found = told(compare(synthetic, a=synthetic.kernel_results(MANY, TAPS[-2], TAPS[0], TAPS[0])))
    assert "tap -2" in found["weight_lead"].sentence
    assert "tap 0" in found["effective_lead"].sentence
    assert found["size_is_causal"].value == 1
    assert "by weight alone in 0.00" in found["size_is_causal"].sentence
    other = told(compare(synthetic, a=synthetic.kernel_results(MANY, TAPS[-2], TAPS[-2], TAPS[0])))["size_is_causal"]
    assert other.value == 0
    assert other.verdict != "supported"


def test_taps_of_random_order_lead_nowhere(synthetic):
    rng, runs, lucky = np.random.default_rng(0), 20, 0
    for seed in range(runs):
        sizes = rng.permuted(np.tile([1.0, 1.5, 2.5], (len(MANY), 1)), axis=1)
        found = told(compare(synthetic, a=synthetic.kernel_results(MANY, sizes, sizes[:, ::-1], seed=seed)))
        lucky += sum(found[name].verdict == "supported" for name in ("weight_lead", "effective_lead"))
    assert lucky <= 0.1 * 2 * runs


def test_taps_that_tie_and_too_few_layers_decide_nothing(synthetic):
    tied = told(compare(synthetic, a=synthetic.kernel_results(MANY, np.array([0.3, 2.0, 2.0]))))["weight_lead"]
    assert (tied.verdict, tied.reason[:8]) == ("undecided", "it ties ")
    few = ["conv", "attention", "conv", "conv"]
    found = told(compare(synthetic, a=synthetic.kernel_results(few, TAPS[0], TAPS[0], TAPS[0])))
    assert (found["weight_lead"].verdict, found["weight_lead"].reason) == ("undecided", "too few layers")
    one = told(compare(synthetic, a=synthetic.kernel_results(few[:2], TAPS[0], TAPS[0], TAPS[0])))
    assert {each.verdict for each in one.values()} <= {"undecided", "artefact"}


def test_a_model_without_convolutions_has_a_row_and_no_panel(synthetic):
    bare = synthetic.kernel_results(["attention"] * 3)
    dataset = compare(synthetic, a=bare, b=synthetic.kernel_results(MANY, TAPS[0]))
    assert {each.model for each in KernelProfile().findings(dataset)} == {"b"}
    (row,) = [row for row in KernelProfile().table(dataset) if row["model"] == "a"]
    assert row["number"] == "no conv layers"
    assert len(KernelProfile().plot(dataset).axes) == 3
    assert KernelProfile().plot(compare(synthetic, a=bare)).axes


def test_bars_are_shares_that_fill_each_layer(synthetic):
    dataset = compare(synthetic, a=synthetic.kernel_results(MANY, TAPS[-1], kernel=3))
    figure = KernelProfile().plot(dataset)
    axes = figure.axes[0]
    heights = np.array([[bar.get_height() for bar in bars] for bars in axes.containers])  # (tap, layer)
    np.testing.assert_allclose(heights.sum(0), 1)
    convs = [layer for layer, kind in enumerate(MANY) if kind == "conv"]
    shares = dataset["weight_share"].sel(model="a", layer=convs, tap=[0, -1, -2])
    np.testing.assert_allclose(heights, shares.transpose("tap", "layer"))
    assert [text.get_text() for text in axes.get_xticklabels()] == list(map(str, convs))
    named = {text: line.get_color().lower() for text, line in explained(figure).items()}
    colours = [to_hex(bars[0].get_facecolor()) for bars in axes.containers]
    assert [named[text] for text in ("tap 0: the current token", "tap -1", "tap -2")] == colours
    assert axes.get_title(loc="left") == "a\nTap -1 largest in 8 of 8 layers"
    mixed = np.array([TAPS[-2 if layer < 4 else 0] for layer in range(len(MANY))])
    figure = KernelProfile().plot(compare(synthetic, a=synthetic.kernel_results(MANY, mixed, TAPS[-1], TAPS[0])))
    titles = [axes.get_title(loc="left").removeprefix("a\n") for axes in figure.axes]
    assert titles == [f"Tap {tap} largest in {count} of 8 layers" for tap, count in ((0, 5), (-1, 8), (0, 8))]


@pytest.mark.parametrize("hits", [2, 3, 5])
def test_agreement_of_size_and_effect_is_tested_against_all_ways_of_naming_a_tap(synthetic, hits):
    """In five layers of three taps: 3 ** 5 ways, each as likely."""
    sizes = np.array([TAPS[0] if layer < hits else TAPS[-2] for layer in range(5)])
    result = synthetic.kernel_results(["conv"] * 5, TAPS[0], sizes, 5 * TAPS[0])
    found = told(compare(synthetic, a=result))["size_is_causal"]
    ways = [way.count(0) >= hits for way in itertools.product(range(3), repeat=5)]
    assert (found.value, found.p) == pytest.approx((hits / 5, np.mean(ways)))
    assert "by weight alone in 1.00" in found.sentence


@pytest.mark.parametrize("idle", [TAPS[0], TAPS[-2]])
def test_layers_in_which_no_tap_has_an_effect_say_nothing_of_size_and_effect(synthetic, idle):
    """Whichever tap their rounding names."""
    effects = np.array([TAPS[0] if layer < 5 else 1e-7 * idle for layer in range(9)])
    found = told(compare(synthetic, a=synthetic.kernel_results(["conv"] * 9, TAPS[0], TAPS[0], effects)))
    assert found["size_is_causal"].value == 1
    assert found["size_is_causal"].p == pytest.approx(3.0**-5)
    assert "of 5 conv layers" in found["size_is_causal"].sentence
