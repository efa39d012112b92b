import math
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from xatlas.comparisons.early_late import EarlyLate
from xatlas.findings import estimates, places
from xatlas.findings.estimates import Sample, within
from xatlas.findings.groups import layer_types, rank_correlation, welch
from xatlas.findings.places import largest
from xatlas.stats import t_quantile, t_tail

TYPES = ["conv", *["conv", "attention"] * 6, "conv"]
DEPTH = np.arange(14) / 13


def array(values, *dims):
    values = np.asarray(values, dtype=float)
    coords = {dim: np.arange(size) for dim, size in zip(dims, values.shape[1:], strict=True)}
    return xr.DataArray(values, dims=("prompt", *dims), coords=coords)


def noisy(rng, means, n, sd=0.7):
    return array(means * np.exp(rng.normal(0, sd, (n, len(means))) - sd**2 / 2), "layer")


def balanced(families, templates):
    return Sample(np.repeat(np.arange(families), templates), np.tile(np.arange(templates), families))


def test_t_is_that_of_the_tables():
    assert t_quantile([1, 4, 10, 1e6]) == pytest.approx([12.7062, 2.77645, 2.22814, 1.95996], rel=1e-4)
    assert t_tail([2.77645, 0.0, 31.8205], [4, 3, 1]) == pytest.approx([0.05, 1, 0.02], rel=1e-4)
    assert t_quantile(4, 0.9) == pytest.approx(2.13185, rel=1e-4)


def test_the_interval_of_a_share_by_hand():
    sample, part, whole = Sample(["f"] * 4, list("stuv")), np.array([1.0, 2, 4, 3]), np.array([2.0, 5, 6, 4])
    left = (part - 10 / 17 * whole) / whole.mean()
    half = t_quantile(3) * np.sqrt((left**2).sum() / (4 * 3))
    bounds = sample.share(array(part), array(whole)).bounds()
    assert bounds.values == pytest.approx([10 / 17, 10 / 17 - half, 10 / 17 + half])


@pytest.mark.parametrize("at_once", [2_000_000, 4])
def test_labels_are_permuted_in_each_template_by_itself(at_once, monkeypatch):
    """Two templates put their larger item first in half of the draws together: then the larger sum is as observed."""
    monkeypatch.setattr(estimates, "AT_ONCE", at_once)  # else one draw at a time, each another
    values = array([[0.0, 1.0], [0.0, 3.0]], "layer")
    p = Sample(["f", "f"], ["s", "t"]).permuted(values, "layer", lambda sums: sums.max(-1), 2000)
    assert p == pytest.approx(0.5, abs=0.05)


def test_the_interval_of_a_ratio_by_hand():
    # family 0 has templates (2, 4), family 1 has (3, 5, 7): macro mean (3 + 5) / 2 = 4; the bottom is 1 throughout
    sample = Sample([0, 0, 1, 1, 1], [0, 1, 0, 1, 2])
    ratio = sample.ratio(array([2, 4, 3, 5, 7]), array(np.ones(5)))
    first, second = (1 + 1) / 1 / 2 / 4 / 16, (4 + 0 + 4) / 2 / 3 / 4 / 16  # v_f, divided by F² and the squared mean
    freedom = (first + second) ** 2 / (first**2 / 1 + second**2 / 2)
    half = float(t_quantile(freedom)) * math.sqrt(first + second)
    assert ratio.bounds().values == pytest.approx(4 * np.exp([0, -half, half]))
    assert ratio.freedom() == pytest.approx(freedom)
    assert float(ratio.p()) == pytest.approx(float(t_tail(math.log(4) / math.sqrt(first + second), freedom)))


