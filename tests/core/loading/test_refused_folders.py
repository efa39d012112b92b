"""Folders that can't be loaded, or not safely: refused, with a line that says why."""

from __future__ import annotations

import pytest
import torch
from folders import edit_config, logits

from xatlas import XatlasError, loading


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
