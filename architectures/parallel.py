"""Decoders whose attention and MLP read the same stream side by side; some checkpoints have them in sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xatlas import Adapter, hookimpl
from xatlas.architectures.blocks import FusedAttention, ParallelAdapter, adapters_of

if TYPE_CHECKING:
    import torch


class CohereAdapter(ParallelAdapter):
    """Cohere's Command R: a LayerNorm without bias, multiplied logits."""

    architectures = ("CohereForCausalLM",)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the multiplied logits."""
        return super().logits(hidden) * float(self.model.config.logit_scale)


class Cohere2Adapter(CohereAdapter):
    """Cohere's Command R7B: windows in most layers."""

    architectures = ("Cohere2ForCausalLM",)


class FalconAdapter(FusedAttention, ParallelAdapter):
    """Falcon 1 and 2: parallel or in sequence, with one key/value head, some, or one for each query head."""

    architectures = ("FalconForCausalLM",)
    layers_path = "transformer.h"
    embedding_path = "transformer.word_embeddings"
    final_norm_path = "transformer.ln_f"
    cache_argument = "layer_past"
    attention_name = "self_attention"
    out_name = "dense"
    qkv_name = "query_key_value"
    grouped = True
    mlp_roles = {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}  # noqa: RUF012 - declared ClassVar in the base
    row_arguments = ("alibi",)

    def side_by_side(self, layer: int) -> bool:
        """Say what the config says: the block asks it in every forward."""
        config = self.model.config
        return bool(config.new_decoder_architecture or config.parallel_attn)


class GptJAdapter(ParallelAdapter):
    """GPT-J."""

    architectures = ("GPTJForCausalLM",)
    supports_sdpa = False
    layers_path = "transformer.h"
    embedding_path = "transformer.wte"
    final_norm_path = "transformer.ln_f"
    cache_argument = "layer_past"
    attention_name = "attn"
    out_name = "out_proj"
    mlp_roles = {"up": "fc_in", "down": "fc_out"}  # noqa: RUF012 - declared ClassVar in the base


class GptNeoxAdapter(FusedAttention, ParallelAdapter):
    """GPT-NeoX and Pythia: parallel, or in sequence in some checkpoints."""

    architectures = ("GPTNeoXForCausalLM",)
    layers_path = "gpt_neox.layers"
    embedding_path = "gpt_neox.embed_in"
    final_norm_path = "gpt_neox.final_layer_norm"
    cache_argument = "layer_past"
    attention_name = "attention"
    out_name = "dense"
    qkv_name = "query_key_value"
    grouped = True
    d_head_name = "head_size"
    mlp_roles = {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}  # noqa: RUF012 - declared ClassVar in the base

    def side_by_side(self, layer: int) -> bool:
        """Return what the block was built as."""
        return bool(self.layer(layer).use_parallel_residual)


class PhiAdapter(ParallelAdapter):
    """Phi 1, 1.5 and 2."""

    architectures = ("PhiForCausalLM",)
    final_norm_path = "model.final_layernorm"
    out_name = "dense"
    mlp_roles = {"up": "fc1", "down": "fc2"}  # noqa: RUF012 - declared ClassVar in the base


class StableLmAdapter(ParallelAdapter):
    """StableLM: LayerNorms; parallel in some checkpoints."""

    architectures = ("StableLmForCausalLM",)

    def side_by_side(self, layer: int) -> bool:
        """Return what the block was built as."""
        return bool(self.layer(layer).use_parallel_residual)


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the adapters above."""
    return adapters_of(globals())
