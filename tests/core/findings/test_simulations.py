"""How often each null comes out as supported, how often intervals cover, and what is found of what is there."""

import numpy as np
import pytest
import xarray as xr
from test_estimates import DEPTH, TYPES, array, balanced, noisy

from xatlas.comparisons.head_specialisation import HeadSpecialisation
from xatlas.comparisons.hub import Hub
from xatlas.comparisons.mlp_ratio import MlpRatio
from xatlas.findings.groups import layer_types
from xatlas.findings.places import largest
from xatlas.findings.readings import Source
from xatlas.findings.sentences import decide
from xatlas.findings.verdict import ALPHA

CONV = np.array(TYPES) == "conv"
FAMILIES, TEMPLATES, SD = 12, 5, 0.7
#: Runs, and the share of them that may be supported under a null.
RUNS = [pytest.param(200, 0.10, id="200"), pytest.param(1000, 0.07, id="1000", marks=pytest.mark.slow)]
#: Runs through all claims and kinds of a comparison, and by how much the share found may then fall short by chance.
WHOLE = [pytest.param(20, 0.15, id="20"), pytest.param(1000, 0.0, id="1000", marks=pytest.mark.slow)]


def noise(rng, *shape, sd=SD):
    """Return log-normal values of mean 1."""
    return np.exp(rng.normal(0, sd, shape) - sd**2 / 2)


def measured(values, control, **coords):
    """Return a result of three kinds of ablation, the first with controls; ``kl (prompt, layer, ..., ablation)``."""
    data = {"kl": (("prompt", "layer", *coords, "ablation"), values)}
    data |= {"kl_control": (("prompt", "draw", "layer", *coords), control)}
    of_prompts = {
        "family": ("prompt", np.repeat([f"f{i}" for i in range(FAMILIES)], TEMPLATES)),
        "template": ("prompt", np.tile([f"t{i}" for i in range(TEMPLATES)], FAMILIES)),
    }
    n = values.shape[1]
    of_layers = {
        "layer": np.arange(n),
        "depth": ("layer", np.arange(n) / (n - 1)),
        "operator_type": ("layer", TYPES[:n]),
    }
    names = {"prompt": np.arange(len(values)), "ablation": ["mean", "zero", "resample"]}
    return xr.Dataset(data, {**coords, **of_prompts, **of_layers, **names})


def layers(rng, means=1.0):
    """Return effects of layers, noisy by themselves in every prompt and kind; ``means (layer, component, kind)``."""
    components = ["operator", "mlp", "joint"]
    return measured(means * noise(rng, 60, 14, 3, 3), 0.5 * noise(rng, 60, 2, 14, 3), component=components)


def read(comparison, result):
    return Source(xr.DataTree.from_dict({f"/a/{comparison.requires[0].probe}": result}), "a", comparison.requires)


def verdicts(comparison, result):
    """Return claim → verdict about one model, over all claims and kinds, as a run comes to it."""
    source = read(comparison, result)
    source.settings = [setting for setting in source.settings if setting.layer0]  # others tell how robust it is
    return {finding.name: finding.verdict for finding in decide(comparison()._about(source, []))}


def share(drawn, claim):
    return np.mean([each.get(claim) == "supported" for each in drawn])


def a_hub(place):
    return place.p <= ALPHA and not place.tie


def claimed(evidence):
    return not evidence.blocked and evidence.side > 0 and evidence.p <= ALPHA


@pytest.mark.parametrize(("runs", "limit"), RUNS)
def test_equal_layers_have_no_hub(runs, limit):
    rng, sample = np.random.default_rng(1), balanced(FAMILIES, TEMPLATES)
    assert np.mean([a_hub(largest(sample, noisy(rng, np.ones(14), 60))) for _ in range(runs)]) <= limit


@pytest.mark.parametrize(("runs", "limit"), RUNS)
def test_layers_permuted_within_prompts_have_no_hub(runs, limit):
    rng, sample, means = np.random.default_rng(2), balanced(FAMILIES, TEMPLATES), np.ones(14)
    means[0] = 5
    shuffled = (array(rng.permuted(noisy(rng, means, 60).values, axis=1), "layer") for _ in range(runs))
    assert np.mean([a_hub(largest(sample, values)) for values in shuffled]) <= limit


