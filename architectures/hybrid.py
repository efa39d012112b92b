"""Hybrids: layers that attend, and layers that mix tokens by a state space, a linear attention or a recurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xatlas import Adapter, HookPoint, hookimpl
from xatlas.architectures.state_space import MixerAdapter, WithoutMlp
from xatlas.contracts.adapter import HeadLayout, Heads, Part, Pattern, PreNormAdapter, Scaled

if TYPE_CHECKING:
    import torch

_SSM_HEADS = ("num_heads", "n_groups", "head_dim")
#: Names of an MLP, and of a mixture of experts in its place.
_MLP = PreNormAdapter.mlp_roles
_SHARED = {f"shared_{role}": f"shared_expert.{name}" for role, name in _MLP.items()}
_KIMI = {f"shared_{role}": f"shared_experts.{name}" for role, name in _MLP.items()}


class JambaAdapter(MixerAdapter):
    """Jamba: Mamba or attention, then an MLP or experts."""

    architectures = ("JambaForCausalLM",)
    final_norm_path = "model.final_layernorm"
    mlp_name = "feed_forward"
    mlp_norm_name = "pre_ff_layernorm"
    mlp_roles = {**_MLP, "router": "router"}


class BambaAdapter(JambaAdapter):
    """Bamba: Mamba 2 or attention, then an MLP."""

    architectures = ("BambaForCausalLM",)
    mixer_heads = _SSM_HEADS


class FalconH1Adapter(JambaAdapter):
    """Falcon-H1: Mamba 2 and attention side by side in every layer, each with a factor; heads are of attention."""

    architectures = ("FalconH1ForCausalLM",)

    def operator_type(self, layer: int) -> str:
        return "attention+ssm"

    def operator_path(self, layer: int) -> str:
        return f"{self.layer_path(layer)}.{self.attention_name}"

    def head_layout(self, layer: int) -> HeadLayout | None:
        return self.attention_layout(self.operator_path(layer))

    def output_projection(self, layer: int) -> str | None:
        return f"{self.operator_path(layer)}.{self.out_name}"

    def conv_path(self, layer: int) -> str | None:
        return f"{self.layer_path(layer)}.{self.mixer_name}.{self.mixer_conv}"

    def written(self, layer: int, projected: torch.Tensor) -> torch.Tensor:
        """Return what attention adds: its output times its factor."""
        return projected * float(self.block(layer).attn_out_multiplier)

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        points, block = super().hook_points(layer), self.block(layer)
        ssm = HookPoint(f"{self.layer_path(layer)}.{self.mixer_name}", "output", Scaled(block.ssm_out_multiplier))
        attention = self.operator_path(layer)
        points["operator_out"] = HookPoint(attention, "output", Scaled(block.attn_out_multiplier), beside=(ssm,))
        points["attention_pattern"] = HookPoint(attention, "output", Pattern())
        return points

    def roles(self, layer: int) -> dict[str, str | Part]:
        block = self.layer_path(layer)
        return (
            self.named_roles(self.operator_path(layer), "attention", self.attention_roles)
            | self.named_roles(f"{block}.{self.mixer_name}", "ssm", self.mixer_roles)
            | self.named_roles(f"{block}.{self.mlp_name}", "mlp", self.mlp_roles)
        )

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the scaled logits."""
        return super().logits(hidden) * float(self.model.config.lm_head_multiplier)


