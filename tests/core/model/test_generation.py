"""Prompts that are continued together are continued as each is alone."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import reference as ref
import torch
from every_class import CONFIGS

from xatlas import manager
from xatlas.contracts.adapter import Site
from xatlas.interventions import Intervention, Zero
from xatlas.model import HookedModel
from xatlas.model.generation import TIE, Way, batches, continue_all, continue_batch, end_tokens, way_for
from xatlas.testing import byte_tokenizer, tiny_hf_model

#: A kind of cache each: keys, windows, convolutions, states, both in one layer, one after another.
KINDS = ("LlamaForCausalLM", "Gemma2ForCausalLM", "Lfm2ForCausalLM", "Mamba2ForCausalLM", "BambaForCausalLM")
OTHERS = sorted(set(manager.adapters()) - set(KINDS))
STEPS = 6


@cache
def hooked(name):
    adapter = manager.adapters()[name]
    hf = tiny_hf_model(name, **CONFIGS.get(name, {}))
    norm = getattr(adapter(hf).module(adapter(hf).final_norm_path), "weight", None)
    if norm is not None:
        with torch.no_grad():
            norm.add_(3.0)  # as in trained models, tokens differ by more than rounding
    return HookedModel(hf, byte_tokenizer(), prove=False)


def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 250, (n,), generator=generator).tolist() for n in (5, 3, 9, 5, 14)]


def alone(model, prompt, edits=()):
    """Return a prompt's continuation, a whole plain forward per token, and how far the two likeliest lie apart."""
    tokens, gaps = list(prompt), []
    for _ in range(STEPS):
        logits = ref.logits(model.model, tokens, list(edits))[-1]
        top = logits.topk(2)
        gaps.append(float(top.values[0] - top.values[1]))
        if int(top.indices[0]) in end_tokens(model):
            break
        tokens.append(int(top.indices[0]))
    return tokens[len(prompt) :], gaps


def ties(model, together, edits=()):
    """Return of how many prompts a tie is decided otherwise; all else is as each prompt alone."""
    found = 0
    for prompt, one in zip(prompts(), together, strict=True):
        wanted, gaps = alone(model, prompt, edits)
        if list(one.tokens) != wanted:
            pairs = zip(one.tokens, wanted, strict=False)
            first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one.tokens), len(wanted)))
            assert gaps[first] < TIE, (one.tokens, wanted, gaps)
            assert one.ties
            found += 1
        elif min(gaps) > 2 * TIE:  # rounding may move a gap
            assert not one.ties
    return found


def params():
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]
    return [*KINDS, *slow]


@pytest.mark.parametrize("name", params())
def test_a_batch_is_continued_as_each_prompt_alone_with_an_intervention_as_without(name):
    model = hooked(name)
    found = ties(model, continue_all(model, prompts(), STEPS, size=3))
    layer = next(layer for layer in range(model.n_layers) if model.has(Site(layer, "operator_out")))
    with model.intervene([Intervention(Site(layer, "operator_out"), Zero())]):
        together = continue_all(model, prompts(), STEPS, size=3)
    found += ties(model, together, [(layer, "operator_out", torch.zeros_like)])
    print(f"{name}: in {found} of {2 * len(together)} continuations a tie is decided otherwise")
    assert found <= 1  # of ten continuations, sixty steps


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Mamba2ForCausalLM"])
def test_what_is_held_at_position_0_is_not_held_at_tokens_that_follow_one_by_one(name):
    """Also where the model's cache doesn't count its tokens."""
    model = hooked(name)
    with model.intervene([Intervention(Site(0, "operator_out"), Zero(), positions="first")]):
        together = continue_all(model, prompts(), STEPS)
    plain = [each.tokens for each in continue_all(model, prompts(), STEPS)]
    assert [each.tokens for each in together] != plain
    assert ties(model, together, [(0, "operator_out", lambda value: value.index_fill(1, torch.tensor(0), 0.0))]) <= 1


def test_steps_at_which_the_two_likeliest_tokens_tie_are_counted():
    model = hooked("LlamaForCausalLM")
    head = model.model.lm_head.weight
    plain = continue_all(model, prompts(), STEPS)
    assert [each.ties for each in plain] == [0] * len(plain)
    likeliest = plain[0].tokens[0]
    before = head[255].clone()
    with torch.no_grad():
        head[255] = head[likeliest]
    try:
        tied = continue_all(model, prompts(), STEPS)
    finally:
        with torch.no_grad():
            head[255] = before
    assert tied[0].ties >= 1


