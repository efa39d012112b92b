"""Tiny models built from configs, in odd shapes: what every adapter is tested on."""

from __future__ import annotations

from typing import Any

import torch

from xatlas.prompts.reader import TokenPrompt
from xatlas.suites import Prompt
from xatlas.testing import tiny_hf_model

VOCABULARY = 97


_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "lfm2": "Lfm2ForCausalLM"}
_COMMON = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 3,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
_LFM2 = {
    "layer_types": ["conv", "full_attention", "conv"],
    "conv_L_cache": 3,
    "conv_bias": False,
    "block_auto_adjust_ff_dim": False,
}


def build(kind: str, seed: int = 0, **overrides: Any) -> Any:
    """Return a tiny random model of an architecture."""
    own = _LFM2 if kind == "lfm2" else {}
    return tiny_hf_model(_CLASSES[kind], seed=seed, **_COMMON | own | overrides)


#: Name → (architecture, config overrides): the shapes that adapters get wrong.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-1-layer": ("llama", {"num_hidden_layers": 1}),
    "llama-odd-heads": ("llama", {"head_dim": 12, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "llama-untied-biased": (
        "llama",
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    "lfm2": ("lfm2", {}),
    "lfm2-all-conv": ("lfm2", {"layer_types": ["conv", "conv", "conv"]}),
    "lfm2-all-attention": ("lfm2", {"layer_types": ["full_attention"] * 3}),
    "lfm2-kernel-4-biased": (
        "lfm2",
        {"conv_L_cache": 4, "conv_bias": True, "block_auto_adjust_ff_dim": True},
    ),
    "lfm2-1-layer": ("lfm2", {"num_hidden_layers": 1, "layer_types": ["conv"]}),
}


def token_prompt(
    name: str, text: int, target: int = 0, seed: int = 0, family: str = "f", subject: tuple[int, ...] = (2,)
) -> TokenPrompt:
    """Return random tokens: ``text`` of them, then a target of ``target``, read out at its last token.

    A prompt with a target has a foil that differs from it in that token.
    """
    generator = torch.Generator().manual_seed(1000 * seed + 10 * text + target)
    ids = tuple(torch.randint(3, VOCABULARY, (text + target,), generator=generator).tolist())
    prompt = Prompt(name, family, "x", target="abc" if target else None, foil="abd" if target else None)
    return TokenPrompt(
        prompt=prompt,
        ids=ids[: text + max(target - 1, 0)],
        n_text=text,
        readout=text - 1 + max(target - 1, 0),
        answer=ids[-1] if target else None,
        foil_answer=(ids[-1] + 7) % VOCABULARY if target else None,
        target_ids=ids[text:],
        subject=subject,
    )


def donor_for(prompt: TokenPrompt, seed: int = 99) -> tuple[int, ...]:
    """Return other random tokens of the prompt's length."""
    return token_prompt("donor", len(prompt.ids), seed=seed).ids
