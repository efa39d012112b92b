import itertools
import math

import numpy as np
import pytest

from xatlas.stats import (
    Clusters,
    agree,
    correlate_ranks,
    dealt,
    holm,
    mcnemar,
    probability_first,
    quantile,
    wilson,
)

NAN = math.nan


def design(families=6, templates=4, each=5):
    """Return family and template labels of a balanced suite."""
    family = np.repeat([f"f{i}" for i in range(families)], templates * each)
    template = np.tile(np.repeat([f"t{i}" for i in range(templates)], each), families)
    return family, template


def test_macro_weighs_families_not_prompts():
    clusters = Clusters(["a", "a", "a", "b"], ["1", "1", "2", "1"])
    assert clusters.macro([1.0, 1.0, 1.0, 3.0]) == 2.0


def test_absent_values_are_left_out_of_their_item_only():
    clusters = Clusters(["a", "a", "b"], ["1", "2", "1"])
    values = np.array([[1.0, NAN, NAN], [3.0, np.inf, NAN], [4.0, 6.0, NAN]])
    np.testing.assert_array_equal(clusters.macro(values), [3.0, 6.0, NAN])
    draws = clusters.macro_draws(values)
    assert np.isfinite(draws[:, :2]).all()
    assert np.isnan(draws[:, 2]).all()


def test_a_layer_of_zeros_stays_exactly_zero():
    clusters = Clusters(*design())
    values = np.zeros((120, 2))
    values[:, 1] = np.random.default_rng(0).gamma(2, size=120)
    assert clusters.macro(values)[0] == 0
    assert (clusters.macro_draws(values)[:, 0] == 0).all()


def test_bootstrap_variance_is_that_of_cluster_means():
    family, template = design(families=1, templates=5, each=4)
    values = np.random.default_rng(3).normal(size=20)
    draws = Clusters(family, template, draws=40_000).macro_draws(values)
    means = values.reshape(5, 4).mean(1)
    assert draws.var() == pytest.approx(means.var(ddof=1) / 5, rel=0.05)


def test_interval_covers_when_prompts_of_a_template_hang_together():
    family, template = design(families=12, templates=4, each=5)
    rng = np.random.default_rng(0)
    clusters = Clusters(family, template, draws=400)
    held = 0
    for _ in range(300):
        values = np.repeat(rng.normal(size=48), 5) + 0.3 * rng.normal(size=240)
        low, high = (quantile(clusters.macro_draws(values), q) for q in (0.025, 0.975))
        held += low <= 0 <= high
    # resampling prompts would cover about 60 %, T of T templates about 90 %
    assert 0.915 <= held / 300 <= 0.985


def test_interval_covers_when_variants_of_a_frame_hang_together():
    """Five frames after four leads each, as in ``standard``; as twenty templates they would cover about 70 %."""
    rng, frames, leads, families = np.random.default_rng(0), 5, 4, 12
    template = np.tile([f"frame {i}-{lead}" for i in range(frames) for lead in range(leads)], families)
    clusters = Clusters(np.repeat(np.arange(families), frames * leads), template, draws=400)
    assert clusters.size == frames * families
    held = 0
    for _ in range(300):
        values = np.repeat(rng.normal(size=frames * families), leads)
        values += 0.5 * rng.normal(size=len(values))
        low, high = (quantile(clusters.macro_draws(values), q) for q in (0.025, 0.975))
        held += low <= 0 <= high
    assert 0.915 <= held / 300 <= 0.985


def test_variants_of_the_only_frame_and_single_ones_are_templates():
    alone = Clusters(["a"] * 3 + ["b"] * 2, ["t-1", "t-2", "t-3", "u-1", "v-2"])
    assert alone.names == ("a|t:t-1", "a|t:t-2", "a|t:t-3", "b|t:u-1", "b|t:v-2")


def test_a_family_of_one_template_never_varies():
    clusters = Clusters(["a"] * 6 + ["b"] * 6, ["t"] * 6 + ["u", "v"] * 3)
    assert (clusters.family_draws(np.arange(12.0), "a") == 2.5).all()
    assert clusters.family_draws(np.arange(12.0), "b").std() > 0
    assert clusters.varying == {"b"}


