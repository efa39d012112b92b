"""Untrained twins: random weights by a model's own config and tokenizer, whatever way the model is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from folders import edit_config, logits, write_lora
from gguf_writer import write_gguf
from transformers import AutoConfig, AutoModelForCausalLM

from xatlas import ModelSource, XatlasError, api, manager
from xatlas.loading import load, resolve
from xatlas.loading.model_names import _split_untrained


def weights(name: str, **options: str) -> dict[str, torch.Tensor]:
    return load(resolve(name), device="cpu", **options).model.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mini", ["lfm2-mini", "qwen-mini", "smollm2-mini"])
def test_weights_are_the_librarys_own_by_seed_alone(mini):
    trained = resolve(mini)
    torch.manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = AutoConfig.from_pretrained(trained.folder)
        expected = AutoModelForCausalLM.from_config(config, dtype=torch.float32).state_dict()
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    found = weights(f"{mini}~untrained:1")
    assert torch.equal(torch.get_rng_state(), before)
    assert same(found, expected)
    torch.rand(5)
    torch.set_num_threads(threads % 2 + 1)
    try:
        assert same(weights(f"{mini}~untrained:1"), expected)
    finally:
        torch.set_num_threads(threads)
    assert not same(weights(f"{mini}~untrained"), expected)
    rounded = weights(f"{mini}~untrained:1", dtype="bfloat16")
    assert all(value.dtype == torch.bfloat16 for value in rounded.values())
    assert same(rounded, {name: value.bfloat16() for name, value in expected.items()})


def test_weights_in_another_dtype_are_those_of_float32_rounded_whatever_their_number(tiny):
    """Drawn in that dtype, a tensor's last numbers are others where 16 doesn't divide how many there are."""
    (tiny / "model.safetensors").unlink()
    edit_config(tiny, hidden_size=20, head_dim=10, num_attention_heads=2, num_key_value_heads=1, intermediate_size=30)
    exact, rounded = weights(f"{tiny}~untrained"), weights(f"{tiny}~untrained", dtype="bfloat16")
    assert same(rounded, {name: value.bfloat16() for name, value in exact.items()})


def test_an_untrained_model_is_proved_and_reads_text_as_its_model_does():
    trained, untrained = api.load("lfm2-mini", device="cpu"), api.load("lfm2-mini~untrained:2", device="cpu")
    assert (untrained.slug, untrained.n_layers) == ("lfm2-mini~untrained-2", trained.n_layers)
    embedding = untrained.model.get_input_embeddings().weight
    assert untrained.model.get_output_embeddings().weight is embedding, "the config ties them"
    assert torch.equal(untrained.tokens("three and four"), trained.tokens("three and four"))
    own, theirs = untrained.model.generation_config, trained.model.generation_config
    assert (own.eos_token_id, own.pad_token_id) == (theirs.eos_token_id, theirs.pad_token_id)


def test_an_untrained_model_ends_where_its_model_does(tiny):
    """An instruct model's turn ends are named in a file of their own."""
    (tiny / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert load(resolve(f"{tiny}~untrained"), device="cpu").model.generation_config.eos_token_id == [7, 9]


def test_a_folder_needs_no_weights_and_none_are_read(tiny):
    model, whole = resolve(str(tiny)), resolve(f"{tiny}~untrained")
    assert whole.slug == f"{model.slug}~untrained-0"
    (tiny / "model.safetensors").write_bytes(b"no weights")
    damaged = resolve(f"{tiny}~untrained")
    (tiny / "model.safetensors").unlink()
    bare = resolve(f"{tiny}~untrained")
    assert whole.identity == damaged.identity == bare.identity != resolve(f"{tiny}~untrained:1").identity
    assert logits(load(bare, device="cpu").model).isfinite().all()
    edit_config(tiny, initializer_range=0.5)
    assert resolve(f"{tiny}~untrained").identity != bare.identity
    with pytest.raises(XatlasError, match="changed since its files were hashed"):
        load(bare, device="cpu")


def test_another_version_of_the_library_makes_another_model(tiny, monkeypatch):
    from xatlas.loading import model_names

    twin = resolve(f"{tiny}~untrained")
    identity = twin.identity
    monkeypatch.setattr(model_names, "version", lambda package: "99.1+cpu" if package == "torch" else "5.0")
    assert identity != twin.identity
    assert "torch 99.1" in twin.identity
    assert "cpu" not in twin.identity, "the build of a version draws the same numbers"


def test_the_twin_of_a_quantised_folder_is_not_quantised(tiny):
    (tiny / "model.safetensors").unlink()
    edit_config(tiny, quantization_config={"quant_method": "gptq", "bits": 4})
    made = load(resolve(f"{tiny}~untrained"), device="cpu", dtype="bfloat16").model
    assert {value.dtype for value in made.parameters()} == {torch.bfloat16}


def test_of_a_gguf_file_the_header_is_enough(tiny, tmp_path):
    hf = AutoModelForCausalLM.from_pretrained(tiny)
    path = write_gguf(tmp_path / "tiny.gguf", hf)
    lines: list[str] = []
    header = resolve(f"{path}~untrained:1", progress=lines.append)
    assert not list(header.folder.glob("*.safetensors"))
    assert lines == []
    made = load(header, device="cpu").model.state_dict()
    trained = resolve(str(path), progress=lines.append)
    whole = resolve(f"{path}~untrained:1")
    assert header.slug == whole.slug == f"{trained.slug}~untrained-1"
    assert header.identity == whole.identity != trained.identity
    assert (trained.quantised, whole.quantised) == ("as in tiny.gguf", None)
    assert same(load(whole, device="cpu").model.state_dict(), made)


def test_lora_weights_need_a_trained_model(tiny, tmp_path):
    write_lora(tmp_path / "lora", tiny)
    for name in (f"{tiny}+{tmp_path / 'lora'}~untrained:1", f"{tiny}~untrained:1+{tmp_path / 'lora'}"):
        with pytest.raises(XatlasError, match="LoRA weights come of training") as caught:
            resolve(name)
        assert f"ask for '{tiny}~untrained:1'" in str(caught.value)


def test_a_tilde_in_a_path_is_part_of_it(tiny, tmp_path):
    for name in ("RUNNER~1", "tiny~untrained", "copy~"):
        place = Path(shutil.copytree(tiny, tmp_path / name))
        assert resolve(str(place)).untrained is None
        assert resolve(f"{place}~untrained").untrained == 0
    assert _split_untrained("~/models/tiny") == ("~/models/tiny", None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("qwen-mini~untrain", r"did you mean 'qwen-mini~untrained'\?"),
        ("./here~Untrained", r"did you mean './here~untrained'\?"),
        ("qwen-mini~", r"behind '~' stands untrained or untrained:SEED"),
        ("qwen-mini~untrained:", r"did you mean 'qwen-mini~untrained:0'\?"),
        ("qwen-mini~untrained:-1", r"did you mean 'qwen-mini~untrained:0'\?"),
        ("/no/such/folder~", "no model folder or GGUF file"),
        (r"C:\Users\RUNNER~1", "no model folder or GGUF file"),
        ("nothing/here/at/all~untrained", "no model folder or GGUF file at 'nothing/here/at/all'"),
    ],
)
def test_what_is_no_untrained_model_is_told_in_a_line(name, words):
    with pytest.raises(XatlasError, match=words) as caught:
        resolve(name, fetch="nothing")
    assert "\n" not in str(caught.value)


