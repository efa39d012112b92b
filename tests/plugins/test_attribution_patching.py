"""The gradients are the plain loop's, and the guess is held against exact patching."""

from __future__ import annotations

import json

import numpy as np
import pytest
import reference
import torch
from models import SHAPES, VOCABULARY
from planted_patching import planted, suite

from xatlas.contracts.probe import Inputs
from xatlas.errors import XatlasError
from xatlas.plugins.activation_patching import ActivationPatching
from xatlas.plugins.attribution_patching import AttributionPatching
from xatlas.probing.patching import Pair, Pairs, Patching
from xatlas.prompts.reader import TokenPrompt
from xatlas.schema import validate
from xatlas.suites import Prompt

KINDS = ("resid_pre", "operator_out", "resid_mid", "mlp_out", "resid_post", "heads", "conv_gate")


def some_pairs():
    rng = np.random.default_rng(1)
    pairs = []
    for i, length in enumerate((5, 7, 5)):
        ids = rng.integers(3, VOCABULARY, size=length)
        twin = ids.copy()
        twin[[1, 3]] = rng.integers(3, VOCABULARY, size=2)
        clean, corrupt = (
            TokenPrompt(Prompt(f"p{i}", "f", "text"), tuple(map(int, row)), length, length - 1, 7, 11, (7,), (1, 2))
            for row in (ids, twin)
        )
        pairs.append(Pair(clean, corrupt))
    return Pairs(tuple(pairs), np.ones(3), np.zeros(3), {})


def slopes(model, pair, site, values, places):
    """Return the logit difference's derivatives on the way from the corrupt to the clean value, one per place."""
    clean, corrupt = (values[run.ids][site] for run in (pair.clean, pair.corrupt))
    steps = torch.zeros(len(places), *clean.shape)
    for step, place in zip(steps, places, strict=True):
        at = list(pair.clean.positions(place))
        step[:, at] = (clean - corrupt)[:, at]
    ways = torch.zeros(len(places), requires_grad=True)
    handles = reference._hook(model, *site, lambda value: value + torch.einsum("w,w...->...", ways, steps))
    with torch.enable_grad():
        logits = model(input_ids=torch.tensor([list(pair.corrupt.ids)]), use_cache=False).logits[0, -1]
        (result,) = torch.autograd.grad(logits[7] - logits[11], ways)
    for handle in handles:
        handle.remove()
    return result.tolist()


@pytest.mark.parametrize("name", SHAPES)
def test_attributions_are_the_plain_derivatives(shape, name):
    model = shape(name)
    kinds = [kind for kind in KINDS if model.sites(kind)]
    pairs, places = some_pairs(), ("subject", "last", "other")
    ours = Patching(model, pairs, kinds, places).attribution()
    assert ours.dims == ("prompt", "layer", "site", "position")
    assert ours.shape == (3, model.n_layers, len(kinds), 3)
    sites = [(site.layer, kind) for kind in kinds for site in model.sites(kind)]
    for row, pair in enumerate(pairs.pairs):
        values = {run.ids: reference.every_value(model.model, run.ids, sites) for run in (pair.clean, pair.corrupt)}
        for layer, kind in sites:
            expected = slopes(model.model, pair, (layer, kind), values, places)
            assert reference.agree(ours[row, layer, kinds.index(kind)], expected), (layer, kind)
    absent = np.isnan(ours).all(axis=(0, 3))  # (layer, site)
    assert absent.sum() == sum(model.n_layers - len(model.sites(kind)) for kind in kinds)


def test_weights_get_no_gradient(shape):
    model = shape("qwen2")
    Patching(model, some_pairs(), ("mlp_out",), ("last",)).attribution()
    assert all(weight.grad is None for weight in model.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def measured(model=None, **parameters):
    probe = AttributionPatching(**parameters)
    dataset = probe.measure(model or planted(), suite(), Inputs())
    validate(dataset, probe)
    return dataset


def test_only_what_was_planted_gets_any():
    dataset = measured()
    exact = ActivationPatching(modes="denoise").measure(planted(), suite(), Inputs())["recovery"].isel(mode=0)
    guess = dataset["attribution"].transpose(*exact.dims)
    planted_there = (exact > 0.5).values
    assert (guess.values[planted_there] > 0.3).all()
    np.testing.assert_allclose(
        guess.values[~planted_there], np.where(np.isnan(exact.values), np.nan, 0)[~planted_there], atol=1e-6
    )


def test_its_rank_correlation_to_exact_patching_is_stored():
    model = weak_second_mover()
    dataset = measured(model, exact_prompts=3)
    stored = dict(zip(dataset["site"].values, dataset["rank_correlation"].values, strict=True))
    assert stored["operator_out"] == pytest.approx(1)
    assert -1 <= stored["resid_post"] <= 1
    assert np.isnan(measured(model, exact_prompts=0)["rank_correlation"]).all()


def weak_second_mover():
    """Return a model whose second head moves half as much, so that there is something to rank."""
    model = planted((1, 2))
    model.model.model.layers[2].self_attn.o_proj.weight.mul_(0.5)
    return model


def test_missing_correlations_have_a_reason():
    dataset = measured(exact_prompts=0)
    assert "no prompt was patched exactly" in json.loads(dataset.attrs["absent"])["rank_correlation"]


def test_a_suite_without_twins_is_refused():
    with pytest.raises(XatlasError, match="Families with a foil: f0, f1; with a corrupt_text: none"):
        AttributionPatching().measure(planted(), suite(corrupt_text=None), Inputs())


def test_a_part_of_the_pairs_is_spread_over_the_suite():
    assert [pair.clean.prompt.id for pair in some_pairs().take(2).pairs] == ["p0", "p2"]
