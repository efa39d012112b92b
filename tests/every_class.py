"""A tiny model of every registered class, with a layer of every type, and what it is held to: plain hooks.

Tests demand that both agree; ``docs/measure.py`` writes down by how much they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import reference as ref
import torch
from models import token_prompt

from xatlas import manager
from xatlas.architectures.suggest.suggestion import suggest
from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.interventions import Add, Intervention, Mean, Zero
from xatlas.metrics import KL
from xatlas.model import HookedModel
from xatlas.model.hooks import has_steps
from xatlas.sweep import sweep
from xatlas.testing import byte_tokenizer, tiny_hf_model
from xatlas.vocabulary import SITE_KINDS

ALTERNATING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2}
MULTIPLIED = {"residual_multiplier": 0.6, "embedding_multiplier": 2.0, "logits_scaling": 3.0}
#: Fields of configs that make a layer of each type, windows that cut, and multipliers that are not 1.
CONFIGS = {
    "AfmoeForCausalLM": ALTERNATING | {"num_dense_layers": 1},
    "Cohere2ForCausalLM": ALTERNATING,
    "Cohere2MoeForCausalLM": ALTERNATING,
    "CwmForCausalLM": ALTERNATING,
    "DeepseekV3ForCausalLM": {"first_k_dense_replace": 1},
    "Exaone4ForCausalLM": ALTERNATING,
    "Gemma2ForCausalLM": ALTERNATING,
    "Gemma3ForCausalLM": ALTERNATING,
    "Gemma3ForConditionalGeneration": ALTERNATING,
    "GPTNeoForCausalLM": {"window_size": 6},
    "GptOssForCausalLM": ALTERNATING,
    "GraniteForCausalLM": MULTIPLIED,
    "GraniteMoeForCausalLM": MULTIPLIED,
    "GraniteMoeSharedForCausalLM": MULTIPLIED | {"shared_intermediate_size": 24},
    "GraniteSWAForCausalLM": MULTIPLIED | ALTERNATING,
    "HyperCLOVAXForCausalLM": MULTIPLIED,
    "FalconH1ForCausalLM": {
        **{"attention_out_multiplier": 0.7, "ssm_out_multiplier": 1.3},
        **{"embedding_multiplier": 2.0, "lm_head_multiplier": 0.5},
    },
    "GraniteMoeHybridForCausalLM": MULTIPLIED | {"layer_types": ["linear_attention", "full_attention"] * 2},
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"] * 2},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"] * 2},
    "Lfm2VlForConditionalGeneration": {"layer_types": ["conv", "full_attention"] * 2},
    "Lfm3ForCausalLM": {"sliding_window": 6, "layer_types": ["conv", "sliding_attention", "full_attention", "conv"]},
    "MiniCPM3ForCausalLM": {"dim_model_base": 32, "scale_emb": 1},  # by default nothing would change the logits
    "MinistralForCausalLM": ALTERNATING,
    "Ministral3ForCausalLM": {"sliding_window": 6},
    "MistralForCausalLM": {"sliding_window": 6},
    "MixtralForCausalLM": {"sliding_window": 6},
    "Olmo3ForCausalLM": ALTERNATING,
    "Phi3ForCausalLM": {"sliding_window": 6},
    "PhimoeForCausalLM": {"sliding_window": 6},
    "Qwen2ForCausalLM": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "Qwen2MoeForCausalLM": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "Qwen3ForCausalLM": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "Qwen3MoeForCausalLM": {"use_sliding_window": True, "sliding_window": 6, "mlp_only_layers": [1]},
    "RecurrentGemmaForCausalLM": {"attention_window_size": 6},
    "Starcoder2ForCausalLM": {"sliding_window": 6},
    "VaultGemmaForCausalLM": ALTERNATING,
}
#: Models of some classes that differ by their config.
VARIANTS = {
    "Falcon, a head of keys each": ("FalconForCausalLM", {"multi_query": False, "bias": True}),
    "Falcon, grouped": ("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon, in sequence, ALiBi": ("FalconForCausalLM", {"parallel_attn": False, "alibi": True}),
    "GPT-BigCode, a head of keys each": ("GPTBigCodeForCausalLM", {"multi_query": False}),
    "GPT-NeoX, in sequence": ("GPTNeoXForCausalLM", {"use_parallel_residual": False}),
    "HyperCLOVA X, pre-norm": ("HyperCLOVAXForCausalLM", MULTIPLIED | {"use_post_norm": False}),
    "StableLM, parallel": ("StableLmForCausalLM", {"use_parallel_residual": True}),
}
MODELS = {name: (name, CONFIGS.get(name, {})) for name in sorted(manager.adapters())} | VARIANTS
#: Two different ones of equal length, and one that is longer than the windows.
PROMPTS = [token_prompt("a", 5), token_prompt("b", 5, seed=1), token_prompt("c", 9)]
VECTOR = torch.linspace(-1, 1, 32)


@cache
def hooked(name):
    """Return a model, which tests leave as it is."""
    architecture, config = MODELS[name]
    hf = tiny_hf_model(architecture, **config)
    adapter = manager.adapters()[architecture](hf)
    norm = getattr(adapter.module(adapter.final_norm_path), "weight", None)
    if norm is not None:
        with torch.no_grad():
            norm.add_(3.0)  # as in trained models, tokens differ by more than rounding
    return HookedModel(hf, byte_tokenizer())


def zero(value: Any) -> Any:
    return torch.zeros_like(value)


def ablations(model: HookedModel) -> dict[str, tuple[Any, Any]]:
    """Return the engine's numbers and those of plain hooks ``(condition, prompt, metric)``, of layers and of heads.

    Operator and MLP of a layer together at zero and at means, and one head of every layer that has heads at zero.
    """
    sites = [Site(layer, kind) for layer in range(model.n_layers) for kind in ("operator_out", "mlp_out")]
    generator = torch.Generator().manual_seed(4)
    means = {site: torch.randn(2, model.d_model, generator=generator) for site in sites if model.has(site)}

    def mean(site: Site) -> Callable[[Any], Any]:
        first, others = means[site]
        return lambda value: torch.cat([first[None], others.expand(value.shape[1] - 1, -1)])[None]

    conditions, edits, of = [], [], []
    for layer in range(model.n_layers):
        here = [site for site in means if site.layer == layer]
        conditions += [tuple(Intervention(site, change) for site in here) for change in (Zero(), Mean())]
        edits += [[(layer, site.kind, zero) for site in here], [(layer, site.kind, mean(site)) for site in here]]
        of += ["layers", "layers"]
        layout = model.head_layouts[layer]
        if layout is not None:
            head = layer % layout.n_heads
            conditions.append((Intervention(Site(layer, "heads"), Zero(), heads=(head,)),))

            def without(value: Any, head: int = head) -> Any:
                value = value.clone()
                value[:, :, head] = 0
                return value

            edits.append([(layer, "heads", without)])
            of.append("heads")
    ours = sweep(model, PROMPTS, conditions, [KL(), KL("all")], means=means).transpose(2, 1, 0)
    plain = np.empty_like(ours)
    for row, prompt in enumerate(PROMPTS):
        clean = ref.logits(model.model, prompt.ids)
        plain[:, row] = [ref.measure(prompt, clean, one)[:2] for one in ref.many_logits(model.model, prompt.ids, edits)]
    rows = {word: [at for at, each in enumerate(of) if each == word] for word in dict.fromkeys(of)}
    return {word: (ours[at], plain[at]) for word, at in rows.items()}


def steering(model: HookedModel) -> tuple[Any, Any]:
    """Return both numbers ``(condition, prompt)`` where a vector is added at the readout.

    Where the layers allow it, the engine runs the last position alone, with the clean cache before it.
    """
    sites = [Site(layer, kind) for layer in range(model.n_layers) for kind in ("operator_out", "resid_post")]
    conditions = [(Intervention(site, Add(VECTOR), positions="last"),) for site in sites]
    ours = sweep(model, PROMPTS, conditions, [KL()])[0].T

    def steered(value: Any) -> Any:
        value = value.clone()
        value[:, -1] += VECTOR
        return value

    plain = np.empty_like(ours)
    for row, prompt in enumerate(PROMPTS):
        clean = ref.logits(model.model, prompt.ids)
        changed = ref.many_logits(model.model, prompt.ids, [[(site.layer, site.kind, steered)] for site in sites])
        plain[:, row] = [ref.kl(clean[-1], each[-1]) for each in changed]
    return ours, plain


def stated(model: HookedModel) -> dict[str, Any]:
    """Return what the adapter states of the model: its operators, whose layers have heads, its sites, and its steps."""
    kinds = {kind for points in model.points for kind in points}
    return {
        "operators": list(dict.fromkeys(model.operator_types)),
        "heads": list(dict.fromkeys(model.operator_types[site.layer] for site in model.sites("heads"))),
        "sites": [kind for kind in [*SITE_KINDS, *model.adapter.extra_kinds] if kind in kinds],
        "steps": has_steps(model),
    }


def suggested(name: str) -> dict[str, Any]:
    """Return what the check says of the adapter suggested for a class, nothing where it passes, and its questions."""
    try:
        found = suggest(name)
    except XatlasError as error:
        return {"verdict": str(error), "questions": 0}
    return {"verdict": found.verdict, "questions": len(found.questions)}
