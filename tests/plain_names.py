"""Where each class of transformers keeps a layer's modules, read from its modeling file: a table of its own.

Nothing here is taken from an adapter, so that the plain loop of ``reference`` judges adapters.
"""

from __future__ import annotations

import math
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
    flat: bool = False  # the MLP has batch and position in one dimension
    parts: str = ""  # the projection whose thirds are the factors of a convolution


LLAMA = Plain()
PARALLEL = Plain(between=False)
POST_NORM = Plain(operator=("post_attention_layernorm",), mlp=("post_feedforward_layernorm",))
GPT2 = Plain(layers="transformer.h", operator=("attn",), out="attn.c_proj")
OPT = Plain(layers="model.decoder.layers", mlp=("fc2",), out="self_attn.out_proj", flat=True)


def _residual_multiplier(config: Any) -> float:
    return float(config.residual_multiplier)


def _granite_moe_shared(config: Any, layer: int) -> Plain:
    shared = ("shared_mlp",) if config.shared_intermediate_size else ()
    return Plain(mlp=("block_sparse_moe", *shared), factor=_residual_multiplier)


def _falcon(config: Any, layer: int) -> Plain:
    parallel = config.new_decoder_architecture or config.parallel_attn
    operator = "self_attention"
    return Plain("transformer.h", operator=(operator,), out=f"{operator}.dense", between=not parallel)


def _neox(config: Any, layer: int) -> Plain:
    between = not config.use_parallel_residual
    return Plain("gpt_neox.layers", operator=("attention",), out="attention.dense", between=between)


def _lfm2(config: Any, layer: int) -> Plain:
    operator = "conv" if config.layer_types[layer] == "conv" else "self_attn"
    return Plain(operator=(operator,), mlp=("feed_forward",), out=f"{operator}.out_proj", parts=f"{operator}.in_proj")


def _stablelm(config: Any, layer: int) -> Plain:
    return PARALLEL if config.use_parallel_residual else LLAMA


#: Class → its layers, the same for all or by config and layer.
NAMES: dict[str, Plain | Callable[[Any, int], Plain]] = {
    "ApertusForCausalLM": LLAMA,
    "ArceeForCausalLM": LLAMA,
    "BioGptForCausalLM": replace(OPT, layers="biogpt.layers", flat=False),
    "BitNetForCausalLM": LLAMA,
    "BloomForCausalLM": Plain(
        layers="transformer.h",
        operator=("self_attention.dense",),
        mlp=("mlp.dense_4h_to_h",),
        out="self_attention.dense",
    ),
    "Cohere2ForCausalLM": PARALLEL,
    "Cohere2MoeForCausalLM": PARALLEL,
    "CohereForCausalLM": PARALLEL,
    "CwmForCausalLM": LLAMA,
    "DeepseekV2ForCausalLM": LLAMA,
    "DeepseekV3ForCausalLM": LLAMA,
    "Ernie4_5ForCausalLM": LLAMA,
    "Ernie4_5_MoeForCausalLM": LLAMA,
    "Exaone4ForCausalLM": POST_NORM,
    "FalconForCausalLM": _falcon,
    "FlexOlmoForCausalLM": POST_NORM,
    "GPT2LMHeadModel": GPT2,
    "GPTBigCodeForCausalLM": GPT2,
    "GPTJForCausalLM": Plain(layers="transformer.h", operator=("attn",), out="attn.out_proj", between=False),
    "GPTNeoXForCausalLM": _neox,
    "Gemma2ForCausalLM": POST_NORM,
    "Gemma3ForCausalLM": POST_NORM,
    "GemmaForCausalLM": LLAMA,
    "Glm4ForCausalLM": Plain(operator=("post_self_attn_layernorm",), mlp=("post_mlp_layernorm",)),
    "Glm4MoeForCausalLM": LLAMA,
    "GlmForCausalLM": LLAMA,
    "GptOssForCausalLM": LLAMA,
    "GraniteForCausalLM": Plain(factor=_residual_multiplier),
    "GraniteMoeForCausalLM": Plain(mlp=("block_sparse_moe",), factor=_residual_multiplier),
    "GraniteMoeSharedForCausalLM": _granite_moe_shared,
    "GraniteSWAForCausalLM": Plain(factor=_residual_multiplier),
    "HeliumForCausalLM": LLAMA,
    "HunYuanDenseV1ForCausalLM": LLAMA,
    "HunYuanMoEV1ForCausalLM": LLAMA,
    "HyperCLOVAXForCausalLM": Plain(operator=("post_norm1",), mlp=("post_norm2",), factor=_residual_multiplier),
    "Jais2ForCausalLM": LLAMA,
    "Lfm2ForCausalLM": _lfm2,
    "LlamaForCausalLM": LLAMA,
    "MiniCPM3ForCausalLM": Plain(factor=lambda config: config.scale_depth / math.sqrt(config.num_hidden_layers)),
    "MiniMaxM2ForCausalLM": LLAMA,
    "MinistralForCausalLM": LLAMA,
    "Ministral3ForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "MixtralForCausalLM": LLAMA,
    "MptForCausalLM": Plain(
        layers="transformer.blocks", operator=("attn",), mlp=("ffn.down_proj",), out="attn.out_proj"
    ),
    "NanoChatForCausalLM": LLAMA,
    "NemotronForCausalLM": LLAMA,
    "OPTForCausalLM": OPT,
    "Olmo2ForCausalLM": POST_NORM,
    "Olmo3ForCausalLM": POST_NORM,
    "OlmoForCausalLM": LLAMA,
    "OlmoeForCausalLM": LLAMA,
    "PersimmonForCausalLM": Plain(out="self_attn.dense"),
    "Phi3ForCausalLM": LLAMA,
    "PhiForCausalLM": replace(PARALLEL, out="self_attn.dense"),
    "PhimoeForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen2MoeForCausalLM": LLAMA,
    "Qwen3ForCausalLM": LLAMA,
    "Qwen3MoeForCausalLM": LLAMA,
    "SeedOssForCausalLM": LLAMA,
    "SmolLM3ForCausalLM": LLAMA,
    "SolarOpenForCausalLM": LLAMA,
    "StableLmForCausalLM": _stablelm,
    "Starcoder2ForCausalLM": LLAMA,
    "VaultGemmaForCausalLM": LLAMA,
    "XGLMForCausalLM": replace(OPT, layers="model.layers", flat=False),
    "YoutuForCausalLM": LLAMA,
}


#: Classes that differ from others by names alone, or that few models are of: tested by ``make test-all``.
RARE = frozenset(
    f"{name}ForCausalLM"
    for name in (
        *("Apertus", "Arcee", "BioGpt", "BitNet", "Cohere2Moe", "Cwm", "Ernie4_5", "Ernie4_5_Moe", "FlexOlmo"),
        *("Glm4Moe", "GraniteMoe", "GraniteSWA", "HunYuanDenseV1", "HunYuanMoEV1", "HyperCLOVAX", "Jais2", "MiniCPM3"),
        *("MiniMaxM2", "Ministral", "Ministral3", "Persimmon", "Phimoe", "SeedOss", "SolarOpen", "VaultGemma", "XGLM"),
        "Youtu",
    )
)


def plain_names(model: Any, layer: int) -> Plain:
    """Return the names of a layer of a loaded model."""
    found = NAMES[type(model).__name__]
    return found if isinstance(found, Plain) else found(model.config, layer)
