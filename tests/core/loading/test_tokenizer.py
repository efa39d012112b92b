"""The tokenizer of a folder is the one in its tokenizer.json, whatever class transformers builds around it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from xatlas.architectures import minis
from xatlas.loading.loader import as_stored, load
from xatlas.loading.model_names import resolve

MINI = Path(minis.__file__).parent / "smollm2-mini"
TEXTS = (
    "Hello  world, it's 12345 o'clock\n\n\tend.",
    "u\u0308ber e\u0301 ﬁ 　wide 🙂🙂 \u2028 क्षि",
    " lead <|begin|>in<|end|> x=3.14;  return\r\n",
    "<|endoftext|><s>",
)
CLASSES = [
    ("Qwen2Tokenizer", "qwen2"),
    ("PreTrainedTokenizerFast", "qwen2"),
    ("LlamaTokenizer", "llama"),
    ("LlamaTokenizerFast", "llama"),
    ("GPT2Tokenizer", "gpt2"),
    ("GPTNeoXTokenizer", "gpt_neox"),
    ("GemmaTokenizer", "gemma2"),
    (None, "qwen2"),
]


def folder(path, tokenizer_class, model_type, **settings):
    """Copy a miniature's tokenizer as a model of another type would hold it."""
    shutil.copy(MINI / "tokenizer.json", path)
    config = json.loads((MINI / "tokenizer_config.json").read_text()) | settings
    config.pop("tokenizer_class")
    (path / "tokenizer_config.json").write_text(
        json.dumps(config | ({"tokenizer_class": tokenizer_class} if tokenizer_class else {}))
    )
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return path


def loaded(path):
    return as_stored(AutoTokenizer.from_pretrained(path, local_files_only=True), path / "tokenizer.json")


@pytest.mark.parametrize(("tokenizer_class", "model_type"), CLASSES)
def test_tokens_and_their_places_are_those_of_the_file(tmp_path, tokenizer_class, model_type):
    found = loaded(folder(tmp_path, tokenizer_class, model_type, chat_template="{{ messages[0].content }}!"))
    own = Tokenizer.from_file(str(MINI / "tokenizer.json"))
    for text in TEXTS:
        for special in (True, False):
            ours = found(text, add_special_tokens=special, return_offsets_mapping=True)
            wanted = own.encode(text, add_special_tokens=special)
            assert (ours["input_ids"], ours["offset_mapping"]) == (wanted.ids, wanted.offsets)
        assert found.decode(own.encode(text, add_special_tokens=False).ids) == own.decode(
            own.encode(text, add_special_tokens=False).ids, skip_special_tokens=False
        )
    assert (found.bos_token_id, found.eos_token_id, len(found)) == (0, 1, own.get_vocab_size())
    assert found.chat_template == "{{ messages[0].content }}!"


def test_another_tokenizer_is_said_in_one_line(tmp_path, caplog):
    loaded(folder(tmp_path, "Qwen2Tokenizer", "qwen2"))
    (line,) = caplog.messages
    assert "builds Qwen2Tokenizer with another normalizer, pre-tokenizer and added tokens than" in line


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("normalizer", {"type": "Lowercase"}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("model", {"dropout": 0.1}),
        ("added_tokens", {"normalized": True}),
        ("post_processor", None),  # as some classes leave out the token at position 0 that a file puts there
        ("decoder", None),
    ],
)
def test_a_tokenizer_that_differs_in_one_part_alone_is_not_taken_for_the_files(tmp_path, caplog, part, other):
    stored = json.loads((MINI / "tokenizer.json").read_text())
    changed = copy.deepcopy(stored)
    if part == "model":
        changed[part] |= other
    elif part == "added_tokens":
        changed[part][0] |= other
    else:
        changed[part] = other
    assert changed != stored
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(changed)))
    found = as_stored(made, MINI / "tokenizer.json")
    assert json.loads(found.backend_tokenizer.to_str())[part] == stored[part]
    (line,) = caplog.messages
    assert f"another {part.replace('added_', 'added ').replace('_', '-')} than" in line


@pytest.mark.parametrize("made", [Qwen2Tokenizer, GPT2Tokenizer])
def test_a_tokenizer_that_transformers_builds_as_stored_is_left_alone(tmp_path, caplog, made):
    pieces = json.loads((MINI / "tokenizer.json").read_text())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in pieces["merges"]]
    made(vocab=pieces["vocab"], merges=merges).save_pretrained(tmp_path)
    found = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert as_stored(found, tmp_path / "tokenizer.json") is found
    assert not caplog.messages


def test_truncation_and_padding_in_the_file_do_not_cut_texts(tmp_path):
    stored = json.loads((folder(tmp_path, "Qwen2Tokenizer", "qwen2") / "tokenizer.json").read_text())
    stored["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    assert len(loaded(tmp_path)(TEXTS[0])["input_ids"]) > 10


def test_without_the_file_what_transformers_builds_is_used(tmp_path):
    pieces = json.loads((MINI / "tokenizer.json").read_text())["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in pieces["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(pieces["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    found = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert as_stored(found, None) is found


def test_a_model_is_read_with_the_tokenizer_of_its_file(tmp_path):
    shutil.copytree(MINI.with_name("qwen-mini"), tmp_path / "model")
    folder(tmp_path / "model", "Qwen2Tokenizer", "qwen2")
    shutil.copy(MINI.with_name("qwen-mini") / "config.json", tmp_path / "model")
    found = load(resolve(str(tmp_path / "model")), device="cpu").tokenizer
    assert found(TEXTS[0]).input_ids == Tokenizer.from_file(str(MINI / "tokenizer.json")).encode(TEXTS[0]).ids
