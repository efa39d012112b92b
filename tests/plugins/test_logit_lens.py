"""The lens: its last row is the model's own output, its other rows are the stream where they say it is."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from kinds import KINDS, kind
from models import build
from reading import assert_lens_ends_in_the_output

import xatlas
from xatlas import Prompt, Suite
from xatlas.contracts.probe import Inputs
from xatlas.engine.schedule import Budget
from xatlas.model import HookedModel
from xatlas.plugins.logit_lens import LogitLens
from xatlas.schema import notes, validate
from xatlas.testing import byte_tokenizer, tiny_suite

SUITE = Suite("few", tiny_suite().prompts[::3])
NUMBERS = ("target_logprob", "target_rank", "kl_to_final", "entropy", "top_is_final")


def measure(model, suite=SUITE):
    dataset = LogitLens().measure(model, suite, Inputs())
    validate(dataset, LogitLens, model, suite)
    return dataset


@pytest.mark.parametrize("name", KINDS)
def test_the_last_row_is_the_models_own_output(name):
    model = kind(name)
    dataset = assert_lens_ends_in_the_output(model, SUITE)
    there = dataset.kl_to_final.notnull().any("prompt")
    for layer in range(model.n_layers):
        assert bool(there.sel(layer=layer, site="resid_pre")) == (layer == 0)
        assert bool(there.sel(layer=layer, site="resid_mid")) == ("resid_mid" in model.points[layer])
        assert bool(there.sel(layer=layer, site="resid_post"))
    before = dataset.kl_to_final.sel(layer=0)
    assert (before.dropna("site", how="all") > 1e-4).all()  # no row but the last is the last


@pytest.mark.parametrize("mini", ["lfm2-mini", "qwen-mini", "smollm2-mini"])
def test_the_last_row_is_the_output_of_trained_models(mini):
    model = xatlas.load(mini, device="cpu")
    suite = Suite("few", xatlas.manager.suites()["quick"].load().prompts[::9])
    assert_lens_ends_in_the_output(model, suite)


def test_every_row_is_the_stream_of_its_site_through_the_norm_once():
    model = HookedModel(build("llama", vocab_size=260), byte_tokenizer())
    dataset = measure(model)
    hf = model.model
    for row, prompt in enumerate(model.read(SUITE).prompts[:3]):
        for layer, site in ((0, "resid_pre"), (0, "resid_mid"), (1, "resid_mid"), (1, "resid_post")):
            stream = ref.values(hf, list(prompt.ids), layer, site)[0, prompt.readout]
            with torch.no_grad():
                own = hf.lm_head(hf.model.norm(stream)).double().log_softmax(-1)
                final = hf(torch.tensor([prompt.ids])).logits[0, prompt.readout].double().log_softmax(-1)
            found = dataset.isel(prompt=row).sel(layer=layer, site=site)
            np.testing.assert_allclose(found.target_logprob, own[prompt.answer], rtol=1e-5)
            np.testing.assert_allclose(found.entropy, -(own.exp() * own).sum(), rtol=1e-4)
            np.testing.assert_allclose(found.kl_to_final, (final.exp() * (final - own)).sum(), rtol=1e-4)
            assert found.top_token.item() == model.reader.text_of(int(own.argmax()))
            assert found.top_is_final == (own.argmax() == final.argmax())


def test_the_answer_is_there_from_the_layer_that_writes_it():
    """Layers behind it write nothing: from it on, all rows are the output; before it, none is."""
    hf = build("llama", vocab_size=260, num_hidden_layers=4)
    with torch.no_grad():
        for layer in hf.model.layers[2:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    dataset = measure(HookedModel(hf, byte_tokenizer()))
    late = dataset.kl_to_final.sel(layer=[2, 3], site=["resid_mid", "resid_post"])
    assert late.max() < 1e-6
    assert dataset.kl_to_final.sel(layer=1, site="resid_post").max() < 1e-6
    assert dataset.kl_to_final.sel(layer=1, site="resid_mid").min() > 1e-3


def test_a_few_sites_and_rows_are_unembedded_at_a_time(monkeypatch):
    """A budget too small for two prompts, and readouts of two, give the same numbers, and no more logits at a time."""
    model = kind("LlamaForCausalLM")
    whole, sizes, logits = measure(model), [], model.logits
    tight = Budget(logit_bytes=4 * 260 * 4)
    monkeypatch.setattr("xatlas.probing.reading._ROWS", 2)
    monkeypatch.setattr("xatlas.probing.lens._CACHED", 4 * 260)
    monkeypatch.setattr(Budget, "for_device", classmethod(lambda cls, device: tight))
    monkeypatch.setattr(model, "logits", lambda hidden: sizes.append(hidden.numel() // 32) or logits(hidden))
    parts = measure(model)
    assert max(sizes) <= 4
    for name in NUMBERS:
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-5, rtol=1e-5)


def test_equal_logits_share_their_mean_rank():
    """A stream of nothing prefers nothing: its target is no winner."""
    hf = build("llama", vocab_size=260)
    with torch.no_grad():
        hf.model.embed_tokens.weight.zero_()
    hf.lm_head.weight = torch.nn.Parameter(torch.randn_like(hf.model.embed_tokens.weight))
    dataset = measure(HookedModel(hf, byte_tokenizer(), prove=False)).sel(layer=0, site="resid_pre")
    assert (dataset.target_rank == (260 + 1) / 2).all()
    np.testing.assert_allclose(dataset.entropy, np.log(260), rtol=1e-6)


def test_a_prompt_without_a_target_has_no_rank_and_says_why():
    model = kind("LlamaForCausalLM")
    dataset = measure(model, Suite("two", (*SUITE.prompts[:1], Prompt("plain", "sums", "no target here"))))
    assert dataset.target_rank.sel(prompt="plain").isnull().all()
    assert dataset.entropy.sel(prompt="plain", site="resid_post").notnull().all()
    assert notes(dataset, "absent")["target_rank"] == "1 of 2 prompts have no target"
