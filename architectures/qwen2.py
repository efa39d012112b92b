"""Qwen2 and Qwen2.5: Llama's block with biases on queries, keys and values."""

from __future__ import annotations

from xatlas import Adapter, hookimpl
from xatlas.architectures.pre_tokenizers import PRE_TOKENIZERS
from xatlas.contracts.adapter import GgufLayout, PreNormAdapter


class Qwen2Adapter(PreNormAdapter):
    """Qwen2: the same places as Llama; only the projections' biases differ."""

    architectures = ("Qwen2ForCausalLM",)
    gguf = GgufLayout("qwen2", "qwen2", PRE_TOKENIZERS)


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the Qwen2 adapter."""
    return [Qwen2Adapter]