class GraniteMoeHybridAdapter(MixerAdapter):
    """Granite 4: Mamba 2 or attention, then experts and a shared MLP side by side; one factor on all that is added."""

    architectures = ("GraniteMoeHybridForCausalLM",)
    mixer_heads = _SSM_HEADS
    mlp_name = "shared_mlp"

    def written(self, layer: int, projected: torch.Tensor) -> torch.Tensor:
        """Return the output times the factor."""
        return projected * float(self.block(layer).residual_multiplier)

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        points, block, path = super().hook_points(layer), self.block(layer), self.layer_path(layer)
        view = Scaled(block.residual_multiplier)
        points["operator_out"] = HookPoint(self.operator_path(layer), "output", view)
        experts = (HookPoint(f"{path}.block_sparse_moe", "output", view),) if block.has_experts else ()
        points["mlp_out"] = HookPoint(f"{path}.{self.mlp_name}", "output", view, beside=experts)
        return points

    def roles(self, layer: int) -> dict[str, str | Part]:
        path = f"{self.layer_path(layer)}.{self.mlp_name}"
        width = self.module(path).hidden_size
        experts = self.named_roles(self.layer_path(layer), "mlp", {"router": "block_sparse_moe.router"})
        return (
            super().roles(layer)
            | experts
            | {
                "mlp.gate": Part(f"{path}.input_linear", 0, width),
                "mlp.up": Part(f"{path}.input_linear", width, 2 * width),
                "mlp.down": f"{path}.output_linear",
            }
        )

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the scaled logits."""
        return super().logits(hidden) / float(self.model.config.logits_scaling)


class ZambaAdapter(WithoutMlp):
    """Zamba: Mamba in every layer; in some, attention and an MLP, whose weights these layers share, feed its input.

    What those two give is added to what the state space reads, not to the stream: only the state space writes there.
    """

    architectures = ("ZambaForCausalLM",)
    final_norm_path = "model.final_layernorm"
    row_arguments = ("original_hidden_states",)
    shared_name = "shared_transf"
    shared_mlp_roles = _MLP

    def shared(self, layer: int) -> str | None:
        """Return the path of the attention and MLP of a layer that has them."""
        found = self.child(self.layer_path(layer), self.shared_name)
        return None if found is None else f"{self.layer_path(layer)}.{self.shared_name}"

    def operator_type(self, layer: int) -> str:
        return self.mixer_type if self.shared(layer) is None else f"attention+{self.mixer_type}"

    def operator_path(self, layer: int) -> str:
        inside = "" if self.shared(layer) is None else ".mamba_decoder"
        return f"{self.layer_path(layer)}{inside}.{self.mixer_name}"

    def conv_path(self, layer: int) -> str | None:
        return f"{self.operator_path(layer)}.{self.mixer_conv}"

    def head_layout(self, layer: int) -> HeadLayout | None:
        shared = self.shared(layer)
        return super().head_layout(layer) if shared is None else self.attention_layout(f"{shared}.self_attn")

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        points, layout, shared = super().hook_points(layer), self.head_layout(layer), self.shared(layer)
        if shared is not None and layout is not None:
            view = Heads(layout.n_heads, layout.d_head)
            points["heads"] = HookPoint(f"{shared}.self_attn.o_proj", "input", view)
            points["attention_pattern"] = HookPoint(f"{shared}.self_attn", "output", Pattern())
        return points

    def roles(self, layer: int) -> dict[str, str | Part]:
        roles, shared = self.named_roles(self.operator_path(layer), "ssm", self.mixer_roles), self.shared(layer)
        if shared is None:
            return roles
        roles |= self.named_roles(f"{shared}.self_attn", "attention", self.attention_roles)
        roles |= self.named_roles(f"{shared}.feed_forward", "mlp", self.shared_mlp_roles)
        return roles | {"ssm.shared_in": f"{self.layer_path(layer)}.linear"}


class Zamba2Adapter(ZambaAdapter):
    """Zamba 2: the same with Mamba 2, whose heads are sites in the layers without attention."""

    architectures = ("Zamba2ForCausalLM",)
    mixer_heads = _SSM_HEADS
    shared_name = "shared_transformer"
    shared_mlp_roles = {"gate_up": "gate_up_proj", "down": "down_proj"}


class NemotronHAdapter(WithoutMlp):
    """Nemotron-H: a layer is Mamba 2, attention, an MLP or experts, and each is the layer's operator."""

    architectures = ("NemotronHForCausalLM",)
    embedding_path = "model.embeddings"
    final_norm_path = "model.norm_f"
    attention_name = "mixer"
    mixer_name = "mixer"
    mixer_heads = _SSM_HEADS
    mlp_roles = {
        **{"up": "up_proj", "down": "down_proj", "router": "gate"},
        **{"shared_up": "shared_experts.up_proj", "shared_down": "shared_experts.down_proj"},
        **{"latent_in": "fc1_latent_proj", "latent_out": "fc2_latent_proj"},
    }

    def operator_type(self, layer: int) -> str:
        """Return ``ssm``, ``attention``, or for layers that mix no tokens ``mlp`` or ``experts``."""
        mixer = self.block(layer).mixer
        named = {"conv1d": "ssm", "o_proj": "attention", "experts": "experts"}
        return next((word for name, word in named.items() if hasattr(mixer, name)), "mlp")

    def receptive_field(self, layer: int) -> int | None:
        """Return 1 for layers that mix no tokens."""
        return 1 if self.operator_type(layer) in ("mlp", "experts") else None

    def roles(self, layer: int) -> dict[str, str | Part]:
        if self.receptive_field(layer) is None:
            return super().roles(layer)
        return {
            role: path
            for role, path in self.named_roles(self.operator_path(layer), "mlp", self.mlp_roles).items()
            if hasattr(self.role_module(path), "weight")  # where no experts are latent, those two are no matrices
        }