@pytest.mark.parametrize("kind", ["ratio", "share"])
def test_quotients_are_over_the_prompts_that_have_both(kind):
    rng, sample = np.random.default_rng(0), balanced(3, 6)
    top, bottom = np.exp(rng.normal(0, 0.5, (2, 18)))
    top[[0, 7]], bottom[[1, 7, 12, 13]] = np.nan, np.nan
    both = np.isfinite(top + bottom)
    alone = Sample(np.repeat(np.arange(3), 6)[both], np.tile(np.arange(6), 3)[both])
    found, right = (
        getattr(each, kind)(array(top[rows]), array(bottom[rows]))
        for each, rows in ((sample, slice(None)), (alone, both))
    )
    means = [np.nanmean(np.where(both, each, np.nan).reshape(3, 6), 1).mean() for each in (top, bottom)]
    assert float(found.bounds()[0]) == pytest.approx(means[0] / means[1])
    assert found.bounds().values == pytest.approx(right.bounds().values)


def test_families_of_one_template_are_left_out_unless_there_are_no_others():
    values = array([2.0, 4.0, 100.0])
    mean = Sample([0, 0, 1], [0, 1, 0]).mean(values)
    assert float(mean.point) == 3
    alone = Sample([0, 1, 2], [0, 0, 0]).mean(values).evidence()
    assert alone.blocked == "too few templates"
    assert alone.number[0] == pytest.approx(106 / 3)
    assert math.isnan(alone.number[1])


def test_differences_are_paired_over_the_templates_of_both():
    rng = np.random.default_rng(0)
    shared, sample = rng.normal(0, 1, 60), balanced(12, 5)
    one, two = (sample.mean(array(np.exp(shared + rng.normal(0, 0.05, 60)))) for _ in range(2))
    assert float((one - two).half()) < 0.3 * float(one.half())


def test_equal_numbers_are_equal_within_a_margin_and_never_outside_it():
    rng, sample = np.random.default_rng(0), balanced(12, 5)
    one, two, three = (sample.mean(array(k * np.exp(rng.normal(0, 0.1, 60))), log=True) for k in (1, 1.02, 1.5))
    same = (one - two).evidence(margin=(0.8, 1.25))
    assert same.equal
    assert same.equal_p < 0.01
    differ = (one - three).evidence(margin=(0.8, 1.25))
    assert not differ.equal
    assert differ.side == 1
    assert not (one - two).evidence(margin=(0.99, 1.01)).equal


def test_equality_is_that_of_the_90_percent_interval():
    """Of ten degrees of freedom it is 1.81 standard errors to either side, and that of 95 % is 2.23."""
    assert within(0.0, 0.5, 10, 1.0)["equal"]
    assert not within(0.0, 0.56, 10, 1.0)["equal"]


def test_two_models_do_not_differ_in_what_cannot_be_told_of_one_of_them():
    rng, sample, claim = np.random.default_rng(0), balanced(12, 5), EarlyLate.claims[0]
    one, two = (sample.mean(array(k * np.exp(rng.normal(0, 0.1, 60))), log=True).evidence() for k in (1, 3))
    found = EarlyLate().pair(claim, one, two)
    assert (found.side, found.blocked, found.p < 0.01) == (1, "", True)
    for pair in ((replace(one, blocked="no jump"), two), (one, replace(two, blocked="no jump"))):
        assert EarlyLate().pair(claim, *pair).blocked == "no jump"


def test_rounding_is_no_difference():
    values = np.random.default_rng(0).normal(3, 1, 60)
    one, two = (balanced(12, 5).mean(array(each)) for each in (values, values * (1 + 1e-13)))
    found = (one - two).evidence()
    assert (found.number[0], found.answer, found.side, found.p) == (0, 0, 0, 1)


def test_the_luck_of_both_numbers_draws_is_in_their_difference():
    rng, sample = np.random.default_rng(0), balanced(12, 5)
    one, two = (
        sample.mean(drawn(rng, np.exp(rng.normal(0, 0.5, (60, 1))), 4).isel(layer=0, drop=True), log=True) for _ in "ab"
    )
    assert float((one - two).drawn) == pytest.approx(math.hypot(one.drawn, two.drawn))


