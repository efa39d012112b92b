"""Decoders whose projections are fused, or whose MLP is no module of its own: GPT-2, Phi-3, BLOOM, OPT and others."""

from __future__ import annotations

from xatlas import Adapter, HookPoint, hookimpl
from xatlas.architectures.blocks import FusedAttention, FusedGate, Roles, SlidingEverywhere, adapters_of
from xatlas.contracts.adapter import PreNormAdapter


class BareMlp(PreNormAdapter):
    """Two linear modules of the layer are its MLP: what the second returns is added."""

    mlp_norm_name = "final_layer_norm"
    out_name = "out_proj"
    flat = False  # whether they take batch and position in one dimension

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        """Return the shared sites."""
        block = self.layer_path(layer)
        return super().hook_points(layer) | {
            "mlp_out": HookPoint(f"{block}.fc2", "output", flat=self.flat),
            "resid_mid": HookPoint(f"{block}.{self.mlp_norm_name}", "input", edit_as="operator_out", flat=self.flat),
        }

    def roles(self, layer: int) -> Roles:
        """Return the shared roles."""
        block = self.layer_path(layer)
        mlp: Roles = {"mlp.up": f"{block}.fc1", "mlp.down": f"{block}.fc2"}
        return {role: at for role, at in super().roles(layer).items() if not role.startswith("mlp.")} | mlp


class AddsItself(PreNormAdapter):
    """Attention or MLP take the stream too and return it with what they add, which is what a module inside returns."""

    #: Paths inside a layer of the modules that return what is added.
    added: tuple[str, str]

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        """Return the shared sites."""
        operator, mlp = (HookPoint(f"{self.layer_path(layer)}.{name}", "output") for name in self.added)
        return super().hook_points(layer) | {"operator_out": operator, "mlp_out": mlp}


class BioGptAdapter(BareMlp):
    """BioGPT."""

    architectures = ("BioGptForCausalLM",)
    layers_path = "biogpt.layers"
    embedding_path = "biogpt.embed_tokens"
    final_norm_path = "biogpt.layer_norm"
    unembedding_path = "output_projection"


class BloomAdapter(AddsItself, FusedAttention):
    """BLOOM: ALiBi, a row of it for each head of each prompt."""

    architectures = ("BloomForCausalLM",)
    supports_sdpa = False
    layers_path = "transformer.h"
    embedding_path = "transformer.word_embeddings"
    final_norm_path = "transformer.ln_f"
    cache_argument = "layer_past"
    row_arguments = ("alibi",)
    attention_name = "self_attention"
    out_name = "dense"
    qkv_name = "query_key_value"
    grouped = True
    added = ("self_attention.dense", "mlp.dense_4h_to_h")
    mlp_roles = {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}  # noqa: RUF012 - declared ClassVar in the base


class GlmAdapter(FusedGate):
    """GLM 4 in its first form: one projection for gate and up."""

    architectures = ("GlmForCausalLM",)


class Gpt2Adapter(FusedAttention):
    """GPT-2, whose linear modules are transposed."""

    architectures = ("GPT2LMHeadModel",)
    layers_path = "transformer.h"
    embedding_path = "transformer.wte"
    final_norm_path = "transformer.ln_f"
    attention_name = "attn"
    mlp_norm_name = "ln_2"
    out_name = "c_proj"
    qkv_name = "c_attn"
    mlp_roles = {"up": "c_fc", "down": "c_proj"}  # noqa: RUF012 - declared ClassVar in the base


class GptBigCodeAdapter(Gpt2Adapter):
    """GPT-BigCode (SantaCoder, StarCoder 1): one key/value head, or one for each query head."""

    architectures = ("GPTBigCodeForCausalLM",)
    cache_argument = "layer_past"
    grouped = True


class GptNeoAdapter(PreNormAdapter):
    """GPT-Neo: scores are not scaled; every other layer attends in a window."""

    architectures = ("GPTNeoForCausalLM",)
    supports_sdpa = False
    layers_path = "transformer.h"
    embedding_path = "transformer.wte"
    final_norm_path = "transformer.ln_f"
    cache_argument = "layer_past"
    attention_name = "attn.attention"
    mlp_norm_name = "ln_2"
    out_name = "out_proj"
    mlp_roles = {"up": "c_fc", "down": "c_proj"}  # noqa: RUF012 - declared ClassVar in the base

    def window(self, layer: int) -> int | None:
        """Return the config's window in layers that attend locally."""
        local = self.module(self.operator_path(layer)).attention_type == "local"
        return int(self.model.config.window_size) if local else None


class MptAdapter(AddsItself, FusedAttention):
    """MPT: ALiBi, norms without bias."""

    architectures = ("MptForCausalLM",)
    supports_sdpa = False
    layers_path = "transformer.blocks"
    embedding_path = "transformer.wte"
    final_norm_path = "transformer.norm_f"
    cache_argument = "layer_past"
    attention_name = "attn"
    mlp_name = "ffn"
    mlp_norm_name = "norm_2"
    out_name = "out_proj"
    qkv_name = "Wqkv"
    added = ("attn", "ffn.down_proj")
    mlp_roles = {"up": "up_proj", "down": "down_proj"}  # noqa: RUF012 - declared ClassVar in the base


class OptAdapter(BareMlp):
    """OPT with its norms in front; the MLP takes batch and position in one dimension."""

    architectures = ("OPTForCausalLM",)
    layers_path = "model.decoder.layers"
    embedding_path = "model.decoder.embed_tokens"
    final_norm_path = "model.decoder.final_layer_norm"
    flat = True


class PersimmonAdapter(FusedAttention):
    """Persimmon: norms on queries and keys."""

    architectures = ("PersimmonForCausalLM",)
    final_norm_path = "model.final_layernorm"
    out_name = "dense"
    qkv_name = "query_key_value"
    grouped = True
    mlp_roles = {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}  # noqa: RUF012 - declared ClassVar in the base


class Phi3Adapter(FusedGate, FusedAttention, SlidingEverywhere):
    """Phi-3, Phi-3.5 and Phi-4 without experts."""

    architectures = ("Phi3ForCausalLM",)
    qkv_name = "qkv_proj"


class XglmAdapter(BareMlp):
    """XGLM: its attention wants a mask for each row."""

    architectures = ("XGLMForCausalLM",)
    supports_sdpa = False
    final_norm_path = "model.layer_norm"
    row_arguments = ("attention_mask",)


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the adapters above."""
    return adapters_of(globals())
