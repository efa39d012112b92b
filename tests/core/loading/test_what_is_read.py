"""Only hashed files are read, all that is read is hashed, and what was hashed is what lies in memory."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading

import pytest
import torch
from folders import edit_config, logits, write_lora
from safetensors.torch import load_file, save_file

from xatlas import XatlasError, files, loading
from xatlas.loading import loader, model_files

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_files_that_change_their_names_are_other_files(tmp_path):
    """A config and a generation config of the same content, the other way round, are another model."""
    (tmp_path / "a").write_text("{}")
    assert model_files.files_hash({"a": tmp_path / "a"}) != model_files.files_hash({"b": tmp_path / "a"})


def load(name: object):
    return loading.load(loading.resolve(str(name)), device="cpu")


def edit_weights(folder, edit, file="model.safetensors"):
    state = load_file(folder / file)
    edit(state)
    save_file(state, folder / file, metadata={"format": "pt"})


def test_lora_beside_the_model_is_named_or_refused(tiny, original):
    expected = write_lora(tiny, tiny)
    with pytest.raises(XatlasError, match="name it with"):  # other LoRA weights don't say what becomes of these
        loading.resolve(f"{tiny}+{shutil.copytree(tiny, tiny.with_name('other'))}")
    with pytest.raises(XatlasError, match="name it with") as caught:
        loading.resolve(str(tiny))
    found = loading.resolve(str(caught.value).split("'")[1])
    torch.testing.assert_close(logits(load(found.name).model), expected, atol=1e-5, rtol=1e-5)
    edit_weights(tiny, lambda state: [value.zero_() for value in state.values()], "adapter_model.safetensors")
    assert loading.resolve(found.name).identity != found.identity
    (tiny / "adapter_config.json").unlink()
    assert loading.resolve(str(tiny)).identity == loading.resolve(str(original)).identity


@pytest.mark.parametrize("shards", [False, True])
def test_files_that_are_opened_are_files_that_are_hashed(tiny, shards):
    """A folder full of all that transformers ever read: whatever its version opens changes the identity."""
    if shards:
        weights = (tiny / "model.safetensors").rename(tiny / "model-00001-of-00001.safetensors")
        names = dict.fromkeys(load_file(weights), weights.name)
        (tiny / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (tiny / "chat_template.jinja").write_text(TEMPLATE)
    (tiny / "additional_chat_templates").mkdir()
    (tiny / "additional_chat_templates" / "tools.jinja").write_text(TEMPLATE)
    for name in ("special_tokens_map.json", "added_tokens.json", "generation_config.json", "preprocessor_config.json"):
        (tiny / name).write_text("{}")
    opened: set[str] = set()
    links: dict[str, str] = {}

    def watch(event, arguments):
        if event == "os.symlink":
            links[os.fspath(arguments[1])] = os.fspath(arguments[0])
        elif event == "open" and isinstance(arguments[0], str | os.PathLike):
            name = os.fspath(arguments[0])
            opened.add(links.get(name, name))

    watching = True
    sys.addaudithook(lambda event, arguments: watch(event, arguments) if watching else None)
    resolved = loading.resolve(str(tiny))
    opened.clear()
    loading.load(resolved, device="cpu")
    read = {name for name in opened if name.startswith(f"{tiny}/")}
    watching = False
    assert {f"{tiny}/config.json", f"{tiny}/generation_config.json", f"{tiny}/chat_template.jinja"} <= read
    assert (f"{tiny}/model.safetensors.index.json" in read) == shards
    for name in (name for name in read if not name.endswith(".safetensors")):
        with open(name, "r+") as file:
            content = file.read()
            file.write(" ")
            file.flush()
            assert loading.resolve(str(tiny)).identity != resolved.identity, name
            file.truncate(len(content.encode()))
    assert loading.resolve(str(tiny)).identity == resolved.identity


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "../outside.safetensors", "/etc/x.safetensors", 5, "a\\b.safetensors"]
)
def test_index_names_only_safetensors_beside_it(tiny, name):
    (tiny / "model.safetensors").rename(tiny / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name, "x": "model-1.safetensors"}}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(XatlasError, match=r"index\.json names .* as weights"):
        loading.resolve(str(tiny))


def test_index_that_is_none_is_one_line(tiny):
    (tiny / "model.safetensors").unlink()
    (tiny / "model.safetensors.index.json").write_text('{"weight_map": ["model.safetensors"]}')
    with pytest.raises(XatlasError, match=r"index\.json names"):
        loading.resolve(str(tiny))


def test_weights_under_another_name_are_not_read(tiny):
    """transformers reads the file that the config names in place of the one that was hashed."""
    shutil.copy(tiny / "model.safetensors", tiny / "other.safetensors")
    edit_config(tiny, transformers_weights="other.safetensors")
    with pytest.raises(XatlasError, match=r"call it model\.safetensors"):
        loading.resolve(str(tiny))


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("what", ["model", "lora"])
def test_weights_overwritten_before_they_are_loaded_are_refused(tiny, monkeypatch, when, what):
    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    resolved = loading.resolve(f"{tiny}+{lora}")
    folder, file = (tiny, "model.safetensors") if what == "model" else (lora, "adapter_model.safetensors")

    def overwrite():
        edit_weights(folder, lambda state: [value.mul_(1.5) for value in state.values()], file)

    if when == "before":
        overwrite()
    else:
        tokenizer = loader.load_tokenizer
        monkeypatch.setattr(loader, "load_tokenizer", lambda *asked: (overwrite(), tokenizer(*asked))[1])
    with pytest.raises(XatlasError, match=f"{folder} changed"):
        loading.load(resolved, device="cpu")


def test_touched_weights_are_the_same_weights(tiny):
    resolved = loading.resolve(str(tiny))
    os.utime(tiny / "model.safetensors", ns=(0, 0))
    loading.load(resolved, device="cpu")


def test_remembered_hash_hides_no_write_within_a_clock_step(tmp_path, monkeypatch):
    """Many file systems note times in steps: two contents of one size, written at once, have equal times."""
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path / "cache"))
    exact = model_files.file_state

    def in_steps(path):
        size, mtime, ctime, inode = exact(path)
        return [size, mtime // 10_000_000 * 10_000_000, ctime // 10_000_000 * 10_000_000, inode]

    monkeypatch.setattr(model_files, "file_state", in_steps)
    monkeypatch.setattr(files.os, "fsync", lambda handle: None)  # it may take longer than a step
    big = tmp_path / "model.safetensors"
    for letter in b"abcdefghij":
        big.write_bytes(bytes([letter]) * (1 << 20))
        first = model_files.file_sha256(big)
        with big.open("r+b") as file:
            file.write(b"#")
        assert model_files.file_sha256(big) != first


@pytest.mark.parametrize("mode", ["ab", "r+b"])  # it grows, or is written over in place
def test_file_that_is_being_written_is_not_remembered(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path / "cache"))
    big = tmp_path / "model.safetensors"
    big.write_bytes(bytes(2 << 20))
    digest = files.hashlib.file_digest

    def write_meanwhile(file, name):
        found = digest(file, name)
        with big.open(mode) as more:
            more.write(b"x")
        return found

    monkeypatch.setattr(files.hashlib, "file_digest", write_meanwhile)
    with pytest.raises(XatlasError, match="is being written"):
        model_files.file_sha256(big)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_loaded_weights_do_not_follow_the_file(tiny):
    """torch maps a file whose dtype is asked for: written in place, it would change the loaded model."""
    model = load(tiny).model
    before = logits(model)
    size = (tiny / "model.safetensors").stat().st_size
    with (tiny / "model.safetensors").open("r+b") as file:
        file.seek(size // 4)
        file.write(bytes(size - size // 4))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("length", [10**12, 200, 0])
def test_broken_header_is_one_line(tiny, length):
    content = (tiny / "model.safetensors").read_bytes()
    (tiny / "model.safetensors").write_bytes(length.to_bytes(8, "little") + content[8:])
    with pytest.raises(XatlasError, match="tiny") as caught:
        load(tiny)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", ["[]", '{"a": 5}', '{"a": {"shape": ["x"]}}', '{"a": {}}', "[" * 100_000])
def test_odd_header_is_one_line(tmp_path, header):
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(XatlasError, match="no whole safetensors file"):
        model_files.tensor_shapes(file)


def test_two_threads_load_two_models(tiny):
    """transformers sets the process's default dtype while it builds a model."""
    resolved = loading.resolve(str(tiny))
    expected = {dtype: loading.load(resolved, device="cpu", dtype=dtype).model for dtype in ("float32", "bfloat16")}
    wrong: list[object] = []

    def work(dtype):
        try:
            for _ in range(5):
                model = loading.load(resolved, device="cpu", dtype=dtype).model
                pairs = zip(model.state_dict().values(), expected[dtype].state_dict().values(), strict=True)
                wrong.extend(a for a, b in pairs if a.dtype != b.dtype or not torch.equal(a, b))
        except Exception as error:  # handed to the test
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(dtype,)) for dtype in expected for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert torch.get_default_dtype() == torch.float32


def test_of_two_that_start_at_once_one_makes_what_both_use(tmp_path):
    target, made, second = tmp_path / "cache" / "kept", [], []

    def make(work):
        made.append(work)
        if not second:  # while the first makes it
            second.append(threading.Thread(target=once, daemon=True))
            second[0].start()
        (work / "folder").mkdir()
        (work / "folder" / "file").write_text(f"{len(made)}")
        return work / "folder"

    def once():
        model_files.make_once(target, (target / "file").is_file, make)

    once()
    second[0].join(60)
    assert not second[0].is_alive()
    assert (target / "file").read_text() == "1"
    assert len(made) == 1
    shutil.rmtree(target)
    target.mkdir()  # an incomplete one
    once()
    assert (target / "file").read_text() == "2"