def test_an_item_that_was_never_measured_changes_no_test():
    rng, sample = np.random.default_rng(0), balanced(12, 5)
    values = noisy(rng, np.array([1.0, 1.3, 1.0]), 60)
    more = array(np.column_stack([values, np.full(60, np.nan)]), "layer")
    p, same = (sample.permuted(each, "layer", lambda means: means.max(-1), 500) for each in (values, more))
    assert p == same


def test_what_was_chosen_has_to_exceed_its_control_as_surely():
    rng, sample = np.random.default_rng(0), balanced(12, 5)
    control = drawn(rng, np.exp(rng.normal(0, 0.3, (60, 1))), 2).isel(layer=0, drop=True)
    chance = sample.mean(control, log=True)
    for reach, sides, unsure in ((-0.5, 0, False), (0.5, 0, True), (1.5, 1, False)):
        end = float(chance.point) + float(chance.half()) + reach * float(chance.drawn)
        over = sample.mean(control.mean("draw") * 0 + np.exp(end), log=True) - chance
        found = places.over_control(1e-6, over, chance)
        assert (found["side"], bool(found["open"]), found["p"]) == (sides, unsure, float(over.p()))
    assert places.over_control(0.9, over, chance)["p"] == 0.9


def test_a_template_that_only_one_of_two_models_has_moves_their_difference_alone():
    """Models drop different prompts: their numbers are then independent there, and both errors count."""
    rng = np.random.default_rng(0)
    first, second = (Sample(["f"] * 5, [f"{name}{i}" for i in range(5)]) for name in "ab")
    one, two = first.mean(array(rng.normal(3, 1, 5))), second.mean(array(rng.normal(2, 1, 5)))
    alone = [float(each.half() / t_quantile(each.freedom())) for each in (one, two)]
    both = one - two
    # that of ten templates of one family is divided by 10 * 9, not by 5 * 4, and each moves its mean by a fifth
    assert float(both.half() / t_quantile(both.freedom())) == pytest.approx(math.hypot(*alone) * math.sqrt(8) / 3)


def test_a_control_is_as_uncertain_as_the_effect():
    rng, sample = np.random.default_rng(0), balanced(12, 5)
    effect = sample.mean(array(2 * np.exp(rng.normal(0, 0.1, 60))), log=True)
    wild = sample.mean(array(np.exp(rng.normal(-3, 3, 60))), log=True)
    assert effect.evidence().side == 1
    assert effect.against(wild).evidence().side == 0


def drawn(rng, means, draws):
    """Return values ``(prompt, draw, layer)``: a mean for each prompt and layer, times what varies between draws."""
    each = means[:, None] * np.exp(rng.normal(-0.5, 1, (len(means), draws, means.shape[1])))
    return xr.DataArray(each, dims=("prompt", "draw", "layer"), coords={"layer": np.arange(means.shape[1])})


@pytest.mark.parametrize("templates", [[5] * 12, [2, 1, 9]])
def test_the_error_of_the_draws_is_how_much_other_draws_move_the_number(templates):
    families = np.repeat(np.arange(len(templates)), templates)
    sample = Sample(families, np.concatenate([np.arange(n) for n in templates]))
    rng = np.random.default_rng(0)
    means = np.exp(rng.normal(0, 0.5, (len(families), 2)))
    held = array(means * 3, "layer").sel(layer=0, drop=True)
    ratios, means_over, errors = [], [], []
    for _ in range(200):
        control = drawn(rng, means, 8)
        ratio = sample.ratio(control.sel(layer=0, drop=True), control.sel(layer=1, drop=True))
        over = sample.mean(held, log=True) - sample.mean(control, log=True).isel({"layer": 1})
        assert sample.ratio(held, control.sel(layer=0, drop=True)).drawn is not None
        ratios.append(float(ratio.point))
        means_over.append(float(over.point))
        errors.append((float(ratio.drawn), float(over.drawn)))
    told = np.sqrt(np.square(errors).mean(0))
    assert told == pytest.approx([np.std(ratios), np.std(means_over)], rel=0.15)


