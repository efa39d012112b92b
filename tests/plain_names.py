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
    factors: Callable[[Any], tuple[float, ...]] = lambda config: ()  # of the operator's modules each, where they differ
    heads: str = "num_attention_heads"  # field of the config that counts them
    enters: str = ""  # what gives the stream at the beginning of the first layer, where that is not what enters it
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


def _lfm3(config: Any, layer: int) -> Plain:
    kind = "conv" if config.layer_types[layer] == "conv" else "self_attn"
    out = "conv.out_proj" if kind == "conv" else "self_attn.o_proj"
    return Plain(operator=("post_operator_norm",), mlp=("post_ffn_norm",), out=out, parts="conv.in_proj")


def _lfm2_vl(config: Any, layer: int) -> Plain:
    return replace(_lfm2(config, layer), layers="model.language_model.layers")


def _ssm(config: Any, layer: int) -> Plain:
    return Plain(
        layers="backbone.layers", operator=("mixer",), mlp=(), out="mixer.out_proj", heads="num_heads", between=False
    )


def _hybrid(mixer: str, out: str = "out_proj", heads: str = "", mlp: str = "mlp") -> Callable[[Any, int], Plain]:
    """Return where a hybrid keeps its layers: the config's types say which attend."""

    def names(config: Any, layer: int) -> Plain:
        if config.layer_types[layer] == "linear_attention":
            return Plain(operator=(mixer,), mlp=(mlp,), out=f"{mixer}.{out}", heads=heads)
        return Plain(mlp=(mlp,))

    return names


def _falcon_h1(config: Any, layer: int) -> Plain:
    factors = lambda config: (config.ssm_out_multiplier, config.attention_out_multiplier)  # noqa: E731
    return Plain(operator=("mamba", "self_attn"), mlp=("feed_forward",), factors=factors)


def _granite_hybrid(config: Any, layer: int) -> Plain:
    names = _hybrid("mamba", heads="mamba_n_heads")(config, layer)
    mlp = ("block_sparse_moe", "shared_mlp") if config.num_local_experts else ("shared_mlp",)
    return replace(names, mlp=mlp, factor=lambda config: config.residual_multiplier)


def _zamba(shared: str) -> Callable[[Any, int], Plain]:
    def names(config: Any, layer: int) -> Plain:
        plain = Plain(operator=("mamba",), mlp=(), out="mamba.out_proj", heads="n_mamba_heads", between=False)
        if config.layers_block_type[layer] != "hybrid":
            return plain
        return replace(
            plain, operator=("mamba_decoder.mamba",), out=f"{shared}.self_attn.o_proj", heads="num_attention_heads"
        )

    return names


def _nemotron_h(config: Any, layer: int) -> Plain:
    names = Plain(operator=("mixer",), mlp=(), out="mixer.o_proj", between=False)
    mamba = config.layers_block_type[layer] == "linear_attention"
    return replace(names, out="mixer.out_proj", heads="mamba_num_heads") if mamba else names


def _recurrent_gemma(config: Any, layer: int) -> Plain:
    out = "linear_out" if config.layers_block_type[layer] == "linear_attention" else "o_proj"
    return Plain(operator=("temporal_block",), mlp=("mlp_block",), out=f"temporal_block.{out}")


def _olmo_hybrid(config: Any, layer: int) -> Plain:
    names = _hybrid("linear_attn", "o_proj", "linear_num_value_heads")(config, layer)
    attends = config.layer_types[layer] == "full_attention"
    return replace(POST_NORM, out="self_attn.o_proj") if attends else names


_QWEN_NEXT = _hybrid("linear_attn", heads="linear_num_value_heads")
_KIMI = _hybrid("self_attn", "o_proj", "linear_num_heads")

#: Class → its layers, the same for all or by config and layer.
NAMES: dict[str, Plain | Callable[[Any, int], Plain]] = {
    "AfmoeForCausalLM": Plain(operator=("post_attention_layernorm",), mlp=("post_mlp_layernorm",)),
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
    "GPTNeoForCausalLM": Plain("transformer.h", operator=("attn",), out="attn.attention.out_proj"),
    "GPTNeoXForCausalLM": _neox,
    "Gemma2ForCausalLM": POST_NORM,
    "Gemma3ForCausalLM": POST_NORM,
    "Gemma3ForConditionalGeneration": replace(POST_NORM, layers="model.language_model.layers"),
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
    "JetMoeForCausalLM": Plain(operator=("self_attention",)),
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
    "BailingHybridForCausalLM": _KIMI,
    "BambaForCausalLM": _hybrid("mamba", heads="mamba_n_heads", mlp="feed_forward"),
    "FalconH1ForCausalLM": _falcon_h1,
    "FalconMambaForCausalLM": _ssm,
    "GraniteMoeHybridForCausalLM": _granite_hybrid,
    "JambaForCausalLM": _hybrid("mamba", mlp="feed_forward"),
    "KimiLinearForCausalLM": _KIMI,
    "Lfm2MoeForCausalLM": _lfm2,
    "Lfm2VlForConditionalGeneration": _lfm2_vl,
    "Lfm3ForCausalLM": _lfm3,
    "Llama4ForCausalLM": lambda config, layer: Plain(mlp=("feed_forward",), flat=layer in config.moe_layers),
    "MambaForCausalLM": _ssm,
    "Mamba2ForCausalLM": _ssm,
    "NemotronHForCausalLM": _nemotron_h,
    "OlmoHybridForCausalLM": _olmo_hybrid,
    "Qwen3NextForCausalLM": _QWEN_NEXT,
    "Qwen3_5ForCausalLM": _QWEN_NEXT,
    "Qwen3_5MoeForCausalLM": _QWEN_NEXT,
    "RecurrentGemmaForCausalLM": _recurrent_gemma,
    "RwkvForCausalLM": Plain(
        layers="rwkv.blocks", operator=("attention",), mlp=("feed_forward",), out="attention.output", enters="pre_ln"
    ),
    "xLSTMForCausalLM": Plain(
        layers="backbone.blocks", operator=("mlstm_layer",), mlp=("ffn",), out="mlstm_layer.out_proj", heads="num_heads"
    ),
    "ZambaForCausalLM": _zamba("shared_transf"),
    "Zamba2ForCausalLM": _zamba("shared_transformer"),
}


#: Classes that differ from others by names alone, or that few models are of: tested by ``make test-all``.
RARE = {"Gemma3ForConditionalGeneration", "Lfm2VlForConditionalGeneration"} | frozenset(
    f"{name}ForCausalLM"
    for name in (
        *("Afmoe", "BailingHybrid", "FalconMamba", "JetMoe", "Qwen3_5Moe", "Zamba"),
        *("Apertus", "Arcee", "BioGpt", "BitNet", "Cohere2Moe", "Cwm", "Ernie4_5", "Ernie4_5_Moe", "FlexOlmo"),
        *("Glm4Moe", "GraniteMoe", "GraniteSWA", "HunYuanDenseV1", "HunYuanMoEV1", "HyperCLOVAX", "Jais2", "MiniCPM3"),
        *("MiniMaxM2", "Ministral", "Ministral3", "Persimmon", "Phimoe", "SeedOss", "SolarOpen", "VaultGemma", "XGLM"),
        "Youtu",
    )
)


def plain_names(model: Any, layer: int) -> Plain:
    """Return the names of a layer of a loaded model."""
    found = NAMES[type(model).__name__]
    return found if isinstance(found, Plain) else found(model.config.get_text_config(), layer)
