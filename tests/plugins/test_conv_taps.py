"""Conv taps: a tap taken away is a weight of zero, the planted tap is found, and none sees the future."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import reference as ref
import torch
from models import SHAPES, build
from planted_conv import copier, predicts_previous

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs
from xatlas.interventions import Target
from xatlas.model import HookedModel
from xatlas.plugins.conv_taps import ConvTaps, WithoutTap
from xatlas.schema import notes, validate
from xatlas.suites import Suite
from xatlas.testing import byte_tokenizer, tiny_reference, tiny_suite

SUITE = Suite("few", tiny_suite().prompts[::4])
CONV = [name for name, (_, overrides) in SHAPES.items() if "lfm2" in name and "all-attention" not in name]


def measure(hf, **parameters):
    probe = ConvTaps(**parameters)
    model = HookedModel(hf, byte_tokenizer())
    dataset = probe.measure(model, SUITE, Inputs(reference=tiny_reference()))
    validate(dataset, probe)
    return dataset, model


@pytest.mark.parametrize("name", CONV)
def test_a_tap_taken_away_is_a_weight_of_zero(name):
    kind, overrides = SHAPES[name]
    hf = build(kind, **overrides, vocab_size=260)
    dataset, model = measure(hf)
    prompts = model.read(SUITE).prompts
    width = hf.config.conv_L_cache
    assert dataset["tap"].values.tolist() == list(range(1 - width, 1))
    for layer, operator in enumerate(hf.config.layer_types):
        if operator != "conv":
            assert dataset["kl"].sel(layer=layer).isnull().all()
            continue
        for tap in range(width):
            without = copy.deepcopy(hf)
            with torch.no_grad():
                without.model.layers[layer].conv.conv.weight[:, 0, tap] = 0
            wanted = [ref.kl(ref.logits(hf, p.ids)[p.readout], ref.logits(without, p.ids)[p.readout]) for p in prompts]
            assert ref.agree(dataset["kl"].sel(layer=layer).isel(tap=tap).values[:, 0], wanted)
            assert max(wanted) > 1e-3


def test_the_tap_that_copies_the_previous_token_is_found():
    hf = copier()
    assert predicts_previous(hf)
    dataset, _ = measure(hf, scopes="last,all")
    assert (dataset["kl"].sel(layer=0, tap=-1) > 0.5).all()
    assert np.abs(dataset["kl"].sel(layer=0, tap=[-2, 0])).max() == 0
    assert np.abs(dataset["kl"].sel(layer=1)).max() == 0
    assert (dataset["kl_control"].sel(layer=0, tap=-1) > 0).all()


@pytest.mark.parametrize("back", [0, 1, 2, 5])
def test_a_tap_moves_only_what_its_token_reaches(back):
    """What a token of the past adds is taken away ``back`` tokens later, and nothing before or after it."""
    generator = torch.Generator().manual_seed(0)
    gate, carrier, signal = torch.randn(3, 1, 4, 6, generator=generator)
    gate[:, [0, 2, 3]] = 0  # the convolution sees only the token at position 1
    values = {"conv_gate": gate, "conv_carrier": carrier, "conv_signal": signal}
    context = SimpleNamespace(clean=lambda site: values[site.kind])
    change = WithoutTap(torch.ones(6), torch.eye(6), back)
    target = Target(context, Site(0, "operator_out"), None)
    moved = (change(torch.zeros(1, 4, 6), target) != 0).any(-1)[0].tolist()
    assert moved == [position == 1 + back for position in range(4)]


def test_the_control_is_as_large_as_the_change():
    """Where the stream is unembedded as it is, a change of equal norm is of the same order; no tap, no control."""
    hf = build("lfm2", vocab_size=260)
    with torch.no_grad():
        hf.model.layers[0].conv.conv.weight[:, 0, 0] = 0
    dataset, _ = measure(hf)
    assert np.abs(dataset["kl_control"].sel(layer=0, tap=-2)).max() == 0
    assert (dataset["kl_control"].sel(layer=0, tap=[-1, 0]) > 1e-4).all()


def test_a_model_without_convolutions_has_no_taps():
    dataset, _ = measure(build("llama", vocab_size=260))
    assert dataset["kl"].isnull().all()
    assert dataset.sizes["tap"] == 3
    assert "no kernel" in notes(dataset, "absent")["layer=0,1,2"]