def test_what_clears_its_control_by_less_than_the_error_of_the_draws_is_open():
    rng, sample = np.random.default_rng(0), balanced(12, 5)
    control = drawn(rng, np.exp(rng.normal(0, 0.3, (60, 1))), 2).isel(layer=0, drop=True)
    chance = sample.mean(control, log=True)
    gap = chance - sample.mean(control.mean("draw") * 0 + 1, log=True)
    assert 0 < float(gap.drawn) < float(gap.half())
    for beyond, expected in ((-0.5, 0), (0.5, 0), (1.5, 1)):
        reach = float(chance.point) + float(chance.half()) + beyond * float(chance.drawn)
        found = sample.mean(control.mean("draw") * 0 + np.exp(reach), log=True).against(chance).evidence()
        assert (found.side, bool(found.open)) == (expected, beyond == 0.5)
        assert (found.p <= 0.05) == (beyond > 0)


def test_what_the_data_contradict_has_a_large_p():
    """Else it would stand first in Holm's order, and the other claims would be adjusted for fewer."""
    below = balanced(2, 5).mean(array(0.5 * np.exp(np.random.default_rng(0).normal(0, 0.1, 10))), log=True)
    assert below.evidence().p < 0.01
    assert below.evidence(two_sided=False).p > 0.99


@pytest.mark.parametrize("two_sided", [True, False])
def test_what_its_control_does_even_more_is_refuted(two_sided):
    rng, sample = np.random.default_rng(0), balanced(12, 5)
    small, large, none = (sample.mean(array(k * np.exp(rng.normal(0, 0.3, 60))), log=True) for k in (2, 6, 0.98))
    found = small.against(large).evidence(two_sided=two_sided)
    assert (found.side, found.own) == (-1, 1)
    # without a direction, what has no side of its own is on the other side of nothing
    assert none.against(large).evidence(two_sided=two_sided).side == (0 if two_sided else -1)


def test_the_largest_is_found_and_equal_ones_tie():
    rng, sample = np.random.default_rng(0), balanced(12, 5)
    means = np.ones(8)
    means[3] = 3
    found = largest(sample, noisy(rng, means, 60))
    assert (found.index, found.tie) == (3, False)
    assert found.p <= 0.01
    assert found.over_next[1] > 1
    means[5] = 3
    assert set(largest(sample, noisy(rng, means, 60)).tied) & {3, 5}


def test_a_family_that_varies_in_one_of_two_models_alone_leaves_the_other_its_error():
    """A family of one template is left out of a mean: that mean is one over fewer families, and moves by more."""
    rng, steady = np.random.default_rng(0), Sample(["f"] * 5 + ["g"] * 5, [*range(5), *range(5)])
    fewer = Sample(["f"] * 5 + ["g"], [*range(5), 0]).mean(array(rng.normal(2, 1, 6)))
    errors = [
        float(each.half() / t_quantile(each.freedom()))
        for each in (steady.mean(array(np.full(10, 3.0))) - fewer, fewer)
    ]
    assert errors[0] == pytest.approx(errors[1])


def test_what_is_chosen_by_looking_is_measured_on_other_templates():
    rng, sample = np.random.default_rng(0), balanced(12, 5)
    over = [largest(sample, noisy(rng, np.ones(20), 60)).over_next for _ in range(10)]
    assert np.mean([math.log(value) for value, _, _ in over]) == pytest.approx(0, abs=0.05)
    assert all(low <= value <= high for value, low, high in over)


def test_two_texts_that_make_the_runner_up_do_not_multiply_the_quotient():
    """Halves that hold both, or neither, measure next to nothing: a mean of log quotients lies three times too high."""
    rng, sample = np.random.default_rng(0), balanced(12, 5)
    values = noisy(rng, np.array([10.0, 0.01, 0.01, 0.01]), 60)
    values[7, 1], values[31, 1] = 5.0, 3.0
    means = values.mean("prompt")
    times, low, _ = largest(sample, values).over_next
    assert 1 < times / float(means[0] / means[1]) < 2.5
    assert low < float(means[0] / means[1])