@pytest.fixture
def seeds(tiny, tmp_path, monkeypatch):
    """Aliases of one network trained from three seeds."""
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    generation = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(json.dumps(generation | {"max_length": 9}))
    places = {"net": tiny, "net:1": other, "net:10": other, "alone": tiny}
    known = {alias: ModelSource(alias, str(place), "folder", "a test") for alias, place in places.items()}
    monkeypatch.setattr(manager, "models", lambda: known)


def test_training_seeds_are_models_of_their_own(seeds):
    assert [resolve(name).slug for name in ("net", "net:0", "net:1", "net:10")] == ["net", "net", "net~1", "net~10"]
    assert resolve("net:1").identity == resolve("net:10").identity != resolve("net").identity
    assert replace(resolve("net:10~untrained:4"), name="net~untrained:4") == resolve("net~untrained:4")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("net:2", r"'net' has no training seed '2': only 0, 1, 10\."),
        ("net:01", r"'net' has no training seed '01'"),
        ("net:2~untrained", r"'net' has no training seed '2'"),
        ("net:", r"'net' has no training seed ''"),
        ("alone:0", "'alone' has no training seed '0': it was trained once; ask for 'alone' alone"),
        ("alone:1", "'alone' has no training seed '1': it was trained once; ask for 'alone' alone"),
        ("net:1@main", "'net:1' has no revisions"),
        (r"C:\net:1", "no model folder or GGUF file"),
        ("C:/net", "no alias, path or hub id"),
        ("owner/net:1", "no alias, path or hub id"),
    ],
)
def test_a_colon_that_names_no_training_seed(seeds, name, words):
    with pytest.raises(XatlasError, match=words):
        resolve(name, fetch="nothing")
