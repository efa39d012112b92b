"""Every registered class of transformers: the engine and the reading probes against plain hooks over whole forwards.

Module names come from ``plain_names``, not from adapters. One tiny random model a class, made in ``every_class``, with
a layer of every type and windows shorter than the longest prompt.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import plain_names
import pytest
import reading
import reference as ref
import torch
from every_class import CONFIGS, MODELS, PROMPTS, VARIANTS, VECTOR, ablations, hooked, stated, steering, suggested

from xatlas import XatlasError, check_adapter
from xatlas.contracts.adapter import Site
from xatlas.interventions import Add, Intervention
from xatlas.suites import Suite
from xatlas.testing import tiny_suite

#: What the page of architectures is made of.
WRITTEN = json.loads((Path(__file__).parents[2] / "docs" / "architectures.json").read_text())["classes"]
SUITE = Suite("few", tiny_suite().prompts[::4])


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


def test_ablations_of_layers_and_heads_are_those_of_plain_hooks(model):
    for ours, plain in ablations(model).values():
        assert ref.agree(ours, plain)
        assert np.median(plain) > 10 * ref.ABSOLUTE  # else agreement would say nothing


def test_steering_at_the_readout_is_that_of_plain_hooks(model):
    ours, plain = steering(model)
    assert ref.agree(ours, plain)
    assert np.median(plain) > 10 * ref.ABSOLUTE


@pytest.mark.parametrize("name", params(sorted(WRITTEN)))
def test_the_page_says_what_the_adapter_states(name):
    """A class without a row is told as not measured."""
    measured = ("gaps", "suggested")
    assert {key: value for key, value in WRITTEN[name].items() if key not in measured} == stated(hooked(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_the_page_says_what_comes_of_a_suggested_adapter(name):
    assert WRITTEN[name]["suggested"] == suggested(name)


def test_routers_logits_are_those_by_which_experts_are_chosen(model):
    """What the module itself returns first: logits, or shares of them."""
    ids, sites, own = torch.tensor([PROMPTS[0].ids] * 2), model.sites("router"), {}
    with contextlib.ExitStack() as stack:
        for site in sites:
            module = model.adapter.module(model.point(site).module)
            keep = lambda _, __, output, site=site: own.setdefault(site, output)  # noqa: E731
            stack.callback(module.register_forward_hook(keep).remove)
        found = model.capture(ids, sites)
    for site in sites:
        logits = found[site]
        assert logits.shape[:2] == ids.shape
        assert logits.std(-1).min() > 1e-3
        parts = own[site] if isinstance(own[site], tuple) else (own[site],)
        forms = (logits, logits.softmax(-1), logits.sigmoid())
        alike = [part for part in parts if part.numel() == logits.numel()]
        assert any(torch.allclose(part.reshape(form.shape), form, atol=1e-5) for part in alike for form in forms)
        with pytest.raises(XatlasError, match="can be read, not changed"):
            Intervention(site, Add(VECTOR))


def test_attention_is_what_the_class_has(model):
    assert model.adapter.supports_sdpa == type(model.model)._supports_sdpa


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
