"""Llama-like decoders: SmolLM2 and everything else that loads as LlamaForCausalLM."""

from __future__ import annotations

from xatlas import Adapter, hookimpl
from xatlas.adapter import PreNormAdapter


class LlamaAdapter(PreNormAdapter):
    """Llama: pre-norm attention and gated MLP in every layer."""

    architectures = ("LlamaForCausalLM",)


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the Llama adapter."""
    return [LlamaAdapter]
