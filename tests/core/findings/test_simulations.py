"""How often each null comes out as supported, how often intervals cover, and what is found of what is there."""

import numpy as np
import pytest
from test_estimates import DEPTH, TYPES, array, balanced, noisy

from xatlas.findings.claims import ALPHA
from xatlas.findings.estimates import largest, layer_types

#: Runs, and the share of them that may be supported under a null.
QUICK, FULL = (200, 0.10), (1000, 0.07)
RUNS = [pytest.param(*QUICK, id="200"), pytest.param(*FULL, id="1000", marks=pytest.mark.slow)]


def found(place):
    return place.p <= ALPHA and not place.tie


def typed(evidence):
    return not evidence.blocked and evidence.side > 0 and evidence.p <= ALPHA


@pytest.mark.parametrize(("runs", "limit"), RUNS)
def test_equal_layers_have_no_hub(runs, limit):
    rng, sample = np.random.default_rng(1), balanced(12, 5)
    assert np.mean([found(largest(sample, noisy(rng, np.ones(14), 60))) for _ in range(runs)]) <= limit


@pytest.mark.parametrize(("runs", "limit"), RUNS)
def test_layers_permuted_within_prompts_have_no_hub(runs, limit):
    rng, sample, means = np.random.default_rng(2), balanced(12, 5), np.ones(14)
    means[0] = 5
    shuffled = (array(rng.permuted(noisy(rng, means, 60).values, axis=1), "layer") for _ in range(runs))
    assert np.mean([found(largest(sample, values)) for values in shuffled]) <= limit


@pytest.mark.parametrize(("runs", "limit"), RUNS)
@pytest.mark.parametrize("null", ["no types", "depth alone", "one outlying layer"])
def test_layer_effects_that_have_nothing_to_do_with_type(null, runs, limit):
    rng = np.random.default_rng(3)

    def effects():
        noise = rng.normal(0, 0.3, 14)
        if null == "depth alone":
            return noise + 2 * DEPTH - DEPTH**2
        if null == "one outlying layer":
            noise[rng.choice([0, int(rng.integers(14))])] += 3
        return noise

    assert np.mean([typed(layer_types(effects(), TYPES, DEPTH, ("conv", "attention"))) for _ in range(runs)]) <= limit


@pytest.mark.parametrize(("times", "power"), [(2, 0.85), (3, 0.95)])
def test_a_hub_that_is_there_is_found(times, power):
    rng, sample, means = np.random.default_rng(4), balanced(12, 5), np.ones(14)
    means[0] = times
    places = [[largest(sample, noisy(rng, means, 60)) for _ in range(3)] for _ in range(100)]  # three kinds
    assert np.mean([found(three[0]) and all(each.index == 0 for each in three) for three in places]) >= power


def test_a_difference_of_types_that_is_there_is_found():
    rng = np.random.default_rng(5)
    shift = np.log(2) * (np.array(TYPES) == "conv")
    runs = [layer_types(rng.normal(0, 0.3, 14) + shift, TYPES, DEPTH, ("conv", "attention")) for _ in range(200)]
    assert np.mean([typed(each) for each in runs]) >= 0.85


@pytest.mark.parametrize(("families", "templates", "lowest"), [(12, 5, 0.92), (4, 4, 0.92), (1, 5, 0.90)])
@pytest.mark.parametrize("draw", ["normal", "log-normal"])
def test_intervals_cover(families, templates, lowest, draw):
    rng, sample, n = np.random.default_rng(6), balanced(families, templates), families * templates

    def values(mean):
        if draw == "normal":
            return array(mean * (1 + rng.normal(0, 0.2, n)))
        return array(mean * np.exp(rng.normal(0, 0.7, n) - 0.245))

    held = []
    for _ in range(400):
        one, two = values(1.0), values(2.0)
        for statistic, truth in ((sample.mean(one, log=True), 1.0), (sample.ratio(one, two), 0.5)):
            low, high = statistic.bounds().values[1:]
            held.append(low <= truth <= high)
    assert lowest - 0.015 <= np.mean(held) <= 0.985  # 800 intervals: a standard error of 0.008
