"""The shipped miniatures: size, tokenizer, and cards that say what the files do."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from xatlas import manager
from xatlas.architectures import minis
from xatlas.architectures.minis.card import by_family, card_text, load_shipped, solved
from xatlas.suites import Suite

CLASSES = {"lfm2-mini": "Lfm2ForCausalLM", "qwen-mini": "Qwen2ForCausalLM", "smollm2-mini": "LlamaForCausalLM"}
FOLDERS = {name: Path(source.location) for name, source in minis.xatlas_models().items()}
NAMES = tuple(FOLDERS)  # with all training seeds that are shipped
CARDS = {name: json.loads((folder / "card.json").read_text()) for name, folder in FOLDERS.items()}
STANDARD = manager.suites()["standard"].load()


@pytest.mark.parametrize("name", NAMES)
def test_the_file(name):
    """One bfloat16 safetensors file of at most 2.5 MB, the one that the card measured."""
    file = FOLDERS[name] / "model.safetensors"
    assert file.stat().st_size <= 2_500_000
    assert hashlib.sha256(file.read_bytes()).hexdigest() == CARDS[name]["weights_sha256"]
    with safe_open(file, "pt") as tensors:
        assert {tensors.get_tensor(key).dtype for key in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert not list(FOLDERS[name].glob("*.bin")) + list(FOLDERS[name].glob("*.pt"))


@pytest.mark.parametrize("name", NAMES)
def test_the_card_tells_what_the_file_does(name):
    """A quarter of the families, measured anew; one prompt of forty may flip between machines."""
    card = CARDS[name]
    model, tokenizer = load_shipped(FOLDERS[name])
    assert type(model).__name__ == card["class"] == CLASSES[name.partition(":")[0]]
    assert card["name"] == name
    assert model.num_parameters() == card["parameters"]
    families = STANDARD.families[NAMES.index(name) % 4 :: 4]
    part = Suite("part", tuple(prompt for prompt in STANDARD if prompt.family in families))
    right = solved(model, tokenizer, part)
    for family, accuracy in by_family(part, lambda prompt: right[prompt.id]).items():
        assert card["evaluation"]["families"][family]["accuracy"] == pytest.approx(accuracy, abs=0.026), family
    assert card["evaluation"]["suite_sha256"] == STANDARD.hash
    assert (FOLDERS[name] / "CARD.md").read_text() == card_text(card)


@pytest.mark.parametrize("name", CLASSES)
def test_teacher_forcing_decides_as_generation_does(name):
    model, tokenizer = load_shipped(FOLDERS[name])
    prompts = STANDARD.prompts[::40]
    right = solved(model, tokenizer, prompts)
    for prompt in prompts:
        tokens = tokenizer(prompt.text, return_tensors="pt")["input_ids"]
        length = len(tokenizer(prompt.text + prompt.target)["input_ids"]) - tokens.shape[1]
        said = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=length, do_sample=False)
        assert (tokenizer.decode(said[0, tokens.shape[1] :]) == prompt.target) == right[prompt.id], prompt.text


def test_a_controlled_comparison():
    """Same size within 5 %, same tokenizer; of one seed, same tokens in the same order; the same recipe."""
    counts = [card["parameters"] for card in CARDS.values()]
    assert max(counts) <= 1.05 * min(counts)
    assert len({(folder / "tokenizer.json").read_bytes() for folder in FOLDERS.values()}) == 1
    seeds = {}
    for name, card in CARDS.items():
        recipe = {key: value for key, value in card["training"].items() if key not in ("seed", "tokens_seen")}
        assert recipe == {key: CARDS["lfm2-mini"]["training"][key] for key in recipe}, name
        seeds.setdefault(card["training"]["seed"], set()).add(card["training"]["tokens_seen"])
    assert {seed: len(tokens) for seed, tokens in seeds.items()} == dict.fromkeys(seeds, 1)


def test_better_than_a_bag_of_tokens():
    for name, card in CARDS.items():
        rows = card["evaluation"]["families"].values()
        assert sum(row["accuracy"] for row in rows) > sum(row["bag_of_tokens"] for row in rows) + 2, name


def test_training_lacks_the_suites_wordings():
    rows = [row for card in CARDS.values() for row in card["evaluation"]["families"].values()]
    assert {row["overlap_after_masking"] for row in rows} == {0.0}


@pytest.fixture(scope="module", params=CLASSES)
def tokenizer(request):
    """As the toolkit loads it: AutoTokenizer has its own mind about the class of some model types."""
    return AutoTokenizer.from_pretrained(FOLDERS[request.param], local_files_only=True, trust_remote_code=False)


def test_digits_stand_apart(tokenizer):
    assert tokenizer.tokenize("x = 1234") == ["x", "Ġ=", "Ġ1", "2", "3", "4"]


def test_any_text_survives(tokenizer):
    text = "if é != 'ß':\n        print(\"日本\")\t# 42%"
    tokens = tokenizer(text)["input_ids"]
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text


@pytest.mark.parametrize("suite", ["standard", "train", "transfer"])
def test_text_and_target_never_share_a_token(tokenizer, suite):
    """So no prompt of the built-in suites is ever dropped; and nearly every twin has its prompt's length."""
    prompts = manager.suites()[suite].load().prompts
    unequal = 0
    for prompt in prompts:
        text = tokenizer(prompt.text)["input_ids"]
        for answer in (prompt.target, prompt.foil):
            assert tokenizer(prompt.text + answer)["input_ids"][: len(text)] == text
        unequal += len(tokenizer(prompt.corrupt_text)["input_ids"]) != len(text)
    assert unequal <= (0.4 if suite == "transfer" else 0.1) * len(prompts)  # training lacks the transfer suite's words
