"""The two models of the sweep benchmark, their prompts and their conditions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from xatlas import HookedModel, Intervention, Prompt, Site
from xatlas.interventions import Mean, RandomDirection
from xatlas.loading.loader import load
from xatlas.loading.model_names import resolve
from xatlas.manager import suites
from xatlas.prompts.reader import TokenPrompt, TokenSuite

#: Layers of LFM2.5-230M that attend; the other eight convolve.
ATTENTION_LAYERS = (2, 4, 6, 8, 10, 12)


@dataclass
class Case:
    """A model with the prompts that it is measured on."""

    name: str
    model: HookedModel
    prompts: list[TokenPrompt]
    reference: TokenSuite


def smollm2(n_prompts, bucket, device, dtype):
    """Return SmolLM2-135M-Instruct, trained weights that were quantised to 4 bits, on the standard suite."""
    parts = load(resolve("smollm2-135m-q4"), device=device, dtype=dtype)
    model = HookedModel(parts.model, parts.tokenizer, slug="smollm2-135m-q4")
    prompts = [up_to_readout(item) for item in model.read(suites()["standard"].load()).prompts]
    reference = model.read(suites()["train"].load())
    return Case("smollm2-135m-q4", model, in_buckets(prompts, n_prompts, bucket), reference)


def lfm2_shape(n_prompts, bucket, device, dtype):
    """Return a random model of LFM2.5-230M's shape; its prompts are random tokens, 12 to 40 of them."""
    model = _random_lfm2(device, dtype)
    suite = TokenSuite(tuple(random_prompts(n_prompts, bucket, model.config.vocab_size, seed=1)))
    reference = TokenSuite(tuple(random_prompts(80, 4, model.config.vocab_size, seed=2)))
    return Case("lfm2.5-230m-shape", HookedModel(model, None, slug="lfm2-shape"), list(suite.prompts), reference)


def lfm2_reading(device, dtype):
    """Return the same random model with the miniatures' tokenizer, so that it can read a suite."""
    tokenizer = load(resolve("lfm2-mini")).tokenizer
    return HookedModel(_random_lfm2(device, dtype), tokenizer, slug="lfm2.5-230m-shape")


def _random_lfm2(device, dtype):
    """Weights are drawn wider than usual, so that ablations move the logits by more than rounding does."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=65536,
        hidden_size=1024,
        intermediate_size=2560,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=14,
        layer_types=["full_attention" if i in ATTENTION_LAYERS else "conv" for i in range(14)],
        num_attention_heads=16,
        num_key_value_heads=8,
        initializer_range=0.04,
    )
    model = Lfm2ForCausalLM(config).eval().requires_grad_(False)
    return model.to(dtype=getattr(torch, dtype), device=device)


def random_prompts(number, bucket, vocabulary, seed):
    """Return prompts of random tokens, ``bucket`` of each length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(12, 41, (-(-number // bucket),), generator=generator)
    lengths = lengths.repeat_interleave(bucket)[:number]
    prompts = []
    for index, length in enumerate(lengths.tolist()):
        ids = tuple(torch.randint(5, vocabulary, (length,), generator=generator).tolist())
        prompt = Prompt(id=f"random-{seed}-{index}", family="random", text="-")
        prompts.append(TokenPrompt(prompt, ids, length, length - 1, None, None, (), ()))
    return prompts


def up_to_readout(item):
    """Cut a prompt after its readout: the last position is read, and no method runs what it needn't."""
    end = item.readout + 1
    return replace(item, ids=item.ids[:end], n_text=end, target_ids=item.target_ids[:1])


def layer_conditions(model):
    """Return conditions of the layer sweep, and for each the ablation that it controls, or None."""
    conditions, controls = [], []
    for layer in range(model.n_layers):
        parts = [Intervention(Site(layer, kind), Mean()) for kind in ("operator_out", "mlp_out")]
        for ablation, kind in (
            ((parts[0],), "operator_out"),
            ((parts[1],), "mlp_out"),
            (tuple(parts), "resid_post"),
        ):
            conditions += [ablation, (Intervention(Site(layer, kind), RandomDirection(ablation)),)]
            controls += [None, ablation]
    return conditions, controls


def head_conditions(model):
    """Return conditions of the head sweep, likewise."""
    conditions, controls = [], []
    for layer, layout in enumerate(model.head_layouts):
        for head in range(layout.n_heads if layout else 0):
            site = Site(layer, "heads")
            ablation = (Intervention(site, Mean(), heads=(head,)),)
            conditions += [ablation, (Intervention(site, RandomDirection(ablation), heads=(head,)),)]
            controls += [None, ablation]
    return conditions, controls


def in_buckets(prompts, number, bucket):
    """Choose prompts so that ``bucket`` share each length: lengths spread evenly over those that are common."""
    by_length = {}
    for item in prompts:
        by_length.setdefault(len(item.ids), []).append(item)
    full = [by_length[length][:bucket] for length in sorted(by_length) if len(by_length[length]) >= bucket]
    groups = -(-number // bucket)
    chosen = [full[int((i + 0.5) * len(full) / groups)] for i in range(min(groups, len(full)))]
    return [item for group in chosen for item in group][:number]
