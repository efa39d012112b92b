"""GGUF files as llama.cpp's converter writes them, from models made here: the tests' own reading of its rules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

#: Hugging Face's names in a layer → those in the file.
LAYER = {
    "input_layernorm": "attn_norm",
    "operator_norm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "ffn_norm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
    "conv.conv": "shortconv.conv",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
}
WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.embedding_norm": "token_embd_norm",
    "lm_head": "output",
}
TOKEN_KIND = gguf.TokenType


def tensor_name(name: str) -> str:
    path, kind = name.rsplit(".", 1)
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", path)
    return f"blk.{found[1]}.{LAYER[found[2]]}.{kind}" if found else f"{WHOLE[path]}.{kind}"


def permuted(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Interleave the halves of each head's rows, as is done for Llama's queries and keys."""
    size = weight.shape[0] // n_heads // 2
    return weight.reshape(n_heads, 2, size, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(config: Any) -> list[float]:
    """Return by what each rotary frequency is divided under Llama 3's scaling."""
    rope, base, factors = config.rope_parameters, config.rope_parameters["rope_theta"], []
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    original = rope["original_max_position_embeddings"]
    for index in range(0, head, 2):
        length = 2 * math.pi * base ** (index / head)
        if length < original / rope["high_freq_factor"]:
            factors.append(1.0)
        elif length > original / rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (original / length - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return factors


def write_gguf(
    path: Path,
    model: Any,
    vocabulary: Callable[[gguf.GGUFWriter, int], None] | None = None,
    tensors: Mapping[str, torch.Tensor] = {},
    without: tuple[str, ...] = (),
    metadata: Mapping[str, Any] = {},
) -> Path:
    """Write a Llama, Qwen2 or LFM2 model in float32; ``tensors`` and ``metadata`` are added, ``without`` left out."""
    config, kind = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("Tiny")
    kv_heads: Any = config.num_key_value_heads
    feed_forward = config.intermediate_size
    if kind == "lfm2":
        kv_heads = [kv_heads if layer == "full_attention" else 0 for layer in config.layer_types]
        feed_forward = model.model.layers[0].feed_forward.w1.out_features
        writer.add_shortconv_l_cache(config.conv_L_cache)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps if kind == "lfm2" else config.rms_norm_eps)
    if (head := getattr(config, "head_dim", None)) is not None:
        writer.add_key_length(head)
        writer.add_value_length(head)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for name, add in (
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
        ):
            if rope.get(name) is not None:
                add(rope[name])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if kind == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head or config.hidden_size // config.num_attention_heads)
    (vocabulary or byte_vocabulary)(writer, config.vocab_size)
    for key, value in metadata.items():
        add_any(writer, key, value)
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", np.array(llama3_factors(config), np.float32))
    for name, value in model.state_dict().items():
        if (name == "lm_head.weight" and config.tie_word_embeddings) or tensor_name(name) in without:
            continue
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            value = permuted(value, config.num_attention_heads if "q_proj" in name else kv_heads)
        if "conv.conv" in name and value.ndim == 3:
            value = value.squeeze(1)
        writer.add_tensor(tensor_name(name), value.float().numpy())
    for name, value in tensors.items():
        writer.add_tensor(name, value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_any(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if key in writer.kv_data[0]:
        del writer.kv_data[0][key]
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def byte_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A token for every byte, one merge, two control tokens, and padding as the converter names it."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, "<begin>", "<end>", "he"]
    kinds = [int(TOKEN_KIND.NORMAL)] * 256 + [int(TOKEN_KIND.CONTROL)] * 2 + [int(TOKEN_KIND.NORMAL)]
    padding = [f"[PAD{index}]" for index in range(len(tokens), size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *padding])
    writer.add_token_types([*kinds, *([int(TOKEN_KIND.UNUSED)] * len(padding))])
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
