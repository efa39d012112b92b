"""Cards side by side: equal layers are folded, shares sum to all, and a count needs no interval."""

import numpy as np
import pytest
from looking import explained
from matplotlib.colors import to_hex

from xatlas.comparisons.card import Card

TYPES = ["conv", "conv", "attention", "conv", "attention", "attention"]


def compare(synthetic, **models):
    return Card().compare(synthetic.tree_of(**{name: {"model_card": card} for name, card in models.items()}))


def test_runs_of_equal_layers_are_one_row_and_shares_sum_to_all(synthetic):
    dataset = compare(synthetic, a=synthetic.card_result(TYPES))
    rows = Card().table(dataset)
    assert [row["layers"] for row in rows] == ["0 to 1", "2", "3", "4 to 5", "embedding", "unembedding", "other", "all"]
    assert [row["operator"] for row in rows[:4]] == ["conv", "attention", "conv", "attention"]
    assert [row["kernel or heads"] for row in rows[:2]] == ["kernel 3", "8 heads, 2 groups"]
    assert rows[0]["parameters"] == "6.02 k"
    shares = [float(row["share"].rstrip("%")) for row in rows if row["share"] != "–"]
    assert sum(shares[:-1]) == pytest.approx(100, abs=0.3)
    assert rows[5]["kernel or heads"] == "tied"
    np.testing.assert_allclose(dataset["share"].sum("part_of_all"), 1)


def test_a_layer_that_differs_in_one_thing_is_a_row_of_its_own(synthetic):
    for name, value in (("kernel", 4.0), ("n_heads", 4.0)):
        card = synthetic.card_result(["conv"] * 3 if name == "kernel" else ["attention"] * 3)
        card[name][1] = value
        assert [row["layers"] for row in Card().table(compare(synthetic, a=card))[:3]] == ["0", "1", "2"]
    wider = synthetic.card_result(["conv"] * 3)
    wider["parameters"].loc[{"layer": 2, "role": "mlp.up"}] = 9.0
    assert [row["layers"] for row in Card().table(compare(synthetic, a=wider))[:2]] == ["0 to 1", "2"]


def test_models_of_different_length_stand_side_by_side_with_equal_layers_folded(synthetic):
    dataset = compare(synthetic, a=synthetic.card_result(TYPES), b=synthetic.card_result(["attention"] * 9, tied=False))
    rows = {model: [row for row in Card().table(dataset) if row["model"] == model] for model in "ab"}
    assert [row["layers"] for row in rows["a"][:2]] == ["3 × layer 0", "3 × layer 2"]
    assert [row["layers"] for row in rows["b"][:3]] == ["9 × layer 0", "embedding", "unembedding"]
    assert list(dataset["operator_type"].sel(model="a").values[6:]) == [""] * 3
    np.testing.assert_allclose(dataset["share"].sum("part_of_all"), 1)
    assert float(dataset["share"].sel(model="b", part_of_all="conv")) == 0
    assert list(dataset["part_of_all"].values) == [
        "embedding",
        "conv",
        "attention",
        "mlp",
        "norm",
        "rest",
        "unembedding",
    ]


def test_that_mlps_hold_most_is_counted(synthetic):
    most, less = (synthetic.card_result(TYPES, mlp=size) for size in (4000.0, 500.0))
    found = {finding.model: finding for finding in Card().findings(compare(synthetic, a=most, b=less))}
    assert [found[model].verdict for model in "ab"] == ["supported", "refuted"]
    own = 3 * (4000 + 2020) + 3 * (4000 + 1220)
    assert found["a"].value == pytest.approx(6 * 4000 / own)
    assert "3 conv, 3 attention layers" in found["a"].sentence


def test_bars_are_stacked_to_what_a_layer_and_a_model_hold(synthetic):
    dataset = compare(synthetic, a=synthetic.card_result(TYPES))
    figure = Card().plot(dataset)
    whole, layers = figure.axes
    assert layers.get_ylabel() == "parameters, thousands"
    above = dict.fromkeys(range(len(TYPES)), 0.0)
    for bar in layers.patches:
        layer = round(bar.get_x() + bar.get_width() / 2)
        assert bar.get_y() == pytest.approx(above[layer])
        above[layer] += bar.get_height()
    one = dataset.sel(model="a")
    assert list(above.values()) == pytest.approx((one["parameters"].sum("role") / 1e3).values.tolist())
    colour = explained(figure)["mlp"].get_color()
    mlps = [bar for bar in layers.patches if to_hex(bar.get_facecolor(), True)[:7].upper() == colour]
    assert [bar.get_height() for bar in mlps] == pytest.approx([4.0] * len(TYPES))
    ends = np.cumsum(100 * one["share"].values)
    assert [bar.get_x() + bar.get_width() for bar in whole.patches] == pytest.approx(ends.tolist())
    assert ends[-1] == pytest.approx(100)
    several = compare(synthetic, a=synthetic.card_result(TYPES, mlp=100.0), b=synthetic.card_result(TYPES, mlp=2e6))
    share = 100 * several["share"].sel(part_of_all="mlp").values
    whole, _, layers = Card().plot(several).axes
    title = whole.get_title(loc="left").split("–")
    assert [title[0], title[1].split()[0]] == [f"mlp: {share[0]:.0f}", f"{share[1]:.0f}"]
    assert layers.get_ylabel() == "parameters, millions"


def test_layers_are_named_by_all_their_operators_below_their_bars(synthetic):
    figure = Card().plot(compare(synthetic, a=synthetic.card_result(["attention+ssm", "ssm", "linear_attention"])))
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["A+S", "S", "L"]
    assert "A+S: attention+ssm layer" in [text.get_text() for text in figure.legends[0].get_texts()]
