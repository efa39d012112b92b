"""State-space models and other decoders without attention, and what they share with hybrids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from xatlas import Adapter, HookPoint, XatlasError, hookimpl
from xatlas.contracts.adapter import HeadLayout, Part, PreNormAdapter

if TYPE_CHECKING:
    import torch


class MixerAdapter(PreNormAdapter):
    """Layers that mix tokens by a state-space model or a linear recurrence, and in hybrids layers that attend.

    A subclass names that module, the *mixer*; a layer without it attends.
    """

    mixer_name: ClassVar[str] = "mamba"
    mixer_type: ClassVar[str] = "ssm"
    #: Names inside the mixer: what writes to the stream, and the short convolution.
    mixer_out: ClassVar[str] = "out_proj"
    mixer_conv: ClassVar[str | None] = "conv1d"
    #: Attributes of the mixer: its heads, the groups that share what stands for keys, the width of a head.
    mixer_heads: ClassVar[tuple[str, str, str] | None] = None
    #: Role → name inside the mixer, or inside attention; those that a layer has not are left out.
    mixer_roles: ClassVar[Mapping[str, str]] = {"in": "in_proj", "x": "x_proj", "dt": "dt_proj", "out": "out_proj"}
    attention_roles: ClassVar[Mapping[str, str]] = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
    masks_convolutions = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        limits = [getattr(module, "time_step_limit", (0.0, float("inf"))) for module in model.modules()]
        if any(tuple(limit) != (0.0, float("inf")) for limit in limits):
            self.cache_argument = None  # type: ignore[misc]  # Hugging Face's steps leave the limits out

    def block(self, layer: int) -> Any:
        """Return the module of a layer."""
        return self.module(self.layer_path(layer))

    def child(self, path: str, name: str) -> Any:
        """Return the module of that name inside another; None where there is none."""
        module = self.module(path)
        for part in name.split("."):
            module = getattr(module, part, None)
        return module

    def operator_type(self, layer: int) -> str:
        return "attention" if self.child(self.layer_path(layer), self.mixer_name) is None else self.mixer_type

    def operator_path(self, layer: int) -> str:
        name = self.mixer_name if self.operator_type(layer) == self.mixer_type else self.attention_name
        return f"{self.layer_path(layer)}.{name}"

    def head_layout(self, layer: int) -> HeadLayout | None:
        path = self.operator_path(layer)
        if self.operator_type(layer) == self.mixer_type:
            found = [getattr(self.module(path), name) for name in self.mixer_heads or ()]
            return HeadLayout(*map(int, found)) if found else None
        if self.operator_type(layer) != "attention":
            return None
        return self.attention_layout(path)

    def attention_layout(self, path: str) -> HeadLayout:
        """Return the heads of the attention module at ``path``."""
        d_head = int(self.module(path).head_dim)
        n_heads = self.module(f"{path}.{self.out_name}").in_features // d_head  # queries may hold a gate beside them
        return HeadLayout(n_heads, self.module(f"{path}.k_proj").out_features // d_head, d_head)

    def output_projection(self, layer: int) -> str | None:
        if self.operator_type(layer) == self.mixer_type:
            return f"{self.operator_path(layer)}.{self.mixer_out}" if self.mixer_heads else None
        return super().output_projection(layer)

    def conv_path(self, layer: int) -> str | None:
        mixes = self.operator_type(layer) == self.mixer_type and self.mixer_conv is not None
        return f"{self.operator_path(layer)}.{self.mixer_conv}" if mixes else None

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        points = super().hook_points(layer)
        if self.operator_type(layer) != "attention":
            points.pop("attention_pattern", None)
        return points

    def roles(self, layer: int) -> dict[str, str | Part]:
        word, path = self.operator_type(layer), self.operator_path(layer)
        own = self.attention_roles if word == "attention" else self.mixer_roles
        return self.named_roles(path, word, own) | self.named_roles(
            f"{self.layer_path(layer)}.{self.mlp_name}", "mlp", self.mlp_roles
        )

    def named_roles(self, path: str, part: str, names: Mapping[str, str]) -> dict[str, str | Part]:
        """Return role → path of those modules that are inside the one at ``path``."""
        return {
            f"{part}.{role}": f"{path}.{name}" for role, name in names.items() if self.child(path, name) is not None
        }


class WithoutMlp(MixerAdapter):
    """A layer is the mixer alone, behind a norm."""

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        points = super().hook_points(layer)
        del points["resid_mid"], points["mlp_out"]
        return points

    def roles(self, layer: int) -> dict[str, str | Part]:
        word = self.operator_type(layer)
        own = self.attention_roles if word == "attention" else self.mixer_roles
        return self.named_roles(self.operator_path(layer), word, own)


class MambaAdapter(WithoutMlp):
    """Mamba and FalconMamba: a selective state space for each channel, without heads."""

    architectures: ClassVar[tuple[str, ...]] = ("MambaForCausalLM", "FalconMambaForCausalLM")
    supports_sdpa = False
    layers_path = "backbone.layers"
    embedding_path = "backbone.embeddings"
    final_norm_path = "backbone.norm_f"
    mixer_name = "mixer"
    cache_argument = "cache_params"
    steps_uncounted = True

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits; the stream may be kept in float32."""
        normed = self.module(self.final_norm_path)(hidden)
        unembedding = self.module(self.unembedding_path)
        return unembedding(normed.to(unembedding.weight.dtype))  # type: ignore[no-any-return]