@pytest.mark.parametrize(("runs", "limit"), [(60, 0.15), *RUNS[1:]])  # of 60, one in 1,000 has more by luck
def test_heads_that_are_equal_hold_no_more_than_by_chance(runs, limit):
    rng, drawn = np.random.default_rng(3), []
    for _ in range(runs):
        levels = noise(rng, 6, 1, 1)  # layers may differ, their heads don't
        values, control = levels * noise(rng, 60, 6, 6, 3), noise(rng, 60, 2, 6, 6)
        source = read(HeadSpecialisation, measured(values, control, head=range(6)))
        drawn.append(HeadSpecialisation().estimate(*source.effects(source.usual)))
    for claim in ("top_share", "index_wins"):
        assert np.mean([claimed(each[claim]) for each in drawn]) <= limit


@pytest.mark.parametrize(("runs", "limit"), RUNS)
@pytest.mark.parametrize("null", ["no types", "depth alone", "one outlying layer"])
def test_layer_effects_that_have_nothing_to_do_with_type(null, runs, limit):
    rng = np.random.default_rng(4)

    def effects():
        values = rng.normal(0, 0.3, 14)
        if null == "depth alone":
            return values + 2 * DEPTH - DEPTH**2
        if null == "one outlying layer":
            values[rng.choice([0, int(rng.integers(14))])] += 3
        return values

    held = [claimed(layer_types(effects(), TYPES, DEPTH, ("conv", "attention"))) for _ in range(runs)]
    assert np.mean(held) <= limit


@pytest.mark.slow
def test_no_claim_of_a_comparison_holds_where_types_are_equal():
    """All claims about types together: Holm's method keeps the rate of runs with any at what one may have."""
    rng, drawn = np.random.default_rng(5), []
    for _ in range(1000):
        drawn.append(verdicts(MlpRatio, layers(rng, np.exp(rng.normal(0, 0.3, (14, 3, 1))))))
    supported = [[claim for claim in each if each[claim] == "supported"] for each in drawn]
    assert np.mean([any(claim.startswith("types") for claim in claims) for claims in supported]) <= 0.07


@pytest.mark.slow
def test_a_ratio_that_is_the_same_in_all_layers_has_no_peak():
    rng = np.random.default_rng(6)
    assert share([verdicts(MlpRatio, layers(rng)) for _ in range(1000)], "peak") <= 0.07


@pytest.mark.parametrize(("runs", "short"), WHOLE)
@pytest.mark.parametrize(("times", "power"), [(2, 0.85), pytest.param(3, 0.95, marks=pytest.mark.slow)])
def test_a_hub_that_is_there_is_found(times, power, runs, short):
    rng, means = np.random.default_rng(7), np.ones((14, 3, 1))
    means[0, 2] = times
    assert share([verdicts(Hub, layers(rng, means)) for _ in range(runs)], "hub") >= power - short


@pytest.mark.parametrize(("runs", "short"), WHOLE)
def test_a_difference_of_types_that_is_there_is_found(runs, short):
    rng = np.random.default_rng(8)
    twice = np.where(CONV, 2.0, 1.0)[:, None, None]
    drawn = [verdicts(MlpRatio, layers(rng, twice * np.exp(rng.normal(0, 0.3, (14, 3, 1))))) for _ in range(runs)]
    assert np.mean([share(drawn, claim) for claim in ("types_mlp", "types_operator")]) >= 0.85 - short


@pytest.mark.parametrize(("families", "templates", "lowest"), [(12, 5, 0.92), (4, 4, 0.92), (1, 5, 0.90)])
@pytest.mark.parametrize("log", [False, True])
def test_intervals_cover(families, templates, lowest, log):
    rng, sample, runs = np.random.default_rng(9), balanced(families, templates), 2000

    def values(mean):
        shape = (families * templates, runs)
        return array(mean * (noise(rng, *shape) if log else 1 + rng.normal(0, 0.2, shape)), "run")

    one, two = values(1.0), values(2.0)
    for statistic, truth in ((sample.mean(one, log=log), 1.0), (sample.ratio(one, two), 0.5)):
        bounds = statistic.bounds()
        held = float(((bounds.sel(bound="low") <= truth) & (truth <= bounds.sel(bound="high"))).mean())
        assert lowest - 0.01 <= held <= 0.97 + 0.01  # two standard errors


@pytest.mark.parametrize(("runs", "lowest"), [(100, 0.76), pytest.param(1000, 0.85, marks=pytest.mark.slow)])
@pytest.mark.parametrize("times", [1, 2])
def test_intervals_of_what_is_chosen_by_looking_cover_often(runs, lowest, times):
    """Over the runner-up, of thirteen that are equal: choosing anew in every draw would cover in none."""
    rng, sample, means = np.random.default_rng(10), balanced(FAMILIES, TEMPLATES), np.ones(14)
    means[0] = times
    found = [largest(sample, noisy(rng, means, 60)).over_next for _ in range(runs)]
    assert np.mean([low <= times <= high for _, low, high in found]) >= lowest
