"""LFM2 and its kin: layers that mix tokens by a gated short convolution, and layers that attend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xatlas import Adapter, HookPoint, hookimpl
from xatlas.architectures.gguf import DecoderGguf
from xatlas.contracts.adapter import Chunk, Part, PreNormAdapter

if TYPE_CHECKING:
    import torch

    from xatlas.loading.gguf import GgufFile


def _gguf_fields(file: GgufFile) -> dict[str, Any]:
    """Read which layers attend from their numbers of key-value heads: a conv layer has none."""
    heads = file.metadata.get("lfm2.attention.head_count_kv")
    per_layer = heads if isinstance(heads, list) else []
    if per_layer and any(per_layer):
        file.metadata["lfm2.attention.head_count_kv"] = [count for count in per_layer if count]
    fields: dict[str, Any] = {
        "conv_L_cache": file.pop("lfm2.shortconv.l_cache", int),
        "conv_bias": any(name.endswith("shortconv.in_proj.bias") for name in file.tensors),
        "block_auto_adjust_ff_dim": False,  # the file states the width as it is in the end
    }
    if per_layer:
        fields["layer_types"] = ["full_attention" if count else "conv" for count in per_layer]
    return fields


class Lfm2Adapter(PreNormAdapter):
    """LFM2: conv or attention by layer, then a gated MLP whose modules are w1 (gate), w3 (up), w2 (down).

    The conv's factors are thirds of ``in_proj``'s output. The convolution module itself is never hooked:
    its layer reads the weight and calls a function, so that such a hook would silently never fire.
    """

    architectures = ("Lfm2ForCausalLM",)
    gguf = DecoderGguf("lfm2", epsilon="norm_eps", fields=_gguf_fields)
    final_norm_path = "model.embedding_norm"
    mlp_name = "feed_forward"
    mlp_norm_name = "ffn_norm"
    out_name = "out_proj"
    mlp_roles = {"gate": "w1", "up": "w3", "down": "w2"}  # noqa: RUF012 - declared ClassVar in the base

    def operator_type(self, layer: int) -> str:
        """Return ``conv`` or ``attention``, by which module the layer has."""
        return "conv" if hasattr(self.layer(layer), "conv") else "attention"

    def operator_path(self, layer: int) -> str:
        """Return the path of the conv or of the attention."""
        name = "conv" if self.operator_type(layer) == "conv" else self.attention_name
        return f"{self.layer_path(layer)}.{name}"

    def conv_path(self, layer: int) -> str | None:
        """Return the path of the depthwise convolution, whose weight is ``(d_model, 1, kernel)``."""
        return f"{self.operator_path(layer)}.conv" if self.operator_type(layer) == "conv" else None

    def receptive_field(self, layer: int) -> int | None:
        """Return the convolution's kernel; attention reads everything."""
        path = self.conv_path(layer)
        return None if path is None else int(self.module(path).weight.shape[-1])

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        """Return the shared sites; a conv layer adds gate (B), carrier (C) and signal (x)."""
        points = super().hook_points(layer)
        if self.operator_type(layer) == "conv":
            projection = f"{self.operator_path(layer)}.in_proj"
            for index, kind in enumerate(("conv_gate", "conv_carrier", "conv_signal")):
                points[kind] = HookPoint(projection, "output", Chunk(index, 3))
        return points

    def roles(self, layer: int) -> dict[str, str | Part]:
        """Return the shared roles; a conv layer adds ``conv.in`` and ``conv.out``."""
        roles = super().roles(layer)
        if self.operator_type(layer) == "conv":
            path = self.operator_path(layer)
            roles |= {"conv.in": f"{path}.in_proj", "conv.out": f"{path}.out_proj"}
        return roles


class Lfm2MoeAdapter(Lfm2Adapter):
    """LFM2-MoE: experts in place of the MLP, but for the first layers."""

    architectures = ("Lfm2MoeForCausalLM",)

    def roles(self, layer: int) -> dict[str, str | Part]:
        """Return the shared roles; a layer with experts has a router in place of the MLP's."""
        roles, path = super().roles(layer), f"{self.layer_path(layer)}.{self.mlp_name}"
        if not hasattr(self.module(path), "experts"):
            return roles
        return {role: at for role, at in roles.items() if not role.startswith("mlp.")} | {"mlp.router": f"{path}.gate"}


class Lfm3Adapter(Lfm2Adapter):
    """LFM3: windows in some layers, and in some checkpoints norms behind operator and MLP."""

    architectures = ("Lfm3ForCausalLM",)
    out_name = "o_proj"

    def behind(self, layer: int, name: str) -> str | None:
        """Return the path of a norm behind what the layer adds, where it has one."""
        path = f"{self.layer_path(layer)}.{name}"
        return path if hasattr(self.module(path), "weight") else None

    def written(self, layer: int, projected: torch.Tensor) -> torch.Tensor:
        """Return what has passed the norm behind the operator."""
        norm = self.behind(layer, "post_operator_norm")
        return projected if norm is None else self.module(norm)(projected)

    def hook_points(self, layer: int) -> dict[str, HookPoint]:
        """Return LFM2's sites; what is added has passed the norms behind."""
        points = super().hook_points(layer)
        for kind, name in (("operator_out", "post_operator_norm"), ("mlp_out", "post_ffn_norm")):
            norm = self.behind(layer, name)
            if norm is not None:
                points[kind] = HookPoint(norm, "output")
        return points


class Lfm2VlAdapter(Lfm2Adapter):
    """The language model in LFM2-VL, on text alone."""

    architectures = ("Lfm2VlForConditionalGeneration",)
    layers_path = "model.language_model.layers"
    embedding_path = "model.language_model.embed_tokens"
    final_norm_path = "model.language_model.embedding_norm"


@hookimpl
def xatlas_adapters() -> list[type[Adapter]]:
    """Return the adapters above."""
    return [Lfm2Adapter, Lfm2MoeAdapter, Lfm3Adapter, Lfm2VlAdapter]