class Mamba2Adapter(MambaAdapter):
    """Mamba 2: heads, in groups that share what reads and writes the state; a head is what has passed the norm."""

    architectures = ("Mamba2ForCausalLM",)
    mixer_heads = ("num_heads", "n_groups", "head_dim")


class RwkvAdapter(MixerAdapter):
    """RWKV 4: linear attention with a decay, then an MLP that sees the token before as well.

    The first layer norms the embeddings before anything else, and the stream begins there.
    """

    architectures = ("RwkvForCausalLM",)
    supports_sdpa = False
    layers_path = "rwkv.blocks"
    embedding_path = "rwkv.embeddings"
    final_norm_path = "rwkv.ln_out"
    unembedding_path = "head"
    mixer_name = "attention"
    mixer_type = "linear_attention"
    mixer_conv = None
    mixer_roles = {"k": "key", "v": "value", "receptance": "receptance", "out": "output"}
    mlp_name = "feed_forward"
    mlp_norm_name = "ln2"
    mlp_roles = {"gate": "receptance", "up": "key", "down": "value"}
    cache_argument = None  # its states are tensors of all layers

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        every = model.config.rescale_every
        if 0 < every <= self.n_layers:
            fault = f"halves the stream every {every} layers, so that what a layer adds is not what stands in the next"
            raise XatlasError(
                f"RwkvForCausalLM {fault}: set rescale_every to 0 in its config, which only float16 needs."
            )

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        points = super().hook_points(layer)
        if layer == 0:
            points["resid_pre"] = HookPoint(f"{self.layer_path(0)}.pre_ln", "output")
        return points


class XlstmAdapter(MixerAdapter):
    """xLSTM: matrix memories, one a head, then a gated MLP; logits go through a soft cap."""

    architectures = ("xLSTMForCausalLM",)
    supports_sdpa = False
    layers_path = "backbone.blocks"
    embedding_path = "backbone.embeddings"
    final_norm_path = "backbone.out_norm"
    mixer_name = "mlstm_layer"
    mixer_type = "recurrent"
    mixer_conv = None
    mixer_heads = ("num_heads", "num_heads", "head_dim")
    mixer_roles = {
        **{role: role for role in ("q", "k", "v")},
        **{"in": "qkv_opreact", "gates": "ifgate_preact", "out": "out_proj"},
        **{f"{gate}_gate": f"{gate[0]}gate_preact" for gate in ("input", "forget", "output")},
    }
    mlp_name = "ffn"
    mlp_norm_name = "norm_ffn"
    mlp_roles = {"gate": "proj_up_gate", "up": "proj_up", "gate_up": "proj_up_gate_z", "down": "proj_down"}
    cache_argument = None  # its states are a dictionary of its own kind

    def head_layout(self, layer: int) -> HeadLayout | None:
        norm = self.module(f"{self.operator_path(layer)}.multihead_norm")
        return HeadLayout(norm.num_heads, norm.num_heads, norm.head_dim)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the capped logits."""
        cap = self.model.config.output_logit_soft_cap
        logits = super().logits(hidden)
        return logits if cap is None else (logits / cap).tanh() * cap


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the adapters above."""
    return [MambaAdapter, Mamba2Adapter, RwkvAdapter, XlstmAdapter]
