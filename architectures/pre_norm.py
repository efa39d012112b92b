"""Decoders that are Llama with other names: norm, attention, norm, MLP, in every layer.

A further one is an entry of two or three lines: its class in transformers, and the names that differ from Llama's.
"""

from __future__ import annotations

from xatlas import Adapter, hookimpl
from xatlas.architectures.blocks import CappedLogits, LatentAttention, Multiplied, SlidingEverywhere, adapters_of
from xatlas.architectures.gguf import DecoderGguf
from xatlas.contracts.adapter import PreNormAdapter

_UNGATED = {"up": "up_proj", "down": "down_proj"}


class ApertusAdapter(PreNormAdapter):
    """Apertus: an MLP without a gate."""

    architectures = ("ApertusForCausalLM",)
    mlp_norm_name = "feedforward_layernorm"
    mlp_roles = _UNGATED


class ArceeAdapter(PreNormAdapter):
    """Arcee: an MLP without a gate."""

    architectures = ("ArceeForCausalLM",)
    mlp_roles = _UNGATED


class BitNetAdapter(PreNormAdapter):
    """BitNet: norms inside attention and MLP, in front of their last projections; heads are what has passed it."""

    architectures = ("BitNetForCausalLM",)


class CwmAdapter(PreNormAdapter):
    """CWM: layers with and without a window."""

    architectures = ("CwmForCausalLM",)


class Ernie45Adapter(PreNormAdapter):
    """ERNIE 4.5, dense."""

    architectures = ("Ernie4_5ForCausalLM",)


class GemmaAdapter(PreNormAdapter):
    """Gemma 1: embeddings are scaled by their module."""

    architectures = ("GemmaForCausalLM",)


class GraniteAdapter(Multiplied):
    """Granite, dense: embeddings, what is added, and logits are multiplied."""

    architectures = ("GraniteForCausalLM",)


class GraniteSwaAdapter(Multiplied):
    """Granite with windows in most layers."""

    architectures = ("GraniteSWAForCausalLM",)
    supports_sdpa = False


class HeliumAdapter(PreNormAdapter):
    """Helium."""

    architectures = ("HeliumForCausalLM",)


class HunYuanDenseAdapter(PreNormAdapter):
    """HunYuan V1, dense: norms on queries and keys."""

    architectures = ("HunYuanDenseV1ForCausalLM",)


class Jais2Adapter(PreNormAdapter):
    """Jais 2: LayerNorms, and an MLP without a gate."""

    architectures = ("Jais2ForCausalLM",)
    mlp_roles = _UNGATED


class MiniCpm3Adapter(LatentAttention, Multiplied):
    """MiniCPM 3: latent attention, and multipliers."""

    architectures = ("MiniCPM3ForCausalLM",)

    @property
    def factor(self) -> float:
        """Return what the layers took from the config."""
        return float(self.module(self.layer_path(0)).residual_scale)


class MinistralAdapter(PreNormAdapter):
    """Ministral: a window in the layers that have one."""

    architectures = ("MinistralForCausalLM",)


class Ministral3Adapter(SlidingEverywhere):
    """Ministral 3."""

    architectures = ("Ministral3ForCausalLM",)


class MistralAdapter(SlidingEverywhere):
    """Mistral."""

    architectures = ("MistralForCausalLM",)


class NanoChatAdapter(CappedLogits):
    """NanoChat: norms without weights, the final one also on the embeddings; an MLP without a gate; capped logits."""

    architectures = ("NanoChatForCausalLM",)
    mlp_roles = {"up": "fc1", "down": "fc2"}  # noqa: RUF012 - declared ClassVar in the base


class NemotronAdapter(PreNormAdapter):
    """Nemotron: LayerNorms, and an MLP without a gate."""

    architectures = ("NemotronForCausalLM",)
    mlp_roles = _UNGATED


class OlmoAdapter(PreNormAdapter):
    """OLMo 1: LayerNorms without weights."""

    architectures = ("OlmoForCausalLM",)


class Qwen3Adapter(PreNormAdapter):
    """Qwen3: norms on queries and keys."""

    architectures = ("Qwen3ForCausalLM",)
    gguf = DecoderGguf("qwen3")


class SeedOssAdapter(PreNormAdapter):
    """Seed-OSS."""

    architectures = ("SeedOssForCausalLM",)


class SmolLM3Adapter(PreNormAdapter):
    """SmolLM3: every fourth layer has no rotary embedding."""

    architectures = ("SmolLM3ForCausalLM",)


class Starcoder2Adapter(SlidingEverywhere):
    """StarCoder 2: LayerNorms, biases, and an MLP without a gate."""

    architectures = ("Starcoder2ForCausalLM",)
    mlp_roles = {"up": "c_fc", "down": "c_proj"}  # noqa: RUF012 - declared ClassVar in the base


class VaultGemmaAdapter(CappedLogits):
    """VaultGemma: Gemma 2 without the norms behind attention and MLP."""

    architectures = ("VaultGemmaForCausalLM",)
    supports_sdpa = False
    mlp_norm_name = "pre_feedforward_layernorm"


class YoutuAdapter(LatentAttention):
    """Youtu-LLM: latent attention."""

    architectures = ("YoutuForCausalLM",)


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the adapters above."""
    return adapters_of(globals())
