"""Norms of the stream: per token, by position class, with the jump where it was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import build

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs
from xatlas.model import HookedModel
from xatlas.plugins.residual_norms import ResidualNorms
from xatlas.probing.reading import read_together
from xatlas.schema import notes, validate
from xatlas.suites import Prompt, Suite
from xatlas.testing import byte_tokenizer, tiny_suite

SUITE = Suite("few", (*tiny_suite().prompts[::3], Prompt("plain", "sums", "no subject here")))


def hooked():
    return HookedModel(build("llama", vocab_size=260), byte_tokenizer())


def measure(model):
    dataset = ResidualNorms().measure(model, SUITE, Inputs())
    validate(dataset, ResidualNorms)
    return dataset


def test_norms_are_means_over_the_tokens_of_a_class():
    """Not a norm over the prompt, where one spike at the first token looks like an explosion."""
    model = hooked()
    dataset, tokens = measure(model), model.read(SUITE)
    for row in (0, len(tokens) - 1):
        prompt = tokens.prompts[row]
        for kind in ("resid_pre", "resid_mid", "resid_post"):
            value = model.capture(model.tokens([prompt]), [Site(1, kind)])[Site(1, kind)][0]
            for name in ("first", "subject", "last", "other"):
                found = dataset.isel(prompt=row).sel(layer=1, site=kind, position=name)
                rows = value[list(prompt.positions(name))]
                norm = float(np.mean([row.norm() for row in rows])) if len(rows) else np.nan
                share = float(np.mean([(row.abs().max() / row.norm()) ** 2 for row in rows])) if len(rows) else np.nan
                np.testing.assert_allclose(found.norm, norm, rtol=1e-5)
                np.testing.assert_allclose(found.top_share, share, rtol=1e-5)


def test_the_norm_over_a_prompt_and_who_holds_it():
    """What is often published: here one token's, which the norms of single tokens show."""
    model = hooked()
    dataset, tokens = measure(model), model.read(SUITE)
    for row, prompt in enumerate(tokens.prompts):
        site = Site(2, "resid_mid")
        value = model.capture(model.tokens([prompt]), [site])[site][0]
        found = dataset.isel(prompt=row).sel(layer=2, site="resid_mid")
        np.testing.assert_allclose(found.frobenius, value.norm(), rtol=1e-5)
        np.testing.assert_allclose(found.token_share, (value.norm(dim=-1).max() / value.norm()) ** 2, rtol=1e-5)
    with torch.no_grad():
        model.model.model.embed_tokens.weight[model.reader.first_token] *= 1000
    spiked = measure(model).sel(layer=0, site="resid_pre")
    assert (spiked.token_share > 0.99).all()
    np.testing.assert_allclose(spiked.frobenius, spiked.norm.sel(position="first"), rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_planted_jump_and_a_planted_massive_coordinate_are_found(dtype):
    """Also where the coordinate's square is more than the number format holds."""
    model = HookedModel(build("llama", vocab_size=260, mlp_bias=True).to(dtype), byte_tokenizer())
    with torch.no_grad():
        model.model.model.layers[1].mlp.down_proj.bias[7] = 500
    dataset = measure(model)
    assert (dataset.jump_layer.dropna("prompt") == 1).all()
    after = dataset.top_share.sel(layer=[1, 2], site="resid_post", position=["first", "last", "other"])
    before = dataset.top_share.sel(layer=0, site="resid_post", position=["first", "last", "other"])
    assert after.min() > 0.9
    assert before.max() < 0.5


def test_a_prompt_without_a_subject_is_nan_with_a_reason():
    dataset = measure(hooked())
    assert np.isnan(dataset.norm.sel(prompt="plain", position="subject")).all()
    assert np.isnan(dataset.jump_layer.sel(prompt="plain", position="subject"))
    assert "position subject" in notes(dataset, "absent")


def test_reading_together_gives_what_reading_alone_gives(monkeypatch):
    model = hooked()
    alone, captures = measure(model), []
    capture = model.capture
    monkeypatch.setattr(model, "capture", lambda ids, sites: captures.append(ids) or capture(ids, sites))
    together = read_together([ResidualNorms(), ResidualNorms()], model, SUITE, [Inputs(), Inputs()])
    assert together[0].identical(alone)
    assert together[1].identical(alone)
    assert len(captures) == len({len(prompt.ids) for prompt in model.read(SUITE).prompts})  # once per bucket