def test_a_runner_up_that_one_text_makes_is_as_uncertain_as_that_text_makes_it():
    """That text is in no half that measures what it makes second: halves alone would be sure of a quotient."""
    values = noisy(np.random.default_rng(0), np.array([10.0, 0.01, 0.01]), 60, sd=0.1)
    values[7, 1] = 5.0
    sample = balanced(12, 5)
    (value, low, high), _ = sample.cross_fit(values.values, lambda means: np.eye(3)[np.argsort(-means)[:2]], log=True)
    plain = sample.ratio(values.isel(layer=0), values.isel(layer=1))
    assert math.log(high / value) == pytest.approx(math.log(value / low))
    assert math.log(high / value) >= float(plain.half()) - 1e-9


def test_where_halves_choose_alike_the_cross_fitted_quotient_is_the_plain_one():
    rng, sample = np.random.default_rng(0), balanced(12, 5)
    values = noisy(rng, np.array([9.0, 3.0, 1.0]), 60, sd=0.1)
    found, chosen = sample.cross_fit(values.values, lambda means: np.eye(3)[np.argsort(-means)[:2]], log=True)
    plain = sample.ratio(values.isel(layer=0), values.isel(layer=1)).bounds().values
    assert not chosen
    assert found == pytest.approx(plain)


@pytest.mark.parametrize("families", [1, 3])
def test_a_tie_and_its_numbers_agree(families):
    rng, sample, seen = np.random.default_rng(0), balanced(families, 5), set()
    for times in np.tile([1.0, 1.5, 2, 3], 8):
        found = largest(sample, noisy(rng, np.array([times, 1, 1]), 5 * families))
        assert found.tie == (found.margin[1] <= 0 or found.p_rank1 < 0.95)
        assert (found.p_rank1 >= 0.975) == (found.margin[1] > 0)  # up to the draw at the quantile
        seen.add(found.tie)
    assert seen == {True, False}


def test_a_difference_of_types_whose_interval_holds_only_with_layer_0_is_not_claimed():
    rng = np.random.default_rng(12)
    effects = 0.12 * (np.array(TYPES) == "conv") + rng.normal(0, 0.1, 14)
    effects[0] += 0.25
    found = layer_types(effects, TYPES, DEPTH, ("conv", "attention"))
    assert found.number[1] > 1
    assert found.p < 0.05
    assert (found.side, found.blocked) == (0, "not so without layer 0")


def test_layer_types_are_found_depth_aside_and_not_without_five_of_each():
    rng = np.random.default_rng(0)
    effects = 2 * DEPTH + np.log(3) * (np.array(TYPES) == "conv") + rng.normal(0, 0.1, 14)
    found = layer_types(effects, TYPES, DEPTH, ("conv", "attention"))
    assert found.number[0] == pytest.approx(3, rel=0.2)
    assert (found.side, found.answer, found.blocked) == (1, 1, "")
    assert found.p < 0.01
    assert layer_types(effects[:8], TYPES[:8], DEPTH[:8], ("conv", "attention")).blocked == "too few layers"
    assert layer_types(effects, ["conv"] * 14, DEPTH, ("conv", "attention")).blocked == "one operator type only"


