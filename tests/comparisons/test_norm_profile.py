"""Jumps of the stream's norm: planted ones are found, one token's are told from all tokens', chance is not taken."""

import numpy as np
import pytest
from looking import explained, shows

from xatlas.comparisons.figures import style
from xatlas.comparisons.norm_profile import NormProfile, _dependence, _jump, curve
from xatlas.contracts.probe import Requirement
from xatlas.errors import XatlasError
from xatlas.findings.readings import Source
from xatlas.findings.verdict import ALPHA

STEADY = np.full(8, 1.2)


def jump_at(layer, times=5.0, base=STEADY):
    growth = np.array(base, dtype=float)
    growth[layer] = times
    return growth


def findings(synthetic, **models):
    tree = synthetic.tree_of(**{name: {"residual_norms": result} for name, result in models.items()})
    dataset = NormProfile().compare(tree)
    return dataset, {(f.name, f.model + f.model_other): f for f in NormProfile().findings(dataset)}


def effects(synthetic, result):
    tree = synthetic.tree_of(a={"residual_norms": result})
    source = Source(tree, "a", [Requirement("residual_norms")])
    return source.effects(source.settings[0])[0]


def by_family(synthetic, layer_of):
    """Return growth ``(prompt, layer)`` with a jump in the layer that ``layer_of(family, template)`` names."""
    growth = np.tile(STEADY, (synthetic.N_PROMPTS, 1))
    for prompt in range(synthetic.N_PROMPTS):
        template = prompt // synthetic.EACH
        growth[prompt, layer_of(template // synthetic.TEMPLATES, template % synthetic.TEMPLATES)] = 5.0
    return growth


def test_a_jump_of_all_tokens_is_found_with_its_phases(synthetic):
    dataset, found = findings(synthetic, a=synthetic.norm_result(jump_at(3)))
    jump = found["phases", "a"]
    assert jump.verdict == "supported"
    assert jump.value == pytest.approx(5, rel=0.1)
    assert jump.control == pytest.approx(1.2, rel=0.05)
    assert jump.short == "the stream is quiet up to a jump in layer 3, and high after it"
    phase = dataset["phase"].sel(model="a")
    np.testing.assert_array_equal(phase.sel(curve="last"), [0, 0, 0, 1, 1, 1, 1, 1])
    assert found["one_token", "a"].verdict == "refuted"
    assert found["first", "a"].verdict == "refuted"  # as long as at the readout
    assert found["family", "a"].verdict == "refuted"  # one layer whatever the text
    assert found["family", "a"].value == 0


def test_a_jump_of_the_first_token_is_an_artefact_of_the_norm_over_a_prompt(synthetic):
    dataset, found = findings(synthetic, a=synthetic.norm_result(STEADY, first=jump_at(3, 60.0)))
    jump = found["phases", "a"]
    assert jump.verdict == "artefact"
    assert "of which one token holds 100%" in jump.reason
    assert "over a whole prompt 1" in jump.sentence  # times as long
    assert found["one_token", "a"].verdict == "supported"
    assert "position 0" in found["one_token", "a"].sentence
    assert found["first", "a"].verdict == "supported"
    assert dataset["phase"].sel(model="a", curve="prompt").max() == 1
    assert dataset["phase"].sel(model="a", curve="last").max() == 0


def test_it_is_said_in_how_many_prompts_position_0_holds_the_jump(synthetic):
    """A fourth of the prompts have a longer token elsewhere."""
    result = synthetic.norm_result(STEADY, first=jump_at(3, 60.0))
    result["token_share"][:12] = 0.99
    result["norm"].loc[{"position": "first"}] = (
        result["norm"].sel(position="first").where(np.arange(48)[:, None, None] > 11, 0.1)
    )
    _, found = findings(synthetic, a=result)
    assert "position 0 in 75% of the prompts" in found["one_token", "a"].sentence


def test_steady_growth_is_no_jump_however_fast(synthetic):
    """Each layer doubles the norm and more: no phase lies between."""
    _, found = findings(synthetic, a=synthetic.norm_result(np.full(8, 2.5)))
    assert found["phases", "a"].verdict == "undecided"
    assert found["phases", "a"].low > 2
    _, found = findings(synthetic, a=synthetic.norm_result(STEADY))
    assert found["phases", "a"].verdict == "refuted"
    assert found["one_token", "a"].reason.startswith("no jump")


def test_a_jump_found_among_many_layers_needs_more_than_one_among_two(synthetic):
    result = synthetic.norm_result(jump_at(3, 2.2), jitter=0.2)
    few, many = (_jump(effects(synthetic, each), "last", 2.0) for each in (result.isel(layer=[0, 3, 5]), result))
    assert few.p < ALPHA < many.p
    assert many.p == pytest.approx(few.p * 7 / 2)


def test_a_jump_in_layer_0_leaves_no_quiet_phase(synthetic):
    _, found = findings(synthetic, a=synthetic.norm_result(jump_at(0)))
    assert found["phases", "a"].verdict == "refuted"


def test_what_counts_as_a_jump_is_a_parameter(synthetic):
    tree = synthetic.tree_of(a={"residual_norms": synthetic.norm_result(jump_at(3, 3.0))})
    verdicts = [NormProfile(jump=each).compare(tree)["finding_verdict"].values[0] for each in (2.0, 4.0)]
    assert verdicts == ["supported", "refuted"]
    with pytest.raises(XatlasError, match=r"norm_profile\.jump = 1 does not fit: it takes a number above 1"):
        NormProfile(jump=1)


def test_a_layer_that_follows_the_family_is_found(synthetic):
    growth = by_family(synthetic, lambda family, template: 2 + family % 3)
    dataset, found = findings(synthetic, a=synthetic.norm_result(growth))
    family = found["family", "a"]
    assert family.verdict == "supported"
    assert family.value == pytest.approx(1 - 0.2, abs=0.01)  # each of six families shares its layer with one other
    assert abs(family.control) < 0.05
    shares = dataset["jump_share"].sel(model="a")
    assert float(shares.sel(family="family1", layer=3)) == 1
    np.testing.assert_allclose(shares.sum("layer"), 1)


def test_a_layer_that_follows_the_template_alone_is_not_the_familys(synthetic):
    growth = by_family(synthetic, lambda family, template: 2 + template)
    _, found = findings(synthetic, a=synthetic.norm_result(growth))
    assert found["family", "a"].verdict in ("undecided", "refuted")
    assert found["family", "a"].value < 0


def test_a_dependence_of_the_first_tokens_spike_is_an_artefact(synthetic):
    """Readout tokens grow most in one layer; how long other tokens are decides where the norm over a prompt does."""
    result = synthetic.norm_result(jump_at(5, 3.0), jitter=0.0)
    later = (result["family"].values >= "family3")[:, None]
    site = dict(site="resid_post")
    whole = result["frobenius"]
    grown = np.where(later, jump_at(2, 9.0), jump_at(4, 9.0)).cumprod(1)
    whole.loc[site] = grown
    whole.loc[dict(site="resid_pre")] = np.column_stack([np.ones(len(grown)), grown[:, :-1]])
    _, found = findings(synthetic, a=result)
    assert found["family", "a"].verdict == "refuted"  # no token holds most of that norm
    result["token_share"] = result["token_share"] * 0 + 0.9
    _, found = findings(synthetic, a=result)
    assert found["family", "a"].verdict == "artefact"


def test_pairs_differ_in_whose_the_norm_is(synthetic):
    one, two = synthetic.norm_result(jump_at(3)), synthetic.norm_result(STEADY, first=jump_at(3, 60.0), seed=1)
    same = synthetic.norm_result(jump_at(3), seed=2)
    _, found = findings(synthetic, a=one, b=two, c=same)
    assert found["one_token", "ab"].verdict == "supported"
    assert found["one_token", "ab"].short.endswith("differs")
    assert found["first", "ac"].short.endswith("is the same")


def test_a_model_of_one_layer_and_prompts_of_one_wording_decide_nothing(synthetic):
    result = synthetic.norm_result(np.array([3.0]))
    _, found = findings(synthetic, a=result)
    assert found["phases", "a"].reason == "too few layers"
    held = synthetic.norm_result(jump_at(3))
    held["template"] = ("prompt", held["family"].values)
    dataset, found = findings(synthetic, a=held)
    assert {each.verdict for each in found.values()} == {"undecided"}
    assert not [cell for row in NormProfile().table(dataset) for cell in map(str, row.values()) if "nan" in cell]


@pytest.mark.parametrize(("runs", "limit"), [pytest.param(200, 0.10), pytest.param(1000, 0.07, marks=pytest.mark.slow)])
def test_layers_that_have_nothing_to_do_with_the_family(synthetic, monkeypatch, runs, limit):
    """Each template has its own layer, which its prompts share: prompts are not independent, and no family has one."""
    from xatlas.comparisons import norm_profile

    monkeypatch.setattr(norm_profile, "DEALT", 400)
    rng = np.random.default_rng(0)
    supported = 0
    base = synthetic.norm_result(STEADY)
    one = effects(synthetic, base)
    before, after = curve(one, "last")
    for _ in range(runs):
        layers = rng.choice(8, p=[0, 0, 0.1, 0.5, 0.2, 0.2, 0, 0], size=synthetic.FAMILIES * synthetic.TEMPLATES)
        hot = np.repeat(layers, synthetic.EACH)[:, None] == np.arange(8)
        found = _dependence(one, before, after.copy(data=before.values * np.where(hot, 5.0, 1.2)))
        supported += found.side > 0 and found.p <= ALPHA
    assert supported / runs <= limit


def test_a_dependence_of_middling_size_is_found_in_most_runs(synthetic, monkeypatch):
    from xatlas.comparisons import norm_profile

    monkeypatch.setattr(norm_profile, "DEALT", 400)
    rng, found = np.random.default_rng(1), 0
    one = effects(synthetic, synthetic.norm_result(STEADY))
    before, after = curve(one, "last")
    for _ in range(50):
        layers = np.repeat(rng.integers(2, 6, synthetic.FAMILIES), synthetic.TEMPLATES)
        layers = np.where(rng.random(len(layers)) < 0.25, rng.integers(2, 6, len(layers)), layers)
        hot = np.repeat(layers, synthetic.EACH)[:, None] == np.arange(8)
        each = _dependence(one, before, after.copy(data=before.values * np.where(hot, 5.0, 1.2)))
        found += each.side > 0 and each.p <= ALPHA
    assert found / 50 >= 0.85


def test_the_interval_covers_the_dependence_of_the_population(synthetic, monkeypatch):
    """Each template grows most in the layer of its family, which others share, or in any by chance.

    Of four templates a family it is somewhat narrow: it covers 86 % of 800 samples, half of it 58 %.
    """
    from xatlas.comparisons import norm_profile

    monkeypatch.setattr(norm_profile, "DEALT", 1)
    rng, inside, runs = np.random.default_rng(2), 0, 60
    one = effects(synthetic, synthetic.norm_result(STEADY))
    before, after = curve(one, "last")
    shares = np.full((synthetic.FAMILIES, 8), 0.05) + 0.6 * np.eye(8)[np.arange(synthetic.FAMILIES) % 3 + 2]
    both = shares @ shares.T  # how often templates of two families share the layer
    truth = both.diagonal().mean() - both[~np.eye(len(both), dtype=bool)].mean()
    for _ in range(runs):
        layers = np.concatenate([rng.choice(8, p=each, size=synthetic.TEMPLATES) for each in shares])
        hot = np.repeat(layers, synthetic.EACH)[:, None] == np.arange(8)
        _, low, high = _dependence(one, before, after.copy(data=before.values * np.where(hot, 5.0, 1.2))).number
        inside += low <= truth <= high
    assert 0.75 <= inside / runs <= 0.99


def test_jumps_are_marked_only_where_the_title_counts_them(synthetic):
    growth = np.array([9.0, 1.1, 1.1, 1.1, 4.0, 1.1])
    dataset = NormProfile().compare(synthetic.tree_of(a={"residual_norms": synthetic.norm_result(growth, growth)}))
    marked = [line for axes in NormProfile().plot(dataset).axes[:3] for line in axes.lines if line.get_marker() == "^"]
    assert {x for line in marked for x in line.get_xdata()} == {0.8}


def test_the_figure_shows_norms_shares_and_where_families_grow_most(synthetic):
    growth = by_family(synthetic, lambda family, template: 2 + family % 3)
    dataset, found = findings(synthetic, a=synthetic.norm_result(growth), b=synthetic.norm_result(jump_at(3), seed=1))
    figure = NormProfile().plot(dataset)
    *norms, shares, layers, says = figure.axes
    assert len({axes.get_ylim() for axes in norms}) == 1
    for axes, name in zip(norms, ("last", "first", "prompt"), strict=True):
        for model in "ab":
            (line,) = (line for line in axes.lines if line.get_gid() == f"{name}-{model}")
            assert shows(line, dataset["norm"].sel(model=model, curve=name, bound="value"))
    colours = {model: explained(figure)[model].get_color() for model in "ab"}
    for model, colour in colours.items():
        (line,) = (line for line in shares.lines if line.get_color() == colour)
        assert shows(line, dataset["token_share"].sel(model=model, bound="value"))
    dots = iter(layers.collections)
    for row, model in enumerate("ab"):
        for share in dataset["jump_share"].sel(model=model).transpose("family", "layer"):
            own = next(dots)
            np.testing.assert_allclose(own.get_offsets()[:, 0], share["depth"][share > 0])
            np.testing.assert_allclose(own.get_sizes(), 16 * share[share > 0])
            assert np.all(np.abs(own.get_offsets()[:, 1] + row) < 0.5)
        one = found["family", model]
        lines = {
            line.get_color(): line
            for line in says.lines[1:]
            if set(line.get_ydata()) == {-row} and len(line.get_xdata()) == 2
        }
        assert [*lines[style.CONTROL].get_xdata()] == [one.control_low, one.control_high]
        assert [*lines[colours[model]].get_xdata()] == [one.low, one.high]
