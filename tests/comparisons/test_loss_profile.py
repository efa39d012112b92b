"""Bits per byte: beside guessing, between models over the same templates, and by family."""

import numpy as np
import pytest
from looking import explained, rows

from xatlas.comparisons import loss_profile
from xatlas.comparisons.figures import curves
from xatlas.comparisons.loss_profile import LossProfile

HARD = np.array([2.0, 1.0, 1.1, 1.3, 0.8, 0.9])


def findings(synthetic, **models):
    tree = synthetic.tree_of(**{name: {"token_loss": result} for name, result in models.items()})
    dataset = LossProfile().compare(tree)
    return dataset, {(f.name, f.model + f.model_other): f for f in LossProfile().findings(dataset)}


def test_losses_are_judged_beside_guessing(synthetic):
    dataset, found = findings(
        synthetic, a=synthetic.loss_result(HARD), b=synthetic.loss_result(4.0, seed=1), c=synthetic.loss_result(4.8)
    )
    assert found["loss", "a"].verdict == "supported"
    assert found["loss", "a"].value == pytest.approx(HARD.mean(), rel=0.1)
    assert found["loss", "a"].control == pytest.approx(4)
    assert found["loss", "b"].verdict == "undecided"
    assert found["loss", "c"].verdict == "refuted"
    alone = LossProfile().plot(dataset.sel(model=["c"])).axes[0]  # the title is of the models that are drawn
    assert alone.get_title(loc="left") == "All texts: better than guessing? refuted"
    loss = dataset["loss"].sel(model="a", bound="value")
    np.testing.assert_allclose(loss.sel(family=[f"family{i}" for i in range(6)]), HARD, rtol=0.15)
    np.testing.assert_allclose(dataset["overall"].sel(model="a", bound="value"), loss.mean(), rtol=1e-6)


def test_models_are_compared_in_bits_per_byte_over_the_same_templates(synthetic):
    """Templates differ much: paired, a tenth less is seen all the same. Tokens, and so guessing, differ freely."""
    one = synthetic.loss_result(HARD, spread=0.5)
    less, same = one.copy(deep=True), one.copy(deep=True)
    less["bits_per_byte"] = less["bits_per_byte"] * 0.7
    same["bits_per_byte"] = same["bits_per_byte"] * 1.02
    same["bits_per_byte_uniform"] = same["bits_per_byte_uniform"] * 3
    same["nll"] = same["nll"] * 5
    _, found = findings(synthetic, a=one, b=less, c=same)
    assert found["loss", "ab"].verdict == "supported"
    assert found["loss", "ab"].value == pytest.approx(1 / 0.7)
    assert found["loss", "ab"].short.endswith("differs")
    assert found["loss", "ac"].short.endswith("is the same")


def test_the_hardest_family_is_found_and_a_tie_is_said(synthetic):
    dataset, found = findings(synthetic, a=synthetic.loss_result(HARD), b=synthetic.loss_result(1.0, seed=3))
    hardest = found["hardest", "a"]
    assert hardest.verdict == "supported"
    assert hardest.short == "texts of family family0 cost most"
    assert hardest.value == pytest.approx(2 / 1.3, rel=0.15)
    assert found["hardest", "b"].verdict == "undecided"
    assert any("family0 / next" in str(row["number"]) for row in LossProfile().table(dataset))


def test_families_that_cost_one_model_much_cost_the_other_much(synthetic):
    one, alike = synthetic.loss_result(HARD), synthetic.loss_result(3 * HARD**0.5, guess=9, seed=1)
    _, found = findings(synthetic, a=one, b=alike, c=synthetic.loss_result(1 / HARD, seed=2))
    assert found["families", "ab"].verdict == "supported"
    assert found["families", "ab"].value > 0.9
    assert found["families", "ac"].verdict == "refuted"