@pytest.mark.parametrize("seed", [41, 42, 46])
def test_layer_types_are_tested_by_the_t_value_of_a_regression(seed):
    """By plain least squares: coefficients alone of the same orders give a p-value a tenth lower."""
    rng, is_conv, depth = np.random.default_rng(seed), np.arange(10) % 2 == 0, np.arange(10) / 9
    effects = rng.normal(0, 0.3, 10) + 0.2 * is_conv
    effects[seed % 10] += 1.5
    reduced = np.column_stack([np.ones(10), depth, depth**2])
    full = np.column_stack([is_conv, reduced])

    def fitted(y):
        """Return coefficients of type and their standard errors, of ``y (layer, draw)``."""
        found = np.linalg.lstsq(full, y, rcond=None)[0]
        variance = ((y - full @ found) ** 2).sum(0) / 6
        return found[0], np.sqrt(variance * np.linalg.inv(full.T @ full)[0, 0])

    trend = reduced @ np.linalg.lstsq(reduced, effects, rcond=None)[0]
    left = rng.permuted(np.tile(effects - trend, (4000, 1)), axis=1)
    (value,), (error,) = fitted(effects[:, None])
    drawn = np.divide(*fitted((trend + left).T))
    found = layer_types(effects, np.where(is_conv, "conv", "attention"), depth, ("conv", "attention"))
    assert found.p == pytest.approx((np.abs(drawn) >= abs(value / error)).mean(), abs=0.03)
    assert np.log(found.number) == pytest.approx(value + t_quantile(6) * error * np.array([0, -1, 1]))


def test_a_difference_of_types_that_layer_0_makes_is_none():
    rng = np.random.default_rng(2)
    effects = rng.normal(0, 0.05, 14) + 0.07 * (np.array(TYPES) == "conv")
    effects[0] += 0.5
    found = layer_types(effects, TYPES, DEPTH, ("conv", "attention"))
    assert found.side == 0 or found.p > 0.05 or found.blocked


def test_the_interval_of_unequally_many_seeds_is_welchs():
    one, two = np.array([1.0, 1.4, 0.9, 1.2, 1.0, 1.1]), np.array([2.0, 2.9, 1.1])
    parts = [each.var(ddof=1) / len(each) for each in (one, two)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 5 + parts[1] ** 2 / 2)
    gap, error = one.mean() - two.mean(), math.sqrt(sum(parts))
    found = welch(one, two, log=False, margin=0.1)
    assert found.number == pytest.approx(gap + t_quantile(freedom) * error * np.array([0, -1, 1]))
    assert not found.equal
    assert welch(one, one + 0.01, log=False, margin=0.5).equal
    ratio = welch(one, two, log=True)
    assert np.log(ratio.number) == pytest.approx(found.number)


def test_profiles_that_few_layers_have_by_chance_are_no_more_alike_than_chance():
    sample, profile = balanced(12, 5), np.array([3.0, 2.0, 1.0])
    draws = np.tile(profile, (200, 1))
    found = rank_correlation(sample, [profile, profile], [draws, draws], 4.0, "layers permuted")
    assert found.number == (1, 1, 1)
    assert found.p == pytest.approx(1 / 6, abs=0.03)
    assert found.side == 0  # the control's range reaches as far


def test_five_seeds_of_each_architecture_can_differ_and_three_cannot():
    five = welch([1.0, 1.1, 0.9, 1.05, 0.95], [2.0, 2.1, 1.9, 2.05, 1.95], log=True)
    assert five.p == pytest.approx(2 / math.comb(10, 5))
    assert five.side == 1
    assert five.number[0] == pytest.approx(math.exp(-1))
    assert welch([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], log=True).least_p == pytest.approx(0.1)


@pytest.mark.parametrize(("log", "sd"), [(True, 0.3), (False, 0.3)])
def test_no_point_lies_outside_its_interval(log, sd):
    rng = np.random.default_rng(0)
    for templates in (2, 3, 5):
        sample = balanced(2, templates)
        value, low, high = sample.mean(array(np.exp(rng.normal(0, sd, 2 * templates))), log=log).bounds().values
        assert low <= value <= high


def test_seeds_are_dealt_out_to_architectures_that_have_unequally_many():
    apart = welch([0, 1, 2, 3, 4], [10, 11, 12, 13, 14, 15], log=False)
    assert apart.number[0] == pytest.approx(-10.5)
    assert apart.p == pytest.approx(1 / math.comb(11, 5))
