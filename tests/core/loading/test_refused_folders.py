"""Folders that can't be loaded, or not safely: refused, with a line that says why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from folders import edit_config, logits
from safetensors.torch import load_file, save_file

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
        ({"quantization_config": 5}, "quantised with an unnamed method"),
        *(({"architectures": value}, "names no model class") for value in (5, [5], "Llama", {"a": 1}, [])),
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


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": "three"},
        {"num_attention_heads": [4]},
        {"hidden_size": None},
        {"vocab_size": -1},
        {"text_config": 5},
        {"model_type": 5},
        {"rope_parameters": 5},
        {"dtype": 5},
        {"generation_config": 5},
        {"max_position_embeddings": "64"},
        {"id2label": 7},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_config_fields_of_a_wrong_type_are_one_line_or_no_matter(tiny, changes):
    from xatlas.run.cost import outline

    edit_config(tiny, **changes)
    said = []
    try:
        found = loading.resolve(str(tiny))
        outline(found)
        loading.load(found, device="cpu")
    except XatlasError as error:
        said.append(str(error))
    assert all("\n" not in line and str(tiny) in line for line in said)


@pytest.mark.parametrize("content", ["[" * 100_000, "\ufeff{}", '{"a": ' + "9" * 5000 + "}", "[1]", "\x00", ""])
def test_config_that_is_no_object_is_one_line(tiny, content):
    (tiny / "config.json").write_text(content)
    with pytest.raises(XatlasError, match=r"config\.json") as caught:
        loading.resolve(str(tiny))
    assert "\n" not in str(caught.value)


def edit_weights(folder, edit):
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.down_proj.bias",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.0.mlp.experts.7.w1.weight",
        "model.layers.0.conv.conv.bias",
        "vision.layers.0.weight",
        "lm_head.bias",
    ],
)
def test_weights_that_nothing_reads_are_refused(tiny, name):
    edit_weights(tiny, lambda state: state.update({name: torch.ones(8)}))
    with pytest.raises(XatlasError, match=f"nothing reads {name}"):
        loading.load(loading.resolve(str(tiny)), device="cpu")


def test_layers_beyond_the_last_get_one_line(tiny):
    expected = load_file(tiny / "model.safetensors")
    edit_config(tiny, num_hidden_layers=1, layer_types=None)
    lines: list[str] = []
    model = loading.load(loading.resolve(str(tiny)), device="cpu", progress=lines.append).model
    assert len(lines) == 1
    assert "model.layers.1." in lines[0]
    assert torch.equal(model.model.norm.weight, expected["model.norm.weight"])


def test_stored_masks_and_frequencies_are_harmless(tiny):
    frequencies = loading.load(loading.resolve(str(tiny)), device="cpu").model.model.rotary_emb.inv_freq
    old = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": frequencies.bfloat16(),
        "model.layers.0.attn.bias": torch.ones(1, 1, 16, 16).tril(),
        "model.layers.0.attn.masked_bias": torch.tensor(-1e9),
    }
    edit_weights(tiny, lambda state: state.update(old))
    loading.load(loading.resolve(str(tiny)), device="cpu")
    for other in (frequencies**0.9, frequencies[:-1].clone()):  # another base; fewer dimensions that turn
        edit_weights(tiny, lambda state, other=other: state.update({next(iter(old)): other}))
        with pytest.raises(XatlasError, match=r"inv_freq .* correct the rotary settings"):
            loading.load(loading.resolve(str(tiny)), device="cpu")


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, "float32"), (np.nan, "float16"), (np.inf, "float32"), (-np.inf, "bfloat16")]
)
def test_weights_that_are_not_finite_are_named(tiny, value, dtype):
    name = "model.layers.1.mlp.down_proj.weight"
    edit_weights(tiny, lambda state: state[name][0, 0].fill_(value))
    with pytest.raises(XatlasError, match=f"{name} .*not finite"):
        loading.load(loading.resolve(str(tiny)), device="cpu", dtype=dtype)


def test_weights_beyond_float16_say_what_to_use(tiny):
    name = "model.layers.1.mlp.down_proj.weight"
    edit_weights(tiny, lambda state: state[name][0, 0].fill_(1e6))
    with pytest.raises(XatlasError, match=f"{name} .*use float32 or bfloat16"):
        loading.load(loading.resolve(str(tiny)), device="cpu", dtype="float16")
    loading.load(loading.resolve(str(tiny)), device="cpu", dtype="bfloat16")
