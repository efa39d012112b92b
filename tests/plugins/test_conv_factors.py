"""Conv factors: the reference loop's numbers, the algebra of zero, and what a planted convolution needs."""

from __future__ import annotations

import numpy as np
import pytest
import reference as ref
import torch
from models import SHAPES, build
from planted_conv import copier

from xatlas.contracts.probe import Inputs
from xatlas.model import HookedModel
from xatlas.plugins.conv_factors import FACTORS, ConvFactors
from xatlas.schema import notes, validate
from xatlas.suites import Suite
from xatlas.testing import byte_tokenizer, tiny_reference, tiny_suite

SUITE = Suite("few", tiny_suite().prompts[::4])
CONV = [name for name, (_, overrides) in SHAPES.items() if "lfm2" in name and "all-attention" not in name]


def measure(hf, ablations):
    probe = ConvFactors(ablations=ablations)
    model = HookedModel(hf, byte_tokenizer())
    dataset = probe.measure(model, SUITE, Inputs(reference=tiny_reference()))
    validate(dataset, probe)
    return dataset, model.read(SUITE).prompts


@pytest.mark.parametrize("name", CONV)
def test_factors_give_the_numbers_of_the_reference_loop(name):
    kind, overrides = SHAPES[name]
    hf = build(kind, **overrides, vocab_size=260)
    dataset, prompts = measure(hf, "zero,one")
    for layer, operator in enumerate(hf.config.layer_types):
        for factor, site in FACTORS.items():
            for ablation, change in (("zero", torch.zeros_like), ("one", torch.ones_like)):
                ours = dataset["kl"].sel(layer=layer, factor=factor, ablation=ablation).values[:, 0]
                if operator != "conv" or (factor, ablation) == ("signal", "one"):
                    assert np.isnan(ours).all()
                    continue
                edit = [(layer, site, change)]
                wanted = [
                    ref.kl(ref.logits(hf, p.ids)[p.readout], ref.logits(hf, p.ids, edit)[p.readout]) for p in prompts
                ]
                assert ref.agree(ours, wanted)
                assert max(wanted) > 1e-3


@pytest.mark.parametrize("biased", [False, True])
def test_zero_is_algebra_and_mean_is_not(biased):
    """A product with a factor of zero is zero whichever it is; only a bias tells the carrier apart."""
    dataset, _ = measure(build("lfm2", vocab_size=260, conv_bias=biased), "zero,mean")
    kl = dataset["kl"].sel(layer=[0, 2])
    zero, mean = kl.sel(ablation="zero"), kl.sel(ablation="mean")
    assert ref.agree(zero.sel(factor="gate"), zero.sel(factor="signal"))
    assert ref.agree(zero.sel(factor="gate"), zero.sel(factor="carrier")) is not biased
    assert not ref.agree(mean.sel(factor="gate"), mean.sel(factor="signal"))


def test_a_factor_that_is_constant_carries_nothing():
    """In the copying convolution gate and carrier are 1 everywhere: all that it tells is in the signal."""
    dataset, _ = measure(copier(), "mean,one")
    first = dataset["kl"].sel(layer=0)
    assert np.abs(first.sel(factor=["gate", "carrier"])).max() < 1e-6
    assert (first.sel(factor="signal", ablation="mean") > 0.5).all()
    assert np.abs(dataset["kl"].sel(layer=1, ablation="mean")).max() < 1e-5


def test_controls_are_of_the_changed_factor():
    hf = copier()
    dataset, _ = measure(hf, "mean")
    control = dataset["kl_control"].sel(layer=0)
    assert np.abs(control.sel(factor=["gate", "carrier"])).max() < 1e-6
    assert (control.sel(factor="signal") > 1e-3).all()


def test_what_is_absent_has_a_reason():
    dataset, _ = measure(build("llama", vocab_size=260), "mean,one")
    assert dataset["kl"].isnull().all()
    assert dataset["factor"].values.tolist() == ["gate", "carrier", "signal"]
    assert "no factors" in notes(dataset, "absent")["layer=0,1,2"]
    dataset, _ = measure(build("lfm2", vocab_size=260), "one")
    assert "bypassed" in notes(dataset, "absent")["factor=signal & ablation=one"]
