"""What is kept of a forward stays as it was read, also in models that write over it later, in place."""

from __future__ import annotations

from types import MethodType

import numpy as np
import pytest
import reference as ref
import torch
from models import VOCABULARY, build, token_prompt

from xatlas.contracts.adapter import Adapter, HookPoint, Site
from xatlas.interventions import Add, FromRun, Intervention, Mean, Zero
from xatlas.metrics import KL
from xatlas.model import HookedModel
from xatlas.probing.patching import gradients
from xatlas.sweep import Budget, sweep
from xatlas.testing import tiny_hf_model

IDS = torch.tensor([[5, 17, 60, 3, 44], [9, 2, 71, 30, 8]])
PROMPTS = [token_prompt("a", 5, 1), token_prompt("b", 5, 1, seed=1), token_prompt("c", 7, 1)]
KINDS = ("resid_pre", "operator_out", "resid_mid", "mlp_out", "resid_post")


class FalconAdapter(Adapter):
    """Attention and MLP side by side; the attention's output is added into the MLP's, in place."""

    architectures = ("FalconForCausalLM",)
    layers_path = "transformer.h"
    embedding_path = "transformer.word_embeddings"
    final_norm_path = "transformer.ln_f"

    def operator_type(self, layer):
        return "attention"

    def roles(self, layer):
        return {"mlp.down": f"{self.layer_path(layer)}.mlp.dense_4h_to_h"}

    def hook_points(self, layer):
        block = self.layer_path(layer)
        return {
            "resid_pre": HookPoint(block, "input"),
            "operator_out": HookPoint(f"{block}.self_attention", "output"),
            "mlp_out": HookPoint(f"{block}.mlp", "output"),
            "resid_post": HookPoint(block, "output"),
        }


def falcon():
    return tiny_hf_model("FalconForCausalLM", vocab_size=VOCABULARY, num_hidden_layers=3, parallel_attn=True, bias=True)


def adding_in_place():
    """Return a tiny Llama whose layers add to the stream in place, over what they were given."""

    def forward(self, hidden_states, **kwargs):
        hidden_states += self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
        hidden_states += self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states

    hf = build("llama")
    for layer in hf.model.layers:
        layer.forward = MethodType(forward, layer)
    return hf


def test_captured_and_recorded_values_are_those_of_hooks_that_copy():
    hf = falcon()
    model = HookedModel(hf, None, adapter=FalconAdapter(hf))
    assert model.overwritten == {Site(layer, "mlp_out") for layer in range(3)}
    sites = [site for kind in ("operator_out", "mlp_out", "resid_post") for site in model.sites(kind)]
    plain = {}
    handles = []
    for site in sites:
        point = model.point(site)

        def keep(_, __, output, site=site):
            plain[site] = (output[0] if isinstance(output, tuple) else output).clone()

        handles.append(hf.get_submodule(point.module).register_forward_hook(keep))
    with torch.no_grad():
        hf(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    captured, recorded = model.capture(IDS, sites), model.record(IDS, sites).values
    unproved = HookedModel(hf, None, adapter=FalconAdapter(hf), prove=False).capture(IDS, sites)
    for site in sites:
        for values in (captured, recorded, unproved):
            torch.testing.assert_close(values[site], plain[site], atol=1e-6, rtol=1e-5)


def test_gradients_belong_to_the_values_that_were_read():
    hf = falcon()
    model, step = HookedModel(hf, None, adapter=FalconAdapter(hf)), 1e-3
    site, prompt = Site(1, "mlp_out"), PROMPTS[0]
    value, gradient = gradients(model, [prompt], [site])[site]
    torch.testing.assert_close(value, model.capture(model.tokens([prompt]), [site])[site])

    def difference(sign):
        def nudge(_, __, output):
            output = output.double().to(output.dtype).clone()
            output[0, 2, 5] += sign * step
            return output

        handle = hf.transformer.h[1].mlp.register_forward_hook(nudge)
        with torch.no_grad():
            logits = hf(input_ids=model.tokens([prompt]), use_cache=False).logits[0, -1]
        handle.remove()
        return float(logits[prompt.answer] - logits[prompt.foil_answer])

    assert (difference(1) - difference(-1)) / (2 * step) == pytest.approx(float(gradient[0, 2, 5]), rel=0.05, abs=2e-3)


@pytest.fixture(scope="module")
def plain():
    """A model that writes over its input, and what the plain loop gives for each site ``(prompt, site, change)``."""
    hf, vector = adding_in_place(), torch.linspace(-1, 1, 32)
    sites = [(layer, kind) for layer in range(3) for kind in KINDS]
    found = np.zeros((len(PROMPTS), len(sites), 5))

    def mean(value):
        return torch.cat([vector.expand_as(value[:, :1]), -vector.expand_as(value[:, 1:])], 1)

    for row, prompt in enumerate(PROMPTS):
        clean = ref.logits(hf, prompt.ids)[prompt.readout]
        there = ref.every_value(hf, prompt.ids[::-1], sites)

        def last(value, at=prompt.readout):
            value = value.clone()
            value[:, at] += vector
            return value

        for column, site in enumerate(sites):
            changes = [torch.zeros_like, lambda value: value + vector, mean, lambda _, new=there[site]: new, last]
            logits = ref.many_logits(hf, prompt.ids, [[(*site, change)] for change in changes])
            found[row, column] = [ref.kl(clean, each[prompt.readout]) for each in logits]
    return hf, found


@pytest.mark.parametrize("budget", [Budget(), Budget(stream_bytes=10_500, tile_tokens=8)])
@pytest.mark.parametrize("metrics", [[KL()], [KL(), KL("all")]])
def test_the_engine_agrees_with_the_plain_loop_where_layers_write_over_their_input(plain, budget, metrics):
    hf, wanted = plain
    model = HookedModel(hf, None)
    assert {Site(1, "resid_pre"), Site(2, "resid_mid")} <= set(model.overwritten)
    sites = [Site(layer, kind) for layer in range(3) for kind in KINDS]
    donors, vector = [p.ids[::-1] for p in PROMPTS], torch.linspace(-1, 1, 32)
    means = {site: torch.stack([vector, -vector]) for site in sites}
    conditions = [(Intervention(s, c),) for s in sites for c in (Zero(), Add(vector), Mean(), FromRun("donor"))]
    ours = sweep(model, PROMPTS, conditions, metrics, runs={"donor": donors}, means=means, budget=budget)
    assert ref.agree(ours[0].reshape(len(PROMPTS), len(sites), 4), wanted[..., :4])
    at_last = [(Intervention(s, Add(vector), positions="last"),) for s in sites]
    assert ref.agree(sweep(model, PROMPTS, at_last, metrics, budget=budget)[0], wanted[..., 4])


def test_models_that_write_over_nothing_are_not_copied(shape):
    for name in ("llama", "qwen2", "lfm2"):
        assert shape(name).overwritten == frozenset()
