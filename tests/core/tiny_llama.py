"""A tiny Llama on disk, for the tests of loading, of runs and of the command line."""

from __future__ import annotations

from pathlib import Path


def write_tiny_llama(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from xatlas.testing import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None  # as many models have it: the end token stands at position 0
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
