"""Local folders and what loading them gives."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext, suppress

import pytest
import torch
from folders import edit_config, logits, write_lora

from xatlas import XatlasError, files, loading
from xatlas.loading import model_files
from xatlas.loading.loader import quiet_transformers
from xatlas.model import HookedModel
from xatlas.run.cost import shapes
from xatlas.testing import write_tiny_model


def test_loaded_model_is_the_saved_one(tiny):
    from transformers import LlamaForCausalLM

    parts = loading.load(loading.resolve(str(tiny)), device="cpu")
    assert type(parts.model) is LlamaForCausalLM
    assert not parts.model.training
    assert not any(p.requires_grad or p.is_inference() for p in parts.model.parameters())
    assert torch.equal(logits(parts.model), logits(LlamaForCausalLM.from_pretrained(tiny)))
    assert parts.tokenizer("ab")["input_ids"] == [64, 65]
    assert parts.model.config._attn_implementation == "sdpa"


def test_weights_can_train_although_loaded_inside_inference_mode(tiny):
    with torch.inference_mode():
        model = loading.load(loading.resolve(str(tiny)), device="cpu").model
    model.requires_grad_(True)
    model(torch.arange(5)[None]).logits.sum().backward()


def test_dtype_and_attention_are_used(tiny):
    parts = loading.load(loading.resolve(str(tiny)), device="cpu", dtype="bfloat16", attention="eager")
    assert {p.dtype for p in parts.model.parameters()} == {torch.bfloat16}
    assert parts.model.config._attn_implementation == "eager"


def test_model_without_sdpa_says_what_to_use(tiny):
    from transformers import Mamba2Config, Mamba2ForCausalLM

    sizes = {"vocab_size": 300, "hidden_size": 16, "num_heads": 4, "head_dim": 8, "state_size": 4, "n_groups": 1}
    Mamba2ForCausalLM(Mamba2Config(num_hidden_layers=1, **sizes)).save_pretrained(tiny)
    with pytest.raises(XatlasError, match="--attention eager"):
        loading.load(loading.resolve(str(tiny)), device="cpu")
    loading.load(loading.resolve(str(tiny)), device="cpu", attention="eager")


def test_the_language_model_inside_one_that_sees_is_loaded_by_its_folder(tiny):
    name = "Lfm2VlForConditionalGeneration"
    folder = write_tiny_model(tiny.with_name("sees"), name, layer_types=["conv", "full_attention"] * 2)
    for named in (str(folder), f"{folder}~untrained"):
        model = HookedModel(loading.load(loading.resolve(named), device="cpu").model, None)
        assert type(model.model).__name__ == name
        assert model.operator_types == ["conv", "attention"] * 2
        assert shapes(loading.resolve(named)).operator_types == model.operator_types


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


@pytest.mark.parametrize(
    ("asked", "cuda", "mps", "found"),
    [
        ("auto", 2, True, "cuda:0"),
        ("auto", 0, True, "mps"),
        ("auto", 0, False, "cpu"),
        ("cpu", 2, True, "cpu"),
        ("cuda", 1, False, "cuda:0"),
        ("cuda:1", 2, False, "cuda:1"),
        ("cuda", 0, False, "torch finds no CUDA device"),
        ("cuda:1", 1, False, "torch finds only cuda:0;"),
        ("cuda:2", 2, False, "torch finds only cuda:0 to cuda:1;"),
        ("mps", 1, False, "torch finds no Apple GPU"),
    ],
)
def test_a_device_is_taken_where_it_is_there_and_refused_elsewhere(monkeypatch, asked, cuda, mps, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    with pytest.raises(XatlasError, match=found) if found.startswith("torch") else nullcontext():
        assert loading.pick_device(asked) == found


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


@pytest.mark.parametrize("before", [(False, True), (True, False)])
def test_loading_leaves_transformers_and_the_hub_as_they_were(monkeypatch, before):
    from huggingface_hub import constants
    from transformers.utils import logging as messages

    def state():
        return constants.HF_HUB_OFFLINE, messages.is_progress_bar_enabled(), messages.get_verbosity()

    offline, bars = before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    had_bars, verbosity = state()[1:]
    turn = {True: messages.enable_progress_bar, False: messages.disable_progress_bar}
    turn[bars]()
    try:
        with suppress(KeyError), quiet_transformers():
            assert state() == (True, False, messages.ERROR)
            raise KeyError
        assert state() == (offline, bars, verbosity)
    finally:
        turn[had_bars]()


def test_loading_prints_nothing(tiny, capfd):
    loading.load(loading.resolve(str(tiny)), device="cpu")
    assert capfd.readouterr() == ("", "")


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
    first, times = model_files.file_sha256(big), big.stat()
    with monkeypatch.context() as patch:
        patch.setattr(files.hashlib, "file_digest", lambda *_: pytest.fail("hashed twice"))
        assert model_files.file_sha256(big) == first
    big.write_bytes(b"b" * (2 << 20))
    os.utime(big, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time of writing
    assert model_files.file_sha256(big) != first


def test_cache_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path / "file" / "below"))
    big = tmp_path / "weights"
    big.write_bytes(bytes(2 << 20))
    assert model_files.file_sha256(big) == model_files.file_sha256(big)