class RecurrentGemmaAdapter(MixerAdapter):
    """RecurrentGemma: a gated linear recurrence or attention in a window, then an MLP; capped logits.

    Its recurrent layers keep their states in the modules themselves, so that there is no cache to copy.
    """

    architectures = ("RecurrentGemmaForCausalLM",)
    final_norm_path = "model.final_norm"
    attention_name = "temporal_block"
    mixer_name = "temporal_block"
    mixer_type = "recurrent"
    mixer_out = "linear_out"
    mixer_conv = "conv_1d"
    mixer_roles = {"x": "linear_x", "y": "linear_y", "out": "linear_out"}
    mlp_name = "mlp_block"
    mlp_norm_name = "channel_pre_norm"
    cache_argument = None
    masks_convolutions = False

    def operator_type(self, layer: int) -> str:
        return "recurrent" if hasattr(self.block(layer).temporal_block, "rg_lru") else "attention"

    def head_layout(self, layer: int) -> HeadLayout | None:
        if self.operator_type(layer) == "attention":
            return super().head_layout(layer)
        recurrence = self.block(layer).temporal_block.rg_lru
        heads = recurrence.num_attention_heads
        return HeadLayout(heads, heads, recurrence.block_width)

    def output_projection(self, layer: int) -> str | None:
        attends = self.operator_type(layer) == "attention"
        return f"{self.operator_path(layer)}.{self.out_name if attends else self.mixer_out}"

    def window(self, layer: int) -> int | None:
        attends = self.operator_type(layer) == "attention"
        return int(self.model.config.attention_window_size) if attends else None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the capped logits."""
        cap = float(self.model.config.logits_soft_cap)
        return (super().logits(hidden) / cap).tanh() * cap


class Qwen3NextAdapter(MixerAdapter):
    """Qwen3-Next and Qwen3.5: a gated delta rule, or attention with a gate beside the queries; an MLP or experts."""

    architectures = ("Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM")
    mixer_name = "linear_attn"
    mixer_type = "linear_attention"
    mixer_heads = ("num_v_heads", "num_k_heads", "head_v_dim")
    mixer_roles = {
        **{name: f"in_proj_{name}" for name in ("qkvz", "ba", "qkv", "z", "b", "a")},
        "out": "out_proj",
    }
    mlp_roles = {**_MLP, **_SHARED, "router": "gate", "shared_router": "shared_expert_gate"}

    def roles(self, layer: int) -> dict[str, str | Part]:
        roles, layout = super().roles(layer), self.head_layout(layer)
        if layout is not None and self.operator_type(layer) == "attention":
            path, d_head = f"{self.operator_path(layer)}.q_proj", layout.d_head
            roles["attention.q"] = Part(path, 0, d_head, 2 * d_head)
            roles["attention.gate"] = Part(path, d_head, 2 * d_head, 2 * d_head)
        return roles


class KimiLinearAdapter(MixerAdapter):
    """Kimi Linear and Ling 2.5: a delta rule, or attention with latent keys and values; then an MLP or experts."""

    architectures = ("KimiLinearForCausalLM", "BailingHybridForCausalLM")
    mixer_name = "self_attn"
    mixer_type = "linear_attention"
    mixer_out = "o_proj"
    mixer_heads = ("num_heads", "num_heads", "head_dim")
    mixer_roles = {
        **{role: f"{role}_proj" for role in ("q", "k", "v", "b", "g", "g_a", "g_b")},
        **{f"f{part}": f"forget_gate.f{part}_proj" for part in ("", "_a", "_b")},
        "out": "o_proj",
    }
    attention_roles = {
        **{"q_down": "q_a_proj", "q_up": "q_b_proj", "q_whole": "q_proj"},
        **{"kv_down": "kv_a_proj_with_mqa", "kv_up": "kv_b_proj", "gate": "g_proj", "out": "o_proj"},
    }
    mlp_roles = {**_MLP, **_KIMI, "router": "gate"}

    def operator_type(self, layer: int) -> str:
        return "linear_attention" if hasattr(self.block(layer).self_attn, "conv1d") else "attention"

    def head_layout(self, layer: int) -> HeadLayout | None:
        if self.operator_type(layer) != "attention":
            return super().head_layout(layer)
        attention = self.block(layer).self_attn
        return HeadLayout(attention.num_heads, attention.num_heads, attention.v_head_dim)


class OlmoHybridAdapter(MixerAdapter):
    """OLMo Hybrid: a gated delta rule behind a norm, or attention and MLP with norms behind them."""

    architectures = ("OlmoHybridForCausalLM",)
    mixer_name = "linear_attn"
    mixer_type = "linear_attention"
    mixer_out = "o_proj"
    mixer_heads = ("num_v_heads", "num_k_heads", "head_v_dim")
    mixer_roles = {role: f"{role}_proj" for role in ("q", "k", "v", "a", "b", "g")} | {"out": "o_proj"}

    def written(self, layer: int, projected: torch.Tensor) -> torch.Tensor:
        """Return what is added: where the layer attends, what has passed the norm behind."""
        norm = self.block(layer).post_attention_layernorm
        return norm(projected) if self.operator_type(layer) == "attention" else projected

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        points, path = super().hook_points(layer), self.layer_path(layer)
        if self.operator_type(layer) == "attention":
            points["operator_out"] = HookPoint(f"{path}.post_attention_layernorm", "output")
            points["resid_mid"] = HookPoint(f"{path}.{self.mlp_name}", "input", edit_as="operator_out")
            points["mlp_out"] = HookPoint(f"{path}.post_feedforward_layernorm", "output")
        return points


class Llama4Adapter(MixerAdapter):
    """Llama 4, text: attention in chunks or over all tokens, then an MLP, or experts that return a token a row."""

    architectures = ("Llama4ForCausalLM",)
    mlp_name = "feed_forward"
    mlp_roles = {**_MLP, **_SHARED, "router": "router"}

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        points = super().hook_points(layer)
        points["mlp_out"] = HookPoint(
            f"{self.layer_path(layer)}.feed_forward", "output", flat=self.block(layer).is_moe_layer
        )
        return points


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the adapters above."""
    return [
        JambaAdapter,
        BambaAdapter,
        FalconH1Adapter,
        GraniteMoeHybridAdapter,
        ZambaAdapter,
        Zamba2Adapter,
        NemotronHAdapter,
        RecurrentGemmaAdapter,
        Qwen3NextAdapter,
        KimiLinearAdapter,
        OlmoHybridAdapter,
        Llama4Adapter,
    ]
