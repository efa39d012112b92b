"""Kernels: sizes against plain arithmetic, and against what a convolution loses without each tap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import SHAPES, build
from planted_conv import copier, predicts_previous

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs
from xatlas.model import HookedModel
from xatlas.plugins.conv_kernel import ConvKernel
from xatlas.plugins.conv_taps import ConvTaps
from xatlas.schema import notes, validate
from xatlas.testing import byte_tokenizer, tiny_reference, tiny_suite

CONV = [name for name, (_, overrides) in SHAPES.items() if "lfm2" in name and "all-attention" not in name]


def measure(hf):
    model = HookedModel(hf, byte_tokenizer())
    dataset = ConvKernel().measure(model, tiny_suite(), Inputs())
    validate(dataset, ConvKernel, model)
    return dataset, model


@pytest.mark.parametrize("name", CONV)
def test_sizes_are_weights_and_what_they_are_multiplied_with(name):
    kind, overrides = SHAPES[name]
    hf = build(kind, **overrides, vocab_size=260)
    dataset, model = measure(hf)
    width = hf.config.conv_L_cache
    assert dataset["tap"].values.tolist() == list(range(1 - width, 1))
    for layer, operator in enumerate(hf.config.layer_types):
        own = dataset.sel(layer=layer)
        if operator != "conv":
            assert own.to_array().isnull().all()
            continue
        kernel = hf.model.layers[layer].conv.conv.weight[:, 0].abs().double().numpy()
        products = []
        for prompt in model.read(tiny_suite()).prompts:
            values = model.capture(model.tokens([prompt]), [Site(layer, "conv_gate"), Site(layer, "conv_signal")])
            products.append((values[Site(layer, "conv_gate")] * values[Site(layer, "conv_signal")])[0, 1:].double())
        spread = torch.cat(products).numpy().std(0)
        np.testing.assert_allclose(own["weight_size"], kernel.mean(0), rtol=1e-6)
        np.testing.assert_allclose(own["effective_size"], (kernel * spread[:, None]).mean(0), rtol=1e-5)
        won = np.bincount(kernel.argmax(1), minlength=width) / len(kernel)
        np.testing.assert_allclose(own["dominant_share"], won)
        assert own["ahead"] < 1e-5


@pytest.mark.parametrize("tap", [-2, -1, 0])
def test_the_effective_kernel_and_the_causal_tap_agree(tap):
    """A planted tap is found by both, under the same name: 0 is the current token, and none lies ahead."""
    hf = copier()
    with torch.no_grad():
        kernel = hf.model.layers[0].conv.conv.weight[:, 0]  # (channel, tap)
        kernel.zero_()
        kernel[:, tap - 1] = 1
        hf.model.layers[1].conv.conv.weight.zero_()
    assert predicts_previous(hf) == (tap == -1)
    dataset, model = measure(hf)
    causal = ConvTaps().measure(model, tiny_suite(), Inputs(reference=tiny_reference()))["kl"].mean("prompt")
    for sizes in (dataset["weight_size"], dataset["effective_size"], dataset["dominant_share"], causal):
        sizes = sizes.sel(layer=0).squeeze()
        assert int(sizes.idxmax("tap")) == tap
        assert float(sizes.drop_sel(tap=tap).max()) == 0
    assert dataset.drop_vars("ahead").sel(layer=1).to_array().max() == 0  # a kernel of zeros: no tap has its channels


def test_where_weight_and_effective_size_differ_the_causal_tap_is_the_effective_one():
    """A large weight on channels that carry nothing."""
    hf = copier()
    with torch.no_grad():
        conv, width = hf.model.layers[0].conv, 64
        conv.conv.weight[: width // 2, 0] = torch.tensor([50.0, 0, 0])
        conv.in_proj.weight[2 * width : 2 * width + width // 2] = 0  # their signal
    dataset, model = measure(hf)
    causal = ConvTaps().measure(model, tiny_suite(), Inputs(reference=tiny_reference()))["kl"].mean("prompt")
    found = {name: dataset[name].sel(layer=0) for name in ("weight_size", "effective_size")}
    found["causal"] = causal.sel(layer=0).squeeze()
    leads = {name: int(sizes.idxmax("tap")) for name, sizes in found.items()}
    assert leads == {"weight_size": -2, "effective_size": -1, "causal": -1}


def test_what_looks_ahead_is_seen():
    """No convolution of LFM2 does; one that is shifted by a token does."""
    hf = build("lfm2", vocab_size=260)
    assert measure(hf)[0]["ahead"].sel(layer=[0, 2]).max() < 1e-6
    hf.model.layers[2].conv.register_forward_hook(lambda module, args, output: output.roll(-1, 1))
    ahead = ConvKernel().measure(HookedModel(hf, byte_tokenizer(), prove=False), tiny_suite(), Inputs())["ahead"]
    assert ahead.sel(layer=0) < 1e-6
    assert ahead.sel(layer=2) > 0.5


def test_a_convolution_without_gate_and_signal_has_weights_alone(monkeypatch):
    """As the short convolution of a state space layer has: its kernel is one, too."""
    model = HookedModel(build("lfm2", vocab_size=260), byte_tokenizer())
    for layer in (0, 2):
        for kind in ("conv_gate", "conv_signal"):
            monkeypatch.delitem(model.points[layer], kind)
    dataset = ConvKernel().measure(model, tiny_suite(), Inputs())
    validate(dataset, ConvKernel, model)
    assert dataset["weight_size"].sel(layer=[0, 2]).notnull().all()
    assert dataset["effective_size"].isnull().all()
    assert "layers 0, 2" in notes(dataset, "absent")["effective_size"]


def test_a_model_without_convolutions_has_no_kernel():
    dataset, _ = measure(build("llama", vocab_size=260))
    assert dataset.to_array().isnull().all()
    assert dataset.sizes["tap"] == 3
    assert "no kernel" in notes(dataset, "absent")["layer=0,1,2"]
