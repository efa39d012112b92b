"""Qwen2 and Qwen2.5: Llama's block with biases on queries, keys and values."""

from __future__ import annotations

from xatlas import Adapter, hookimpl
from xatlas.architectures.gguf import DecoderGguf
from xatlas.contracts.adapter import PreNormAdapter


class Qwen2Adapter(PreNormAdapter):
    """Qwen2: the same places as Llama; only the projections' biases differ."""

    architectures = ("Qwen2ForCausalLM",)
    gguf = DecoderGguf("qwen2")


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the Qwen2 adapter."""
    return [Qwen2Adapter]