@pytest.mark.parametrize("lacking", ["a", "b"])
@pytest.mark.parametrize("family", ["family0", "family2", "family5"])
def test_families_are_lined_up_by_name_where_a_model_lacks_one(synthetic, lacking, family):
    bits = np.array([1.0, 0.5, 4.0, 0.25, 2.0, 8.0])
    models = {"a": synthetic.loss_result(bits, spread=0.01), "b": synthetic.loss_result(bits**0.5, seed=1, spread=0.01)}
    models[lacking] = models[lacking].isel(prompt=models[lacking]["family"].values != family)
    _, found = findings(synthetic, **models)
    assert found["families", "ab"].value == pytest.approx(1)


def test_three_families_in_common_are_too_few_for_a_correlation(synthetic):
    """One order of six is the observed one."""
    one = synthetic.loss_result(HARD)
    few = synthetic.loss_result(HARD, seed=1).isel(prompt=slice(24))
    _, found = findings(synthetic, a=one, b=few)
    assert (found["families", "ab"].verdict, found["families", "ab"].reason) == ("undecided", "too few families")


def test_a_prompt_without_a_loss_is_left_out(synthetic):
    result = synthetic.loss_result(HARD)
    result["bits_per_byte"][:8:2] = np.nan  # half of those of the family that costs most
    dataset, found = findings(synthetic, a=result)
    hardest = found["hardest", "a"]
    assert (hardest.verdict, hardest.short) == ("supported", "texts of family family0 cost most")
    assert hardest.value == pytest.approx(2 / 1.3, rel=0.15)
    assert np.isfinite(dataset["loss"]).all()


def test_the_figure_shows_families_by_name_and_every_models_own_guess(synthetic):
    one, other = synthetic.loss_result(HARD, guess=4), synthetic.loss_result(HARD[::-1] * 2, guess=8, seed=1)
    twin = {"b~untrained_0": synthetic.loss_result(3.0, seed=2)}
    dataset, _ = findings(synthetic, a=one, b=other, **twin)
    figure = LossProfile().plot(dataset)
    whole, families = figure.axes
    colours = {model: explained(figure)[model].get_color() for model in "ab"}
    names = dataset["family"].values.tolist()
    shown = {(name, colours[model]): dataset["loss"].sel(model=model, family=name) for model in "ab" for name in names}
    assert rows(families) == {row: [pytest.approx(sorted(each.values))] for row, each in shown.items()}
    mean = np.log(dataset["loss"].sel(bound="value")).mean("model")
    assert [text.get_text() for text in families.get_yticklabels()] == mean.sortby(-mean)["family"].values.tolist()
    guesses = {line.get_ydata()[0]: line.get_xdata()[0] for line in whole.lines if line.get_markerfacecolor() == "none"}
    assert guesses == pytest.approx({0: 4, -1: 8})
    overall = {(model, colours[model]): dataset["overall"].sel(model=model).values for model in "ab"}
    drawn = rows(whole)
    assert drawn["b", curves.TWIN["color"]] == [dataset["overall_untrained"].sel(model="b").values.tolist()]
    assert {row: drawn[row] for row in overall} == {row: [pytest.approx(sorted(each))] for row, each in overall.items()}


@pytest.mark.parametrize(("runs", "limit"), [pytest.param(200, 0.10), pytest.param(1000, 0.07, marks=pytest.mark.slow)])
def test_equal_families_have_no_hardest(synthetic, monkeypatch, runs, limit):
    from xatlas.contracts.probe import Requirement
    from xatlas.findings.readings import Source

    monkeypatch.setattr(loss_profile, "DRAWS", 200)
    supported = 0
    for seed in range(runs):
        tree = synthetic.tree_of(a={"token_loss": synthetic.loss_result(1.0, seed=seed, spread=0.3)})
        source = Source(tree, "a", [Requirement("token_loss")])
        (one,) = source.effects(source.settings[0])
        found = loss_profile._hardest(one)
        supported += not found.blocked and found.p <= 0.05
    assert supported / runs <= limit
