"""Decoders with norms behind attention and MLP, in front of the stream: OLMo 2, Gemma 2 and their like."""

from __future__ import annotations

from xatlas import Adapter, hookimpl
from xatlas.architectures.blocks import CappedLogits, FusedGate, Multiplied, PostNormAdapter, adapters_of


class Exaone4Adapter(PostNormAdapter):
    """EXAONE 4: norms behind attention and MLP only; most layers attend in a window."""

    architectures = ("Exaone4ForCausalLM",)

    def window(self, layer: int) -> int | None:
        """Return the window of layers that slide: every attention module holds it."""
        slides = self.module(self.operator_path(layer)).is_sliding
        return super().window(layer) if slides else None


class Gemma2Adapter(CappedLogits, PostNormAdapter):
    """Gemma 2: norms in front of attention and MLP and behind them; capped logits."""

    architectures = ("Gemma2ForCausalLM",)
    supports_sdpa = False
    mlp_norm_name = "pre_feedforward_layernorm"


class Gemma3Adapter(CappedLogits, PostNormAdapter):
    """Gemma 3, its text model: as Gemma 2, with norms on queries and keys."""

    architectures = ("Gemma3ForCausalLM",)
    mlp_norm_name = "pre_feedforward_layernorm"


class Gemma3VlAdapter(PostNormAdapter):
    """The language model in Gemma 3's checkpoints that see, on text alone; its logits have no cap."""

    architectures = ("Gemma3ForConditionalGeneration",)
    layers_path = "model.language_model.layers"
    embedding_path = "model.language_model.embed_tokens"
    final_norm_path = "model.language_model.norm"
    mlp_norm_name = "pre_feedforward_layernorm"


class Glm4Adapter(FusedGate, PostNormAdapter):
    """GLM 4: norms in front of attention and MLP and behind them; one projection for gate and up."""

    architectures = ("Glm4ForCausalLM",)
    mlp_norm_name = "post_attention_layernorm"
    operator_post_norm_name = "post_self_attn_layernorm"
    mlp_post_norm_name = "post_mlp_layernorm"


class HyperClovaXAdapter(Multiplied, PostNormAdapter):
    """HyperCLOVA X: Granite's multipliers, and norms behind attention and MLP in some checkpoints."""

    architectures = ("HyperCLOVAXForCausalLM",)
    mlp_norm_name = "post_attention_layernorm"
    operator_post_norm_name = "post_norm1"
    mlp_post_norm_name = "post_norm2"

    @property
    def logits_factor(self) -> float:
        """Return the config's factor as it is."""
        return float(self.model.config.logits_scaling)


class Olmo2Adapter(PostNormAdapter):
    """OLMo 2: norms behind attention and MLP only."""

    architectures = ("Olmo2ForCausalLM",)


class Olmo3Adapter(PostNormAdapter):
    """OLMo 3: as OLMo 2, with windows in most layers."""

    architectures = ("Olmo3ForCausalLM",)


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the adapters above."""
    return adapters_of(globals())
