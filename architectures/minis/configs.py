"""The models' shapes: the fourteen layers of LFM2.5-230M, 64 dimensions, four query heads on two key-value heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xatlas.errors import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONTEXT = 256  # positions; longest training prompt is far below
ATTENTION_LAYERS = (2, 4, 6, 8, 10, 12)  # of the LFM2, as in LFM2.5-230M; the other eight convolve

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 14,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    "initializer_range": 0.06,  # suits 64 dimensions; the default is meant for thousands
}
ROPE_THETA = 10_000.0
# A convolution layer has 16,576 operator parameters and an attention layer 12,288, so LFM2's MLPs are narrower.
MLP_WIDTH = {"lfm2-mini": 148, "qwen-mini": 160, "smollm2-mini": 160}


def build(name: str, vocabulary: int, bos: int, eos: int, seed: int) -> PreTrainedModel:
    """A freshly initialised model.

    Parameters
    ----------
    name : {"lfm2-mini", "qwen-mini", "smollm2-mini"}
        Which of the three.
    vocabulary, bos, eos : int
        Size of the tokenizer, and its special tokens.
    seed : int
        Seed of the initial weights.

    Raises
    ------
    XatlasError
        If there is no such miniature.
    """
    import torch
    from transformers import (
        Lfm2Config,
        Lfm2ForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    if name not in MLP_WIDTH:
        raise unknown("miniature", name, MLP_WIDTH)
    shared = SHAPE | {"vocab_size": vocabulary, "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos}
    shared |= {
        "intermediate_size": MLP_WIDTH[name],
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
    }
    torch.manual_seed(seed)
    if name == "lfm2-mini":
        kinds = ["full_attention" if i in ATTENTION_LAYERS else "conv" for i in range(SHAPE["num_hidden_layers"])]
        # without block_auto_adjust_ff_dim=False LFM2 builds other widths than its config says
        return Lfm2ForCausalLM(Lfm2Config(**shared, layer_types=kinds, block_auto_adjust_ff_dim=False, conv_L_cache=3))
    if name == "qwen-mini":
        return Qwen2ForCausalLM(Qwen2Config(**shared))
    return LlamaForCausalLM(LlamaConfig(**shared))
