"""Decoders whose MLP is a mixture of experts: ``mlp_out`` is what the whole of it adds."""

from __future__ import annotations

from dataclasses import replace

from xatlas import Adapter, HookPoint, hookimpl
from xatlas.architectures.blocks import (
    Experts,
    LatentAttention,
    Multiplied,
    PostNormAdapter,
    SlidingEverywhere,
    adapters_of,
)
from xatlas.architectures.parallel import CohereAdapter
from xatlas.contracts.adapter import HeadLayout, Part, PreNormAdapter


class AfmoeAdapter(Experts, PostNormAdapter):
    """AFMoE (Trinity): norms in front of attention and MLP and behind them; a gate on the heads; first layers dense."""

    architectures = ("AfmoeForCausalLM",)
    mlp_norm_name = "pre_mlp_layernorm"
    mlp_post_norm_name = "post_mlp_layernorm"
    router_name = "router.gate"


class Cohere2MoeAdapter(Experts, CohereAdapter):
    """Cohere 2 with experts, beside the attention."""

    architectures = ("Cohere2MoeForCausalLM",)


class DeepseekV2Adapter(Experts, LatentAttention):
    """DeepSeek V2: latent attention."""

    architectures = ("DeepseekV2ForCausalLM",)


class DeepseekV3Adapter(Experts, LatentAttention):
    """DeepSeek V3 and R1: latent attention; the first layers are dense."""

    architectures = ("DeepseekV3ForCausalLM",)


class Ernie45MoeAdapter(Experts):
    """ERNIE 4.5 with experts."""

    architectures = ("Ernie4_5_MoeForCausalLM",)


class FlexOlmoAdapter(Experts, PostNormAdapter):
    """FlexOlmo: OLMo 2 with experts."""

    architectures = ("FlexOlmoForCausalLM",)


class Glm4MoeAdapter(Experts):
    """GLM 4.5 and 4.6."""

    architectures = ("Glm4MoeForCausalLM",)


class GptOssAdapter(Experts):
    """GPT-OSS: windows in every other layer, and a sink that takes some of each query's attention."""

    architectures = ("GptOssForCausalLM",)
    supports_sdpa = False
    router_name = "router"


class GraniteMoeAdapter(Experts, Multiplied):
    """Granite with experts: what is added is multiplied, and shared experts may stand beside the routed ones."""

    architectures = ("GraniteMoeForCausalLM",)
    mlp_name = "block_sparse_moe"
    router_name = "router"


class GraniteMoeSharedAdapter(GraniteMoeAdapter):
    """Granite with shared experts beside the routed ones, in a module of their own: the MLP is the sum of both."""

    architectures = ("GraniteMoeSharedForCausalLM",)

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        """Return the shared sites; ``mlp_out`` is edited behind the shared experts, which run last."""
        points = super().hook_points(layer)
        if getattr(self.layer(layer), "shared_mlp", None) is not None:
            routed = points["mlp_out"]
            points["mlp_out"] = replace(routed, module=f"{self.layer_path(layer)}.shared_mlp", beside=(routed,))
        return points


class HunYuanMoeAdapter(Experts):
    """HunYuan V1 with experts."""

    architectures = ("HunYuanMoEV1ForCausalLM",)
    router_name = "gate.wg"
    shared_name = "shared_mlp"


class MiniMaxM2Adapter(Experts):
    """MiniMax M2."""

    architectures = ("MiniMaxM2ForCausalLM",)


class JetMoeAdapter(PreNormAdapter):
    """JetMoE: experts in place of queries and outputs of attention, too, so that heads enter no module as sites."""

    architectures = ("JetMoeForCausalLM",)
    attention_name = "self_attention"
    steps_uncounted = True

    def head_layout(self, layer: int) -> HeadLayout | None:
        """Return None: what attends with whose queries differs from token to token."""
        return None

    def output_projection(self, layer: int) -> str | None:
        """Return None: each expert has its own."""
        return None

    def roles(self, layer: int) -> dict[str, str | Part]:
        """Return the modules that are linear: of keys and values, and both routers."""
        path = self.operator_path(layer)
        width = self.outputs(f"{path}.kv_proj") // 2
        return {
            "attention.k": Part(f"{path}.kv_proj", 0, width),
            "attention.v": Part(f"{path}.kv_proj", width, 2 * width),
            "attention.router": f"{path}.experts.router.layer",
            "mlp.router": f"{self.layer_path(layer)}.{self.mlp_name}.router.layer",
        }


class MixtralAdapter(Experts, SlidingEverywhere):
    """Mixtral."""

    architectures = ("MixtralForCausalLM",)


class OlmoeAdapter(Experts):
    """OLMoE."""

    architectures = ("OlmoeForCausalLM",)


class PhimoeAdapter(Experts, SlidingEverywhere):
    """Phi-3.5-MoE."""

    architectures = ("PhimoeForCausalLM",)
    router_name = "router"


class Qwen2MoeAdapter(Experts):
    """Qwen1.5 and Qwen2 with experts, one of which every token goes through."""

    architectures = ("Qwen2MoeForCausalLM",)
    shared_name = "shared_expert"


class Qwen3MoeAdapter(Experts, SlidingEverywhere):
    """Qwen3 with experts."""

    architectures = ("Qwen3MoeForCausalLM",)


class SolarOpenAdapter(Experts):
    """Solar Open."""

    architectures = ("SolarOpenForCausalLM",)


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the adapters above."""
    return adapters_of(globals())