def test_attention_is_padded_and_states_that_ignore_the_mask_are_not():
    assert way_for(hooked("LlamaForCausalLM")).padded
    assert way_for(hooked("Lfm2ForCausalLM")).padded
    assert way_for(hooked("LlamaForCausalLM")).cached
    model = hooked("Mamba2ForCausalLM")
    way = way_for(model)
    for rows in batches([5, 3, 9, 5, 14], [6] * 5, way):
        assert way.padded or len({len(prompts()[i]) for i in rows}) == 1


def test_a_model_that_reads_padding_as_text_continues_each_prompt_as_alone():
    model = HookedModel(tiny_hf_model("LlamaForCausalLM"), byte_tokenizer(), prove=False)
    unread = {"attention_mask": None, "position_ids": None}
    model.model.register_forward_pre_hook(lambda module, args, kwargs: (args, kwargs | unread), with_kwargs=True)
    assert not way_for(model).padded
    assert ties(model, continue_all(model, prompts(), STEPS)) <= 1


@pytest.mark.parametrize("padded", [True, False])
def test_batches_hold_each_prompt_once_and_only_those_that_go_together(padded):
    lengths, most = [5, 3, 9, 5, 14, 5, 3, 5, 5], [6, 6, 6, 6, 6, 6, 6, 6, 2]
    made = batches(lengths, most, Way(padded, True), 3)
    assert sorted(index for rows in made for index in rows) == list(range(len(lengths)))
    assert all(len({most[i] for i in rows}) == 1 for rows in made)
    assert padded or all(len({lengths[i] for i in rows}) == 1 for rows in made)
    # as few as can be: of eight prompts three each, or one of 9, one of 14, two of 3 and four of 5; and the last
    assert len(made) == (4 if padded else 6)
    assert max(map(len, made)) == 3


def test_the_models_own_settings_of_generation_are_left_out_and_stay():
    model = hooked("LlamaForCausalLM")
    plain = continue_all(model, prompts(), STEPS)
    own = model.model.generation_config
    own.repetition_penalty = 50.0
    try:
        assert continue_all(model, prompts(), STEPS) == plain
        assert model.model.generation_config is own
    finally:
        own.repetition_penalty = None


@pytest.mark.parametrize(
    "ends",
    [
        lambda end, other: (end, other),
        lambda end, other: ([other, end], other),
        lambda end, other: ([end, other], other),
        lambda end, other: (None, end),
    ],
)
def test_it_stops_at_any_of_the_models_ends_or_else_at_the_tokenizers(monkeypatch, ends):
    model = hooked("LlamaForCausalLM")
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", 2)
    whole = continue_all(model, prompts()[:1], STEPS)[0]
    end, other = whole.tokens[2], next(token for token in range(3, 9) if token not in whole.tokens)
    models, tokenizers = ends(end, other)
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", models)
    monkeypatch.setattr(model, "tokenizer", SimpleNamespace(eos_token_id=tokenizers))
    stopped = continue_all(model, prompts(), STEPS)[0]
    assert stopped.stop_reason == "end"
    assert stopped.tokens == whole.tokens[: whole.tokens.index(end)]
    assert whole.stop_reason == "length"


def test_ties_are_those_of_an_answers_own_tokens(monkeypatch):
    """What is computed of a row after its end, while others go on, is none of it."""
    model = hooked("LlamaForCausalLM")
    end = end_tokens(model)[0]
    way_for(model)

    def written(*_, logits_processor):
        for _ in range(3):
            logits_processor[0](None, torch.zeros(2, 4))
        return SimpleNamespace(sequences=torch.tensor([[5, 7, end, end], [5, 7, 7, 7]]))

    monkeypatch.setattr("xatlas.model.generation.run_generate", written)
    found = continue_batch(model, [[5], [5]], 3)
    assert [(each.tokens, each.stop_reason, each.ties) for each in found] == [
        ((7,), "end", 2),
        ((7, 7, 7), "length", 3),
    ]
