"""Losses of texts: Hugging Face's own, over the right bytes, and the same unit for any tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from kinds import kind
from models import build
from reading import assert_loss_is_hugging_faces_own

from xatlas.contracts.probe import Inputs
from xatlas.model import HookedModel
from xatlas.plugins.token_loss import TokenLoss
from xatlas.schema import notes, validate
from xatlas.suites import Prompt, Suite
from xatlas.testing import byte_tokenizer, tiny_suite

PLAIN = Prompt("plain", "texts", "Ein Bär, zwei Bären: 熊 🐻.", target=" Drei", foil=" Vier")
SUITE = Suite("few", (*tiny_suite().prompts[::3], PLAIN, Prompt("bare", "texts", "no target here")))


def measure(model, suite=SUITE):
    dataset = TokenLoss().measure(model, suite, Inputs())
    validate(dataset, TokenLoss, model, suite)
    return dataset


def test_the_loss_is_hugging_faces_own():
    assert_loss_is_hugging_faces_own(kind("Lfm2ForCausalLM"), SUITE)


def test_positions_are_unembedded_some_at_a_time(monkeypatch):
    from xatlas.engine import schedule

    model = HookedModel(build("llama", vocab_size=260), byte_tokenizer())
    whole = measure(model)
    seen, logits = [], model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: seen.append(len(hidden)) or logits(hidden))
    small = schedule.Budget(logit_bytes=4 * 260 * 7)
    monkeypatch.setattr(schedule.Budget, "for_device", classmethod(lambda cls, device: small))
    np.testing.assert_allclose(measure(model)["nll"], whole["nll"], rtol=1e-6)
    assert max(seen) == 7


def pieces(bos=True):
    """Return a tokenizer of words whose rare characters fall apart into bytes, and one of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("B", "Ã"), ("z", "w"), ("zw", "e"), ("zwe", "i"), ("Ġ", "zwei"), ("ç", "Ĩ")]
    vocabulary = {each: index for index, each in enumerate([*letters, *map("".join, merges)])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    more = {"bos_token": "<begin>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", **more)


def test_two_tokenizers_are_compared_over_the_same_bytes():
    """Of a model for which all tokens are alike, bits per byte are what its tokens cost: fewer tokens, fewer bits."""
    found = {}
    for name, tokenizer in (("bytes", byte_tokenizer()), ("pieces", pieces())):
        hf = build("llama", vocab_size=300, tie_word_embeddings=False)
        hf.lm_head.weight.data.zero_()
        model = HookedModel(hf, tokenizer)
        found[name] = measure(model, Suite("one", (PLAIN,))).isel(prompt=0)
        prompt = model.read([PLAIN]).prompts[0]
        assert prompt.n_bytes == len(PLAIN.text.encode()) == 32
        np.testing.assert_allclose(found[name]["nll"], np.log(300), rtol=1e-6)
        expected = (prompt.n_text - 1) * np.log2(300) / 32
        np.testing.assert_allclose(found[name]["bits_per_byte"], expected, rtol=1e-6)
        np.testing.assert_allclose(found[name]["bits_per_byte_uniform"], expected, rtol=1e-6)
    assert found["pieces"]["bits_per_byte"] < 0.9 * found["bytes"]["bits_per_byte"]


@pytest.mark.parametrize(
    ("text", "first"),
    [("Bär", 2), ("熊 zwei", 2), ("🐻", 1), ("zwei Bären", 4), (" zwei", 5)],  # "BÃ" is B and half of ä
)
def test_bytes_of_an_unscored_first_token_are_left_out(text, first):
    model = HookedModel(build("llama", vocab_size=300), pieces(bos=False), bos="native")
    (prompt,) = model.read([Prompt("p", "f", text + " and more")]).prompts
    assert prompt.n_bytes == len(f"{text} and more".encode()) - first


def test_a_text_of_one_token_is_nan_with_a_reason():
    model = HookedModel(build("llama", vocab_size=300), byte_tokenizer(), bos="native")
    dataset = measure(model, Suite("two", (Prompt("a", "f", "x"), Prompt("b", "f", "xyz"))))
    assert np.isnan(dataset["nll"].sel(prompt="a"))
    assert np.isnan(dataset["bits_per_byte"].sel(prompt="a"))
    assert dataset["bits_per_byte"].sel(prompt="b") > 0
    assert "nothing predicts it" in notes(dataset, "absent")["nll"]
