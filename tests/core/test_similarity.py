"""Debiased CKA: its definition over quadruples, its null, and the jackknife, each against a second way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from xatlas.similarity import Grams, biased_cka, gram, mirrored


def unbiased_hsic(x, y):
    """Return the U-statistic over all quadruples of different samples, as it is defined (Song et al. 2012, eq. 4)."""
    k, m = x @ x.T, y @ y.T
    n = len(k)
    total = sum(
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])  # ordered quadruples: symmetric terms fall together
        for i, j, q, r in itertools.permutations(range(n), 4)
    )
    return total / math.perm(n, 4)


def test_it_is_the_unbiased_estimate_by_its_definition():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, (9, 5))
    y = x[:, :3] + rng.normal(-2, 1, (9, 3))
    expected = unbiased_hsic(x, y) / math.sqrt(unbiased_hsic(x, x) * unbiased_hsic(y, y))
    one, two = (Grams(gram(each)[None], np.arange(9)) for each in (x, y))
    assert float(one.cka(two)[0, 0]) == pytest.approx(expected, abs=1e-10)


def test_it_is_what_another_library_gives():
    from cka import cka_from_features

    rng = np.random.default_rng(1)
    shared = rng.normal(2, 1, (300, 12))
    layers = [shared @ rng.normal(0, 1, (12, 40)) + rng.normal(0, noise, (300, 40)) for noise in (1, 4, 12)]
    ours = Grams(np.stack([gram(each) for each in layers]), np.arange(300))
    theirs = cka_from_features(*[torch.tensor(np.stack(layers))] * 2).numpy()
    assert 0.05 < theirs.min() < 0.9
    assert ours.cka(ours) == pytest.approx(theirs, abs=1e-6)


def test_few_samples_push_the_biased_form_towards_one_and_leave_the_debiased_at_zero():
    rng = np.random.default_rng(0)
    found, biased = [], []
    for _ in range(20):
        grams = np.array([gram(rng.normal(size=(27, 1024))) for _ in range(2)])
        biased.append(biased_cka(grams)[0, 1])
        one = Grams(grams, np.arange(27))
        found.append(one.cka(one)[0, 1])
    assert np.mean(biased) == pytest.approx(0.97, abs=0.01)
    assert abs(np.mean(found)) < 0.03


def test_a_rotation_a_shift_and_a_scale_change_nothing():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 20)) * np.arange(1, 21)
    turned = 7 * x @ np.linalg.qr(rng.normal(size=(20, 20)))[0] + 5
    one = Grams(np.array([gram(x), gram(turned)]), np.arange(300))
    np.testing.assert_allclose(one.cka(one), 1, atol=1e-10)


def test_prompts_are_permuted_as_wholes():
    """Samples of one prompt resemble each other: independent prompts look similar to a null of single samples."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(25), 8)
    over = {"prompts": 0, "samples": 0}
    for seed in range(60):
        shared = rng.normal(size=(2, 25, 6))[:, groups] * 2
        one, two = (Grams(gram(each + rng.normal(size=each.shape))[None], groups) for each in shared)
        single = [Grams(each.values, np.arange(200)) for each in (one, two)]
        found = one.cka(two)[0, 0]
        over["prompts"] += found > np.quantile(one.null(two, 60, seed), 0.95)
        over["samples"] += found > np.quantile(single[0].null(single[1], 60, seed), 0.95)
    assert over["prompts"] <= 8  # of 60; 5 % are expected
    assert over["samples"] >= 20


def test_leaving_out_a_prompt_is_what_it_would_be_without_it():
    rng = np.random.default_rng(0)
    groups = np.array([0, 0, 1, 2, 2, 2, 3, 3, 4, 5, 5])
    x = rng.normal(size=(3, 11, 4))
    one, two = Grams([gram(each) for each in x[:2]], groups), Grams([gram(each) for each in x[1:]], groups)
    for group, found in enumerate(one.without(two)):
        kept = groups != group
        a, b = (Grams([gram(each[kept]) for each in some], groups[kept]) for some in (x[:2], x[1:]))
        np.testing.assert_allclose(found, a.cka(b), atol=1e-10)


def test_a_layer_at_which_all_samples_are_alike_is_absent():
    rng = np.random.default_rng(0)
    one = Grams(np.array([gram(rng.normal(size=(12, 4))), np.zeros((12, 12))]), np.arange(12))
    assert np.isnan(one.cka(one)).tolist() == [[False, True], [True, True]]


def test_triangles_become_whole():
    whole = gram(np.random.default_rng(0).normal(size=(5, 3)))
    np.testing.assert_allclose(mirrored(np.where(np.tri(5, dtype=bool), whole, np.nan)), whole)
