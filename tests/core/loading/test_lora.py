"""LoRA weights: merged as peft computes them, or refused."""

from __future__ import annotations

import json

import pytest
import torch
from folders import edit_config, logits, write_lora
from safetensors.torch import load_file, save_file

from xatlas import XatlasError, loading
from xatlas.loading.model_files import of_tokenizer


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
    whole = tiny.parent / "whole"
    expected = write_lora(whole, tiny, modules_to_save=["lm_head"])  # replaced, not changed: unties it
    model = loading.load(loading.resolve(f"{tiny}+{whole}"), device="cpu").model
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


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


def edit_lora_config(folder, **changes: object) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))


def edit_lora(folder, edit) -> None:
    state = load_file(folder / "adapter_model.safetensors")
    edit(state)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True, "lora_alpha": 3},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6}, "alpha_pattern": {r".*down_proj": 16}},
        {"target_modules": r"model\.layers\.\d+\.(self_attn\.[qv]_proj|mlp\.up_proj)"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["lm_head", "embed_tokens"], "use_dora": True},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [3, 70]},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_kind_of_lora_computes_what_peft_computes(tiny, settings):
    lora = tiny.parent / "lora"
    expected = write_lora(lora, tiny, **settings)
    model = loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu").model
    if settings == {"init_lora_weights": "pissa"}:  # peft subtracts the initial weights again when it loads them
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        expected = logits(PeftModel.from_pretrained(base, lora).eval())
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)


def test_lora_with_a_gap_is_refused(tiny):
    """peft fills the gap with random numbers and warns."""
    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    edit_lora(lora, lambda state: [state.pop(name) for name in list(state) if "layers.1" in name and "q_proj" in name])
    with pytest.raises(XatlasError, match=r"they lack .*layers\.1\..*q_proj"):
        loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu")


@pytest.mark.parametrize("name", ["lora_A.weight", "lora_B.weight", "dense.weight"])
def test_lora_with_leftovers_is_refused(tiny, name):
    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    stray = f"base_model.model.model.layers.0.self_attn.k_proj.{name}"
    edit_lora(lora, lambda state: state.update({stray: torch.ones(4, 4)}))
    with pytest.raises(XatlasError, match=r"no module for .*k_proj"):
        loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu")


@pytest.mark.parametrize(
    "settings",
    [{"bias": "lora_only"}, {"lora_bias": True, "target_modules": ["q_proj"]}],
    ids=lambda settings: "-".join(settings),
)
def test_lora_biases_are_merged_or_missed(tiny, settings):
    edit_config(tiny, attention_bias=True)
    state = load_file(tiny / "model.safetensors")
    for name in [name for name in state if "self_attn" in name and name.endswith("_proj.weight")]:
        state[name.replace("weight", "bias")] = torch.ones(len(state[name]))
    save_file(state, tiny / "model.safetensors", metadata={"format": "pt"})
    lora = tiny.parent / "lora"
    expected = write_lora(lora, tiny, **settings)
    model = loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu").model
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    edit_lora(
        lora, lambda state: [state.pop(name) for name in list(state) if "layers.1" in name and name.endswith("bias")]
    )
    with pytest.raises(XatlasError, match=r"they lack .*layers\.1\.self_attn\.q_proj.*bias"):
        loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu")


def test_merging_that_computes_something_else_is_refused(tiny, monkeypatch):
    """Kinds of LoRA weights to come may act on more than weights; peft merges what it can."""
    from peft.tuners.lora.layer import Linear

    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    delta = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 0.5 * delta(self, name))
    with pytest.raises(XatlasError, match="cannot be merged"):
        loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu")


def test_tokens_trained_one_by_one_are_compared_whichever_they_are(tiny, monkeypatch):
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    lora = tiny.parent / "lora"
    write_lora(lora, tiny, trainable_token_indices=[70])
    monkeypatch.setattr(TrainableTokensLayer, "merge", lambda self, *args, **kwargs: None)
    with pytest.raises(XatlasError, match="cannot be merged"):
        loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu")


def test_lora_that_waits_for_tokens_is_refused(tiny):
    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    edit_lora_config(lora, alora_invocation_tokens=[5, 6])
    with pytest.raises(XatlasError, match="only after certain tokens"):
        loading.resolve(f"{tiny}+{lora}")


def test_lora_with_resized_embeddings_is_refused(tiny):
    lora = tiny.parent / "lora"
    write_lora(lora, tiny, modules_to_save=["embed_tokens", "lm_head"])
    edit_lora(
        lora, lambda state: state.update({k: torch.ones(300, v.shape[1]) for k, v in state.items() if "lora" not in k})
    )
    with pytest.raises(XatlasError, match="has 300 rows, the model"):
        loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("field", ["target_modules", "rank_pattern", "exclude_modules", "modules_to_save"])
def test_pattern_that_never_ends_is_refused(tiny, monkeypatch, field):
    from xatlas.loading import lora as module

    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    bad = r"(([a-z_.0-9]+)+)+!"
    edit_lora_config(
        lora, **{field: {bad: 4} if field == "rank_pattern" else [bad] if field == "modules_to_save" else bad}
    )
    monkeypatch.setattr(module, "_PATTERN_SECONDS", 0.5)
    with pytest.raises(XatlasError, match=r"a-z_\.0-9.* takes too long"):
        loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu")