def test_missing_templates_make_each_prompt_its_own_cluster():
    assert Clusters(["a"] * 4, [None, None, "", ""]).size == 4


def test_nothing_can_be_resampled_where_no_family_has_two_templates():
    assert not Clusters(["a", "b"], ["t", "t"]).resamples


def test_same_prompts_give_the_same_draws():
    family, template = design()
    values = np.random.default_rng(0).normal(size=120)
    first, second = (Clusters(family, template, seed=4).macro_draws(values) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, Clusters(family, template, seed=5).macro_draws(values))


def test_family_draws_use_that_family_only():
    family, template = design(families=2)
    values = np.where(family == "f0", 1.0, 7.0)
    np.testing.assert_allclose(Clusters(family, template).family_draws(values, "f1"), 7.0)


def test_probability_of_first_rank_is_shared_within_agreement():
    draws = np.array([[2.0, 2.00005, 1.0, NAN], [1.0, 3.0, 2.0, NAN]])
    np.testing.assert_array_equal(probability_first(draws), [0.25, 0.75, 0.0, NAN])


def test_wilson_of_a_textbook_case():
    # 81 of 263: Newcombe 1998, table I
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20)[0] == 0
    assert math.isnan(wilson(0, 0)[0])


def test_mcnemar_is_a_binomial_test():
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(0, 0) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005, NAN])[:4] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(holm([0.5, NAN])[1])


def test_quantile_agrees_with_numpy_and_skips_absent_values():
    values = np.random.default_rng(0).normal(size=(57, 4))
    values[:20, 1] = NAN
    values[:, 3] = NAN
    expected = [np.quantile(values[:, 0], 0.3), np.quantile(values[20:, 1], 0.3)]
    np.testing.assert_allclose(quantile(values, 0.3)[:2], expected)
    assert np.isnan(quantile(values, 0.3)[3])


def test_numerical_agreement():
    assert agree(1.0, 1.0 + 1.0e-4)
    assert not agree(1.0, 1.0 + 1.2e-4)
    assert agree(1000.0, 1000.01)
    assert not agree(NAN, NAN)


def test_rank_correlation_with_ties():
    assert correlate_ranks([1, 2, 2, 4], [1, 3, 3, 9]) == pytest.approx(1.0)
    assert correlate_ranks([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert np.isnan(correlate_ranks([1, 1, 1], [1, 2, 3]))


def test_equal_values_share_the_mean_of_their_ranks():
    """Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: 4.5 / sqrt(4.5 * 5)."""
    found = correlate_ranks(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert found == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_a_draw_that_met_absent_values_only_takes_the_familys_mean():
    clusters = Clusters(["a"] * 3 + ["b"] * 3, ["1", "2", "3"] * 2, draws=200)
    drawn = clusters.macro_draws(np.array([1.0, np.nan, np.nan, 3.0, 3.0, 3.0]))
    assert np.allclose(drawn, 2.0)


def test_of_three_differences_of_which_one_is_real_one_at_most_is_not():
    assert holm([0.01, 0.04, 0.5], ["x"] * 3) == pytest.approx([0.03, 0.04, 0.5])
    assert holm([0.01, 0.04, 0.5, 0.03], ["x", "x", "x", ""]) == pytest.approx([0.04, 0.06, 0.5, 0.06])


@pytest.mark.parametrize("sizes", [(3, 3), (2, 2, 2), (1, 1, 4), (2, 4), (1, 2, 2), (1, 2, 3)])
def test_the_least_p_is_one_of_all_ways_of_dealing_out_that_differ(sizes):
    """Families of equal size that change places are the same way."""
    ends = np.cumsum(sizes)

    def families(order):
        return frozenset(frozenset(order[end - size : end]) for size, end in zip(sizes, ends, strict=True))

    ways = len({families(order) for order in itertools.permutations(range(sum(sizes)))})
    assert dealt(sizes, lambda order: 0.0, 0)[1] == pytest.approx(1 / ways)
    assert dealt(sizes, lambda order: 0.0, 4)[1] == pytest.approx(1 / 5)  # that of the draws is larger
