"""What a reader takes from a model: its beginning and end tokens, vocabulary and context."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from xatlas.model import HookedModel, make_reader
from xatlas.suites import Prompt
from xatlas.testing import tiny_hf_model

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer(**special):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


TOKENIZER = tokenizer(eos_token="<|im_end|>")
DOCUMENT, START, TURN = TOKENIZER.convert_tokens_to_ids(list(SPECIAL))


def reader(config, generation=None, tok=TOKENIZER):
    settings = {"vocab_size": len(TOKENIZER), "bos_token_id": None, "eos_token_id": None} | config
    model = tiny_hf_model("LlamaForCausalLM", **settings)
    model.generation_config = GenerationConfig(**generation or {})
    return make_reader(model, tok, "always", False)


@pytest.mark.parametrize(
    ("config", "generation"),
    [
        ({"bos_token_id": DOCUMENT, "eos_token_id": TURN}, {}),
        ({"eos_token_id": TURN}, {"bos_token_id": DOCUMENT, "eos_token_id": [TURN, DOCUMENT]}),
        ({"eos_token_id": [TURN, DOCUMENT]}, {}),
        ({"eos_token_id": TURN}, {"eos_token_id": [TURN, DOCUMENT]}),
        ({"bos_token_id": 10**6, "eos_token_id": [10**6, DOCUMENT]}, {}),
        ({}, {}),
    ],
    ids=json.dumps,
)
def test_the_end_of_document_stands_first_wherever_the_model_names_it(config, generation):
    assert reader(config, generation).first_token == DOCUMENT


def test_the_tokenizers_beginning_goes_before_the_configs():
    assert reader({"bos_token_id": DOCUMENT}, tok=tokenizer(bos_token="<|im_start|>")).first_token == START


def test_context_and_vocabulary_are_the_models():
    found = reader({"vocab_size": TURN, "bos_token_id": DOCUMENT, "max_position_embeddings": 5})
    dropped = found.suite([Prompt("a", "f", "abcd"), Prompt("b", "f", "abcde"), Prompt("c", "f", "<|im_end|>")]).dropped
    assert {name: reason[:7] for name, reason in dropped.items()} == {"b": "it has ", "c": "the mod"}
    assert reader({"max_position_embeddings": -1}).context is None


def test_how_texts_are_read_is_the_models_to_say():
    tok = tokenizer(eos_token="<|im_end|>", chat_template="{{ strftime_now('%Y') }} {{ messages[0].content }}")
    hf = tiny_hf_model("LlamaForCausalLM", vocab_size=len(tok), bos_token_id=None, eos_token_id=None)
    model = HookedModel(hf, tok, bos="native", chat_template=True, template_date="1999-12-31")
    tokens = tok.convert_ids_to_tokens(model.tokens("ab")[0].tolist())
    assert "".join(tokens) == "1999Ġab"