@pytest.mark.parametrize(
    "ranks", [{f"q_proj_{i}": 4 for i in range(50_000)}, {"q" * 1_000_000: 4}], ids=["many", "long"]
)
def test_too_many_or_too_long_patterns_are_refused(tiny, ranks):
    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    edit_lora_config(lora, rank_pattern=ranks)
    with pytest.raises(XatlasError, match="too many or too long"):
        loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": 5},
        {"rank_pattern": 5},
        {"r": "four"},
        {"r": -1},
        {"lora_alpha": None},
        {"modules_to_save": 5},
        {"trainable_token_indices": 5},
        {"trainable_token_indices": {"embed_tokens": 5}},
        {"target_modules": r"(unclosed"},
        {"base_model_name_or_path": 5},
        {"peft_type": 5},
    ],
    ids=str,
)
def test_lora_settings_of_a_wrong_type_are_one_line_or_no_matter(tiny, changes):
    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    edit_lora_config(lora, **changes)
    said = []
    try:
        loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu")
    except XatlasError as error:
        said.append(str(error))
    assert all("\n" not in line and str(lora) in line for line in said)


def test_tokenizer_and_template_beside_lora_win(tiny):
    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    plain = loading.resolve(f"{tiny}+{lora}", progress=lambda line: None)
    assert not plain.chat_template
    (lora / "chat_template.jinja").write_text("LORA {{ messages[0].content }}")
    found = loading.resolve(f"{tiny}+{lora}")
    assert found.chat_template
    assert found.identity != plain.identity
    (tiny / "chat_template.jinja").write_text("BASE")
    turns = [{"role": "user", "content": "x"}]

    def rendered():
        tokenizer = loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu").tokenizer
        return tokenizer.apply_chat_template(turns, tokenize=False)

    assert rendered() == "LORA x"
    (lora / "chat_template.jinja").unlink()
    (lora / "tokenizer_config.json").write_text('{"chat_template": "SETTINGS {{ messages[0].content }}"}')
    assert rendered() == "SETTINGS x"
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(
        {"id": 500, "content": "<new>", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    )
    (lora / "tokenizer.json").write_text(json.dumps(tokenizer))
    parts = loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu")
    assert len(parts.tokenizer("<new>")["input_ids"]) == 1
    assert len(loading.load(loading.resolve(str(tiny)), device="cpu").tokenizer("<new>")["input_ids"]) > 1


OWN = ("tokenizer.json", "added_tokens.json", "chat_template.jinja", "additional_chat_templates/tools.jinja")


@pytest.mark.parametrize(
    ("beside", "replaced"),
    [
        ((), ()),
        (("README.md",), ()),
        (("added_tokens.json",), ("added_tokens.json",)),
        (("chat_template.jinja",), OWN[2:]),
        (("tokenizer_config.json",), OWN[2:]),  # it holds a template
        (("tokenizer.json",), OWN),
        (("vocab.json", "merges.txt"), OWN),
    ],
)
def test_a_whole_tokenizer_beside_lora_replaces_the_models_and_a_template_its_templates(tmp_path, beside, replaced):
    base, lora = tmp_path / "base", tmp_path / "lora"
    for folder, names in ((base, OWN), (lora, beside)):
        folder.mkdir()
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text('{"chat_template": "x"}')
    expected = {name: base / name for name in OWN if name not in replaced}
    assert of_tokenizer(base, lora) == expected | {name: lora / name for name in beside if name != "README.md"}


def test_lora_of_another_base_says_so(tiny):
    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    lines: list[str] = []
    loading.resolve(f"{tiny}+{lora}", progress=lines.append)
    edit_lora_config(lora, base_model_name_or_path="/elsewhere/models/Tiny/")
    loading.resolve(f"{tiny}+{lora}", progress=lines.append)
    assert not lines
    edit_lora_config(lora, base_model_name_or_path="someone/other-1b")
    loading.resolve(f"{tiny}+{lora}", progress=lines.append)
    assert len(lines) == 1
    assert "trained on 'someone/other-1b'" in lines[0]


def test_lora_that_is_not_finite_names_the_tensor(tiny):
    lora = tiny.parent / "lora"
    write_lora(lora, tiny)
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    edit_lora(lora, lambda state: state[name].fill_(float("inf")))
    with pytest.raises(XatlasError, match=f"{name} in {lora} is not finite"):
        loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu")
    edit_lora(lora, lambda state: state[name].fill_(1e8))
    with pytest.raises(XatlasError, match=r"down_proj\.weight .*use float32 or bfloat16"):
        loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu", dtype="float16")
    loading.load(loading.resolve(f"{tiny}+{lora}"), device="cpu", dtype="bfloat16")


def test_a_plus_sign_in_the_models_own_name_is_none_before_lora(tiny):
    write_lora(tiny.parent / "lora", tiny)
    model = tiny.rename(tiny.parent / "ti+ny")
    assert loading.resolve(f"{model}+{tiny.parent / 'lora'}").folder == model
