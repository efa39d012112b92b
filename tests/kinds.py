"""A tiny model of every kind of block: a hybrid, a plain one, and such as adapters of third parties fit."""

from __future__ import annotations

import importlib.util
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from xatlas import HookPoint, manager
from xatlas.contracts.adapter import PreNormAdapter
from xatlas.model import HookedModel
from xatlas.testing import byte_tokenizer, tiny_hf_model, tiny_model

ROOT = Path(__file__).parents[1]


class Capped(PreNormAdapter):
    """Gemma 2: norms before and after, an embedding that is scaled, and a soft cap on the logits."""

    architectures = ("Gemma2ForCausalLM",)

    def output_projection(self, layer):
        return None

    def hook_points(self, layer):
        block = self.layer_path(layer)
        return super().hook_points(layer) | {
            "operator_out": HookPoint(f"{block}.post_attention_layernorm", "output"),
            "resid_mid": HookPoint(f"{block}.pre_feedforward_layernorm", "input", edit_as="operator_out"),
            "mlp_out": HookPoint(f"{block}.post_feedforward_layernorm", "output"),
        }

    def head_layout(self, layer):
        return None

    def logits(self, hidden):
        cap = self.model.config.final_logit_softcapping
        return torch.tanh(super().logits(hidden) / cap) * cap


class Scaled(PreNormAdapter):
    """Cohere: attention and MLP side by side, a LayerNorm without bias, and logits that are multiplied."""

    architectures = ("CohereForCausalLM",)

    def hook_points(self, layer):
        points = super().hook_points(layer)
        del points["resid_mid"]
        return points

    mlp_norm_name = "input_layernorm"

    def logits(self, hidden):
        return super().logits(hidden) * self.model.config.logit_scale


def _neox() -> Any:
    path = ROOT / "examples" / "xatlas-neox" / "xatlas_neox.py"
    spec = importlib.util.spec_from_file_location("neox_of_the_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GptNeoxAdapter


def _from_the_guide() -> Any:
    """Return the post-norm adapter that the guide begins with."""
    block = re.search(r"^```python\n(.*?)^```", (ROOT / "docs" / "adapters.md").read_text(), re.DOTALL | re.MULTILINE)
    found: dict[str, Any] = {}
    exec(block.group(1), found)
    return found["xatlas_adapters"]()[0]


def _sequential(adapter: Any) -> HookedModel:
    hf = tiny_hf_model("GPTNeoXForCausalLM", use_parallel_residual=False)
    return HookedModel(hf, byte_tokenizer(), adapter=adapter(hf))


#: Name → what makes the model.
KINDS = {name: partial(tiny_model, manager.adapters()[name]) for name in ("Lfm2ForCausalLM", "LlamaForCausalLM")} | {
    "post-norm": lambda: tiny_model(_from_the_guide()),
    "parallel, LayerNorm with bias": lambda: tiny_model(_neox()),
    "in sequence, LayerNorm with bias": lambda: _sequential(_neox()),
    "soft cap": lambda: tiny_model(Capped),
    "multiplied logits": lambda: tiny_model(Scaled),
}


@cache
def kind(name: str) -> HookedModel:
    """Return the model; tests leave its weights alone."""
    return KINDS[name]()
