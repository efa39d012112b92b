"""Reference means and donors."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from models import token_prompt

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.interventions import Intervention, RandomDirection, Zero
from xatlas.probing.means import (
    ENOUGH_TOKENS,
    LEAST_TOKENS,
    SAMPLED_TOKENS,
    choose_donors,
    reference_means,
    streams_needed,
)
from xatlas.prompts.reader import TokenSuite

SITES = [Site(0, "mlp_out"), Site(1, "heads")]


def suite(n, length=9, families="ab"):
    return TokenSuite(
        tuple(token_prompt(f"r{i}", length + i % 3, seed=i, family=families[i % len(families)]) for i in range(n))
    )


def test_means_are_those_of_all_tokens_position_0_apart(shape):
    model, reference = shape("llama"), suite(60)
    means = reference_means(model, reference, SITES)
    first, others = {site: [] for site in SITES}, {site: [] for site in SITES}
    for prompt in reference.prompts:
        for site, value in model.capture(model.tokens([prompt]), SITES).items():
            first[site].append(value[0, 0].double())
            others[site] += list(value[0, 1:].double())
    assert means.n_tokens == len(others[SITES[0]]) >= LEAST_TOKENS
    for site in SITES:
        expected = torch.stack([torch.stack(first[site]).mean(0), torch.stack(others[site]).mean(0)])
        torch.testing.assert_close(means.values[site], expected.float(), atol=1e-6, rtol=1e-5)


def test_samples_are_single_tokens_after_position_0_from_all_of_the_reference(shape):
    model, reference = shape("llama"), suite(120)
    samples = reference_means(model, reference, SITES[:1], SITES).samples
    values = [model.capture(model.tokens([prompt]), SITES) for prompt in reference.prompts]
    for site in SITES:
        tokens = [value[site][0, 1:] for value in values]
        owner = torch.cat([torch.full((len(each),), i) for i, each in enumerate(tokens)])
        tokens = torch.cat(tokens).flatten(1)
        assert len(tokens) > SAMPLED_TOKENS == len(samples[site])
        distance = torch.cdist(samples[site].flatten(1), tokens - tokens.mean(0))
        offset = samples[site].flatten(1) - (tokens - tokens.mean(0))[distance.argmin(1)]
        torch.testing.assert_close(offset, offset[:1].expand_as(offset), atol=1e-4, rtol=0)  # the sample's own mean
        assert len(distance.argmin(1).unique()) == SAMPLED_TOKENS
        assert len(owner[distance.argmin(1)].unique()) == len(reference.prompts)


def test_too_short_a_reference_is_refused(shape):
    with pytest.raises(XatlasError, match=r"the reference has 27 tokens after position 0; .*at least 500"):
        reference_means(shape("llama"), suite(3), SITES)


def test_all_families_enter_even_if_the_first_alone_is_long_enough(shape):
    """Families are taken in turn, so that a long one in front does not crowd out the rest."""
    long = [token_prompt(f"a{i}", 20, seed=i, family="a") for i in range(200)]
    rare = [token_prompt("b", 12, seed=7, family="b")]
    model = shape("llama")
    with_rare = reference_means(model, TokenSuite((*long, *rare)), SITES)
    without = reference_means(model, TokenSuite(tuple(long)), SITES)
    assert not torch.equal(with_rare.values[SITES[0]], without.values[SITES[0]])
    assert without.n_tokens == 19 * 79 >= ENOUGH_TOKENS > 19 * 78  # and no more prompts than are needed


@pytest.mark.parametrize(
    ("kind", "stream", "without_middle"),
    [
        ("operator_out", "resid_mid", "resid_post"),  # in parallel blocks there is no stream between
        ("mlp_out", "resid_post", "resid_post"),
        ("heads", "heads", "heads"),
        ("resid_pre", "resid_pre", "resid_pre"),
    ],
)
def test_a_random_direction_varies_as_the_stream_that_its_change_is_written_to(kind, stream, without_middle):
    part = Intervention(Site(1, kind), Zero())
    conditions = [(part,), (replace(part, change=RandomDirection((part,))),)]
    for has_middle, expected in ((True, stream), (False, without_middle)):
        model = SimpleNamespace(has=lambda site, there=has_middle: there or site.kind != "resid_mid")
        assert streams_needed(model, conditions) == {Site(1, kind): Site(1, expected)}
        assert streams_needed(model, conditions[:1]) == {}


def test_donors_have_the_length_and_neither_family_nor_target():
    def targeted(prompt, target):
        return replace(prompt, prompt=replace(prompt.prompt, target=target))

    asked = targeted(token_prompt("p", 5, family="a"), "x")
    fits = targeted(token_prompt("fits", 5, seed=1, family="b"), "y")
    longer = targeted(token_prompt("longer", 6, seed=2, family="b"), "y")
    same_family = targeted(token_prompt("family", 5, seed=3, family="a"), "y")
    same_target = targeted(token_prompt("target", 5, seed=4, family="b"), "x")
    assert choose_donors([asked], TokenSuite((longer, same_family, same_target, fits)), 0) == [fits.ids]
    assert choose_donors([asked], TokenSuite((longer, same_family, same_target)), 0) == [None]


def test_the_choice_of_a_donor_depends_on_seed_and_prompt_alone():
    asked = [token_prompt("p", 5, family="z"), token_prompt("q", 5, seed=9, family="z")]
    reference = TokenSuite(tuple(token_prompt(f"r{i}", 5, seed=i, family="a", subject=()) for i in range(3)))
    reference = TokenSuite(tuple(replace_target(prompt, str(i)) for i, prompt in enumerate(reference.prompts)))
    chosen = choose_donors(asked, reference, 0)
    assert choose_donors(asked[1:], reference, 0) == chosen[1:]
    assert any(choose_donors(asked, reference, seed) != chosen for seed in (1, 2, 3))


def replace_target(prompt, target):
    return replace(prompt, prompt=replace(prompt.prompt, target=target))
