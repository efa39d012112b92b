"""The models' shapes: six layers, 128 dimensions, four query heads on two key-value heads, a million parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xatlas.errors import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONTEXT = 256  # positions; longest training prompt is far below
ATTENTION_LAYERS = (1, 3, 5)  # of the LFM2; with the convolutions 0, 2, 4 every third of the depth has both

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,  # suits 128 dimensions; the default is meant for thousands
}
ROPE_THETA = 10_000.0
# A convolution layer has 65,920 operator parameters and an attention layer 49,152, so LFM2's MLPs are narrower.
MLP_WIDTH = {"lfm2-mini": 232, "qwen-mini": 256, "smollm2-mini": 256}


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
