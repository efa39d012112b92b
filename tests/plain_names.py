"""Where each class of transformers keeps a layer's modules, read from its modeling file: a table of its own.

Nothing here is taken from an adapter, so that the plain loop of ``reference`` judges adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Plain:
    """A layer: names are relative to it, several modules are summed and run in this order."""

    layers: str = "model.layers"
    operator: tuple[str, ...] = ("self_attn",)  # what is added by the operator, after norms behind it
    mlp: tuple[str, ...] = ("mlp",)
    out: str = "self_attn.o_proj"  # takes the heads side by side
    between: bool = True  # the MLP reads the stream to which the operator was added
    factor: Callable[[Any], float] = lambda config: 1.0  # of what is added, by the config
    parts: str = ""  # the projection whose thirds are the factors of a convolution


LLAMA = Plain()
POST_NORM = Plain(operator=("post_attention_layernorm",), mlp=("post_feedforward_layernorm",))


def _lfm2(config: Any, layer: int) -> Plain:
    operator = "conv" if config.layer_types[layer] == "conv" else "self_attn"
    return Plain(operator=(operator,), mlp=("feed_forward",), out=f"{operator}.out_proj", parts=f"{operator}.in_proj")


def _stablelm(config: Any, layer: int) -> Plain:
    return replace(LLAMA, between=not config.use_parallel_residual)


#: Class → its layers, the same for all or by config and layer.
NAMES: dict[str, Plain | Callable[[Any, int], Plain]] = {
    "ApertusForCausalLM": LLAMA,
    "ArceeForCausalLM": LLAMA,
    "BitNetForCausalLM": LLAMA,
    "CwmForCausalLM": LLAMA,
    "Ernie4_5ForCausalLM": LLAMA,
    "GemmaForCausalLM": LLAMA,
    "HeliumForCausalLM": LLAMA,
    "HunYuanDenseV1ForCausalLM": LLAMA,
    "Jais2ForCausalLM": LLAMA,
    "Lfm2ForCausalLM": _lfm2,
    "LlamaForCausalLM": LLAMA,
    "MinistralForCausalLM": LLAMA,
    "Ministral3ForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "NanoChatForCausalLM": LLAMA,
    "NemotronForCausalLM": LLAMA,
    "OlmoForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
    "SeedOssForCausalLM": LLAMA,
    "SmolLM3ForCausalLM": LLAMA,
    "StableLmForCausalLM": _stablelm,
    "Starcoder2ForCausalLM": LLAMA,
    "VaultGemmaForCausalLM": LLAMA,
}


def plain_names(model: Any, layer: int) -> Plain:
    """Return the names of a layer of a loaded model."""
    found = NAMES[type(model).__name__]
    return found if isinstance(found, Plain) else found(model.config, layer)
