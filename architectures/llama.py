"""Llama-like decoders: SmolLM2 and everything else that loads as LlamaForCausalLM."""

from __future__ import annotations

from xatlas import Adapter, hookimpl
from xatlas.architectures.gguf import DecoderGguf
from xatlas.contracts.adapter import PreNormAdapter


class LlamaAdapter(PreNormAdapter):
    """Llama: pre-norm attention and gated MLP in every layer."""

    architectures = ("LlamaForCausalLM",)
    gguf = DecoderGguf(
        "llama",
        interleaved=True,
        fields=lambda file: {
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        },
    )


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the Llama adapter."""
    return [LlamaAdapter]
