"""Every registered class of transformers: the engine and the reading probes against plain hooks over whole forwards.

Module names come from ``plain_names``, not from adapters. One tiny random model a class, with a layer of every type
and windows shorter than the longest prompt.
"""

from __future__ import annotations

from functools import cache

import plain_names
import pytest
import reading
import reference as ref
import torch
from models import token_prompt

from xatlas import check_adapter, manager
from xatlas.contracts.adapter import Site
from xatlas.interventions import Add, Intervention, Mean, Zero
from xatlas.metrics import KL
from xatlas.model import HookedModel
from xatlas.suites import Suite
from xatlas.sweep import sweep
from xatlas.testing import byte_tokenizer, tiny_hf_model, tiny_suite

ALTERNATING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2}
MULTIPLIED = {"residual_multiplier": 0.6, "embedding_multiplier": 2.0, "logits_scaling": 3.0}
#: Fields of configs that make a layer of each type, windows that cut, and multipliers that are not 1.
CONFIGS = {
    "Cohere2ForCausalLM": ALTERNATING,
    "Cohere2MoeForCausalLM": ALTERNATING,
    "CwmForCausalLM": ALTERNATING,
    "DeepseekV3ForCausalLM": {"first_k_dense_replace": 1},
    "Exaone4ForCausalLM": ALTERNATING,
    "Gemma2ForCausalLM": ALTERNATING,
    "Gemma3ForCausalLM": ALTERNATING,
    "Gemma3ForConditionalGeneration": ALTERNATING,
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
SUITE = Suite("few", tiny_suite().prompts[::4])


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


def params(names):
    rare = {name for name in names if MODELS[name][0] in plain_names.RARE or name in VARIANTS}
    return [pytest.param(name, marks=pytest.mark.slow) if name in rare else name for name in names]


@pytest.fixture(params=params(MODELS))
def model(request):
    return hooked(request.param)


@pytest.mark.parametrize("name", params([name for name in MODELS if name in CONFIGS or name in VARIANTS]))
def test_the_contract_holds(name):
    """With windows, multipliers and other settings; as their config is by default, all are checked as built-ins."""
    check_adapter(hooked(name))


def test_the_tables_modules_add_up_to_what_a_layer_adds(model):
    """Holds the table itself, by plain hooks alone."""
    for layer in range(model.n_layers):
        kinds = ["resid_pre", "operator_out", "mlp_out", "resid_post"]
        kinds = [kind for kind in kinds if Site(layer, kind) in model.editable]
        found = ref.every_value(model.model, PROMPTS[0].ids, [(layer, kind) for kind in kinds])
        *parts, total = (found[layer, kind] for kind in kinds)
        torch.testing.assert_close(sum(parts), total, atol=1e-5, rtol=1e-5)
        names = plain_names.plain_names(model.model, layer)
        assert names.between == model.has(Site(layer, "resid_mid"))


def zero(value):
    return torch.zeros_like(value)


def test_ablations_of_layers_and_heads_are_those_of_plain_hooks(model):
    """Operator and MLP of a layer together at zero and at means, and one head at zero."""
    sites = [Site(layer, kind) for layer in range(model.n_layers) for kind in ("operator_out", "mlp_out")]
    generator = torch.Generator().manual_seed(4)
    means = {site: torch.randn(2, model.d_model, generator=generator) for site in sites if model.has(site)}

    def mean(site):
        first, others = means[site]
        return lambda value: torch.cat([first[None], others.expand(value.shape[1] - 1, -1)])[None]

    conditions, edits = [], []
    for layer in range(model.n_layers):
        here = [site for site in means if site.layer == layer]
        conditions += [tuple(Intervention(site, change) for site in here) for change in (Zero(), Mean())]
        edits += [[(layer, site.kind, zero) for site in here], [(layer, site.kind, mean(site)) for site in here]]
        layout = model.head_layouts[layer]
        if layout is not None:
            head = layer % layout.n_heads
            conditions.append((Intervention(Site(layer, "heads"), Zero(), heads=(head,)),))

            def without(value, head=head):
                value = value.clone()
                value[:, :, head] = 0
                return value

            edits.append([(layer, "heads", without)])
    ours = sweep(model, PROMPTS, conditions, [KL(), KL("all")], means=means)
    for row, prompt in enumerate(PROMPTS):
        clean = ref.logits(model.model, prompt.ids)
        plain = [ref.measure(prompt, clean, each)[:2] for each in ref.many_logits(model.model, prompt.ids, edits)]
        assert ref.agree(ours[:, row].T, plain)


def test_steering_at_the_readout_is_that_of_plain_hooks(model):
    """Where the layers allow it, only the last position is run, with the clean cache before it."""
    sites = [Site(layer, kind) for layer in range(model.n_layers) for kind in ("operator_out", "resid_post")]
    conditions = [(Intervention(site, Add(VECTOR), positions="last"),) for site in sites]
    ours = sweep(model, PROMPTS, conditions, [KL()])[0]

    def steered(value):
        value = value.clone()
        value[:, -1] += VECTOR
        return value

    for row, prompt in enumerate(PROMPTS):
        clean = ref.logits(model.model, prompt.ids)
        changed = ref.many_logits(model.model, prompt.ids, [[(site.layer, site.kind, steered)] for site in sites])
        plain = [ref.kl(clean[-1], each[-1]) for each in changed]
        assert ref.agree(ours[row], plain)


def test_generation_under_an_intervention_is_that_of_whole_prefixes(model):
    site, tokens = Site(model.n_layers - 2, "operator_out"), list(PROMPTS[0].ids)
    with model.intervene([Intervention(site, Add(VECTOR))]):
        ids = torch.tensor([tokens])
        more = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        ours = model.model.generate(ids, attention_mask=torch.ones_like(ids), **more)[0].tolist()
    for _ in range(4):
        logits = ref.logits(model.model, tokens, [(site.layer, site.kind, lambda value: value + VECTOR)])
        tokens.append(int(logits[-1].argmax()))
    assert ours == tokens


def test_the_reading_probes_hold(model):
    reading.assert_lens_ends_in_the_output(model, SUITE)
    reading.assert_attributions_sum(model, SUITE)
    reading.assert_patterns_are_the_models_own(model, SUITE)
    reading.assert_loss_is_hugging_faces_own(model, SUITE)
    reading.assert_card_counts_every_parameter(model, SUITE)
