"""The position that was planted is the one that is found; classes without tokens are absent, not 0."""

from __future__ import annotations

import json

import numpy as np
import pytest
import reference
from planted_patching import planted, suite

from xatlas.contracts.probe import Inputs
from xatlas.errors import XatlasError
from xatlas.plugins.position_ablation import PositionAblation
from xatlas.schema import validate
from xatlas.testing import model_with, tiny_reference, tiny_suite


def measured(model, prompts, inputs=None, **parameters):
    probe = PositionAblation(**parameters)
    dataset = probe.measure(model, prompts, inputs or Inputs())
    validate(dataset, probe)
    return dataset


def test_the_planted_position_is_the_one_that_is_found():
    dataset = measured(planted(), suite(), ablation="zero")
    kl = dataset["kl"].isel(scope=0)
    found = {
        (int(layer), str(component), str(position))
        for layer in kl["layer"]
        for component in kl["component"].values
        for position in kl["position"].values
        if float(kl.sel(layer=layer, component=component, position=position).max()) > 1e-3
    }
    assert found == {(0, "mlp", "subject"), (1, "operator", "last")}
    at = dataset.isel(scope=0)
    assert float(at["kl"].sel(layer=1, component="operator", position="last").min()) > 1


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_numbers_are_the_plain_loops(ablation):
    model = model_with(("operator_out", "conv_gate"))
    dataset = measured(model, tiny_suite(), Inputs(reference=tiny_reference()), ablation=ablation)
    prompt = next(p for p in model.read(tiny_suite()).prompts if p.positions("subject") and p.positions("other"))
    for layer, component, position in ((0, "operator", "subject"), (1, "mlp", "other"), (3, "operator", "last")):
        kind = "operator_out" if component == "operator" else "mlp_out"
        new_value = 0.0 if ablation == "zero" else average(model, layer, kind)

        def replaced(value, position=position, new_value=new_value):
            new = value.clone()
            new[:, list(prompt.positions(position))] = new_value
            return new

        clean = reference.logits(model.model, prompt.ids)[prompt.readout]
        changed = reference.logits(model.model, prompt.ids, [(layer, kind, replaced)])[prompt.readout]
        ours = dataset["kl"].sel(
            prompt=prompt.prompt.id, layer=layer, component=component, position=position, scope="last"
        )
        assert reference.agree(float(ours), reference.kl(clean, changed))


def average(model, layer, kind):
    from xatlas.contracts.adapter import Site
    from xatlas.probing.means import reference_means

    site = Site(layer, kind)
    return reference_means(model, model.read(tiny_reference()), [site]).values[site][1]


def test_a_class_without_tokens_is_nan_with_a_reason():
    dataset = measured(planted(), suite(subject=None), Inputs(reference=tiny_reference()))
    assert np.isnan(dataset["kl"].sel(position="subject")).all()
    assert np.isnan(dataset["kl_control"].sel(position="subject")).all()
    assert np.isfinite(dataset["kl"].sel(position=["first", "last"])).all()
    assert "8 of 8 prompts" in json.loads(dataset.attrs["absent"])["position subject"]


def test_all_positions_at_once_is_the_layers_ablation():
    from xatlas.plugins.layer_ablation import LayerAblation

    model = model_with(("operator_out",))
    inputs = Inputs(reference=tiny_reference())
    ours = measured(model, tiny_suite(), inputs, positions="all,last")["kl"].sel(position="all")
    layers = LayerAblation(ablations="mean").measure(model, tiny_suite(), inputs)["kl"].isel(ablation=0)
    for component in ("operator", "mlp"):
        assert reference.agree(ours.sel(component=component), layers.sel(component=component))


def test_unknown_positions_are_refused_in_one_line():
    with pytest.raises(
        XatlasError, match="positions = 'middle' does not fit: it takes a list, comma-separated, of one of first"
    ):
        measured(planted(), suite(), positions="middle")
