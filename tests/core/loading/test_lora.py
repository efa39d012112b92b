"""LoRA weights: merged as peft computes them, or refused."""

from __future__ import annotations

import pytest
import torch
from folders import edit_config, logits, write_lora
from safetensors.torch import load_file, save_file

from xatlas import XatlasError, loading


def test_pickled_lora_is_refused(tiny):
    folder = tiny.parent / "lora"
    write_lora(folder, tiny)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(XatlasError, match="only pickles, which are never loaded"):
        loading.resolve(f"{tiny}+{folder}")


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
