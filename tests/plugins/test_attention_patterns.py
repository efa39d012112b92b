"""Attention patterns: scores of patterns whose answer is known, windows, layers without any, and real induction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kinds import kind
from models import build
from reading import assert_patterns_are_the_models_own

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs
from xatlas.errors import XatlasError
from xatlas.model import HookedModel
from xatlas.plugins.attention_patterns import AttentionPatterns, induction_score
from xatlas.probing.reading import head_scores
from xatlas.schema import notes, validate
from xatlas.suites import Prompt, Suite
from xatlas.testing import byte_tokenizer, tiny_suite

SUITE = Suite("few", tiny_suite().prompts[::4])
PERIOD = 6


def measure(model, suite=SUITE, **parameters):
    probe = AttentionPatterns(**parameters)
    dataset = probe.measure(model, suite, Inputs())
    validate(dataset, probe, model, suite)
    return dataset


def looking(back, length=13):
    """Return a pattern ``(1, head, query, key)`` of one head that looks ``back`` tokens back, to 0 where it can't."""
    place = torch.arange(length)
    return torch.eye(length)[(place - back).clamp(min=0)][None, None]


def even(length):
    """Return the pattern of a head that looks at all that it sees alike."""
    return torch.ones(1, 1, length, length).tril().div(torch.arange(1, length + 1)[:, None])


def test_scores_of_planted_heads():
    scores = {back: {name: float(v) for name, v in head_scores(looking(back)).items()} for back in (0, 1, 2)}
    assert scores[0] == {"entropy": 0, "distance": 0, "first_weight": 0, "previous_score": 0}
    assert scores[1] == {"entropy": 0, "distance": 1, "first_weight": 0, "previous_score": 1}
    assert scores[2]["previous_score"] == 0
    assert scores[2]["first_weight"] == pytest.approx(1 / 11)  # of the third token alone
    spread = {name: float(value) for name, value in head_scores(even(5)).items()}
    assert spread["entropy"] == pytest.approx(np.mean(np.log([3, 4, 5])))
    assert spread["distance"] == pytest.approx(np.mean([1, 1.5, 2]))
    assert spread["first_weight"] == spread["previous_score"] == pytest.approx(np.mean([1 / 3, 1 / 4, 1 / 5]))


def test_a_planted_induction_head_scores_one_and_its_neighbours_nothing():
    """Not the token itself a period before, nor what followed it two later: only what followed at once."""
    for begin in (0, 1):
        found = [float(induction_score(looking(back, begin + 2 * PERIOD), PERIOD)) for back in range(PERIOD + 2)]
        assert found == [float(back == PERIOD - 1) for back in range(PERIOD + 2)]


@pytest.mark.parametrize("name", ["Lfm2ForCausalLM", "LlamaForCausalLM"])
def test_scores_are_of_the_models_own_patterns(name):
    model = kind(name)
    dataset = assert_patterns_are_the_models_own(model, SUITE)
    assert dataset.sizes["prompt"] == len(SUITE)
    scores = dataset["induction_score"].notnull()
    assert [bool(scores.sel(layer=layer).any()) for layer in range(model.n_layers)] == [
        word == "attention" for word in model.operator_types
    ]


def test_a_windows_layer_scores_only_what_it_sees():
    hf = build("qwen2", vocab_size=260, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    model = HookedModel(hf, byte_tokenizer())
    assert [model.adapter.window(layer) for layer in range(3)] == [None, 8, 8]
    dataset = measure(model)
    prompt = model.read(SUITE).prompts[0]
    site = Site(1, "attention_pattern")
    pattern = model.capture(model.tokens([prompt]), [site])[site][0]
    assert pattern[:, 8:, 0].abs().max() == 0
    wanted = pattern[:, 2:8, 0].mean(-1)  # over the queries that see it, not over all
    np.testing.assert_allclose(dataset["first_weight"].isel(prompt=0).sel(layer=1), wanted, rtol=1e-5)
    assert dataset["distance"].sel(layer=[1, 2]).max() < 8
    assert dataset["induction_score"].sel(layer=[1, 2]).isnull().all()
    assert dataset["induction_score"].sel(layer=0).notnull().all()
    assert "layers 1, 2" in notes(dataset, "absent")["induction_score"]
    seen = measure(model, period=8)["induction_score"]  # the key is just in the window
    assert seen.notnull().all()


def test_without_attention_there_is_no_pattern_and_short_texts_have_no_scores():
    dataset = measure(HookedModel(build("lfm2", vocab_size=260, layer_types=["conv"] * 3), byte_tokenizer()))
    assert dataset.to_array().isnull().all()
    assert "without attention" in notes(dataset, "absent")["layer=0,1,2"]
    suite = Suite("short", (Prompt("one", "f", "a"), Prompt("three", "f", "abc")))
    dataset = measure(HookedModel(build("llama", vocab_size=260), byte_tokenizer()), suite)
    assert dataset["entropy"].sel(prompt="one").isnull().all()
    assert dataset["entropy"].sel(prompt="three").notnull().all()
    assert dataset["induction_score"].notnull().all()


def test_a_period_that_does_not_fit_is_one_line():
    with pytest.raises(XatlasError, match="period = 1 does not fit"):
        AttentionPatterns(period=1)
    model = HookedModel(build("llama", vocab_size=260, max_position_embeddings=40), byte_tokenizer())
    with pytest.raises(XatlasError, match="period = 24 is too long for this model: it can read 19 different tokens"):
        measure(model)


def test_random_tokens_are_a_prompts_own():
    """They are the same beside other prompts, repeated exactly, and none is special."""
    model = HookedModel(build("llama", vocab_size=260), byte_tokenizer())
    few, probe = Suite("fewer", SUITE.prompts[1:]), AttentionPatterns(period=PERIOD)
    probe.start(model, SUITE, Inputs())
    drawn = [prompt.ids for prompt in probe.repeated]
    probe.start(model, few, Inputs())
    assert [prompt.ids for prompt in probe.repeated] == drawn[1:]
    assert len(set(drawn)) == len(drawn)
    for ids in drawn:
        assert ids[0] == model.reader.first_token
        assert ids[1 : 1 + PERIOD] == ids[1 + PERIOD :]
        assert len(set(ids)) == 1 + PERIOD
        assert max(ids[1:]) < 256
    probe.start(model, SUITE, Inputs(seed=1))
    assert [prompt.ids for prompt in probe.repeated] != drawn
