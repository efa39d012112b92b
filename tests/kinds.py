"""A tiny model of every kind of block and of logits, under the name of what is special in it."""

from __future__ import annotations

from functools import cache

from xatlas import manager
from xatlas.model import HookedModel
from xatlas.testing import byte_tokenizer, tiny_hf_model, tiny_model

NAMES = {
    "Lfm2ForCausalLM": "Lfm2ForCausalLM",
    "LlamaForCausalLM": "LlamaForCausalLM",
    "post-norm": "Olmo2ForCausalLM",
    "parallel, LayerNorm with bias": "GPTNeoXForCausalLM",
    "soft cap": "Gemma2ForCausalLM",
    "multiplied logits": "CohereForCausalLM",
}
KINDS = (*NAMES, "in sequence, LayerNorm with bias")


@cache
def kind(name: str) -> HookedModel:
    """Return the model; tests leave its weights alone."""
    if name in NAMES:
        return tiny_model(manager.adapters()[NAMES[name]])
    return HookedModel(tiny_hf_model("GPTNeoXForCausalLM", use_parallel_residual=False), byte_tokenizer())
