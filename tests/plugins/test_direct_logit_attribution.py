"""Attribution: what was written sums to the logit difference, and each part is what its formula says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kinds import KINDS, kind
from models import build
from reading import assert_attributions_sum, own_difference

import xatlas
from xatlas import Prompt, Site, Suite, XatlasError
from xatlas.contracts.probe import Inputs
from xatlas.model import HookedModel
from xatlas.plugins.direct_logit_attribution import DirectLogitAttribution
from xatlas.schema import notes, validate
from xatlas.testing import byte_tokenizer, tiny_suite

SUITE = Suite("few", tiny_suite().prompts[::3])


def measure(model, suite=SUITE):
    dataset = DirectLogitAttribution().measure(model, suite, Inputs())
    validate(dataset, DirectLogitAttribution, model, suite)
    return dataset


@pytest.mark.parametrize("name", KINDS)
def test_writes_heads_and_embedding_sum_to_the_logit_difference(name):
    model = kind(name)
    dataset = assert_attributions_sum(model, SUITE)
    biased = model.adapter.module(model.adapter.final_norm_path)
    assert bool((dataset.constant != 0).any()) == (getattr(biased, "bias", None) is not None)
    if name != "soft cap":
        for row, prompt in enumerate(model.read(SUITE).prompts):
            np.testing.assert_allclose(dataset.logit_diff[row], own_difference(model, prompt)[0], rtol=1e-3)


@pytest.mark.parametrize("mini", ["lfm2-mini", "qwen-mini", "smollm2-mini"])
def test_writes_and_embedding_sum_in_trained_models(mini):
    model = xatlas.load(mini, device="cpu")
    assert_attributions_sum(model, Suite("few", xatlas.manager.suites()["quick"].load().prompts[::9]))


def test_a_part_is_its_write_times_the_frozen_scale_times_the_unembedding():
    """By hand, for a norm with a bias; the operator's bias is all that its heads lack."""
    model = kind("parallel, LayerNorm with bias")
    hf, dataset = model.model, measure(model)
    norm, unembedding = hf.gpt_neox.final_layer_norm, hf.get_output_embeddings().weight
    for row, prompt in enumerate(model.read(SUITE).prompts[:4]):
        sites = [Site(3, "resid_post"), Site(0, "resid_pre"), Site(2, "mlp_out"), Site(1, "operator_out")]
        values = model.capture(model.tokens([prompt]), sites)
        final, *parts = (values[site][0, prompt.readout].double() for site in sites)
        towards = (unembedding[prompt.answer] - unembedding[prompt.foil_answer]).double()

        def read(write, final=final, towards=towards):
            scaled = (write - write.mean()) / (final.var(unbiased=False) + norm.eps).sqrt()
            return float(scaled @ (norm.weight.double() * towards))

        found = dataset.isel(prompt=row)
        constant = float(norm.bias.double() @ towards)
        np.testing.assert_allclose(found.constant, constant, rtol=1e-4)
        np.testing.assert_allclose(found.embedding, read(parts[0]) + constant, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.attribution.sel(layer=2, component="mlp"), read(parts[1]), rtol=1e-3)
        np.testing.assert_allclose(found.attribution.sel(layer=1, component="operator"), read(parts[2]), rtol=1e-3)
        bias = read(hf.gpt_neox.layers[1].attention.dense.bias.double())
        heads = found.attribution_head.sel(layer=1).sum()
        np.testing.assert_allclose(heads + bias, read(parts[2]), rtol=1e-3)


def test_a_head_is_its_own_slice_of_the_projection():
    """With all other slices at zero, one head's part is the operator's, and the others' are nothing."""
    hf = build("llama", vocab_size=260)
    with torch.no_grad():
        hf.model.layers[1].self_attn.o_proj.weight[:, :16] = 0
        hf.model.layers[1].self_attn.o_proj.weight[:, 24:] = 0
    dataset = measure(HookedModel(hf, byte_tokenizer())).sel(layer=1)
    np.testing.assert_allclose(dataset.attribution_head.sel(head=2), dataset.attribution[:, 0], rtol=1e-4)
    assert (dataset.attribution_head.sel(head=[0, 1, 3]) == 0).all()


def test_a_prompt_without_a_foil_is_nan_with_a_reason():
    suite = Suite("two", (*SUITE.prompts[:1], Prompt("plain", "sums", "3 plus 4 makes", target=" 7")))
    dataset = measure(kind("LlamaForCausalLM"), suite)
    assert dataset.attribution.sel(prompt="plain").isnull().all()
    assert dataset.attribution.isel(prompt=0).notnull().all()
    assert notes(dataset, "absent")["attribution"] == "1 of 2 prompts have no target and foil"


class Saturating(torch.nn.Module):
    """A norm of another kind, which has no scale to keep."""

    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, hidden):
        return torch.tanh(hidden) * self.weight


def test_a_norm_that_is_no_scale_is_refused_in_one_line():
    hf = build("llama", vocab_size=260)
    hf.model.norm = Saturating(32)
    with pytest.raises(XatlasError, match=r"^model\.norm is no linear map over a scale"):
        measure(HookedModel(hf, byte_tokenizer()))


def test_nothing_is_left_of_the_gradients():
    hf = build("llama", vocab_size=260)
    hf.requires_grad_(True)
    model = HookedModel(hf, byte_tokenizer())
    measure(model)
    assert all(weight.grad is None for weight in hf.parameters())
