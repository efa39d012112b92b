"""Components that stand in for each other interact, those that work in a row do too, others don't."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from planted_patching import planted, suite

from xatlas.contracts.probe import Inputs, Requirement
from xatlas.errors import XatlasError
from xatlas.plugins.layer_ablation import LayerAblation
from xatlas.plugins.pairwise_ablation import PairwiseAblation, strongest
from xatlas.schema import validate

EVERY = "L0.operator,L0.mlp,L1.operator,L1.mlp,L2.operator,L2.mlp"


def measured(model, inputs=None, **parameters):
    probe = PairwiseAblation(**{"ablation": "zero", **parameters})
    dataset = probe.measure(model, suite(), inputs or Inputs())
    validate(dataset, probe)
    return dataset


def pair(dataset, variable, one, other):
    return dataset[variable].sel(component=one, component_other=other).values


def test_redundant_heads_interact_and_nothing_else_does():
    dataset = measured(planted((1, 2)), components=EVERY)
    heads = pair(dataset, "interaction", "L1.operator", "L2.operator")
    assert (heads > 3).all()  # alone, neither is missed
    assert (pair(dataset, "kl_joint", "L1.operator", "L1.operator") < 1e-3).all()
    rest = dataset["interaction"].copy()
    for one, other in (("L1.operator", "L2.operator"), ("L2.operator", "L1.operator")):
        rest.loc[{"component": one, "component_other": other}] = 0
    assert float(np.abs(rest).max()) < 1e-3


def test_components_in_a_row_cost_no_more_together():
    dataset = measured(planted(), components="L0.mlp,L1.operator")
    alone = pair(dataset, "kl_joint", "L0.mlp", "L0.mlp")
    assert (alone > 3).all()
    np.testing.assert_allclose(pair(dataset, "interaction", "L0.mlp", "L1.operator"), -alone, rtol=1e-4)


def test_joint_and_singles_are_the_plain_loops():
    model = planted((1, 2), strength=3.0)
    dataset = measured(model, components="L0.operator,L1.operator,L1.mlp,L2.operator,L0.mlp")
    prompt = model.read(suite()).prompts[3]
    clean = reference.logits(model.model, prompt.ids)[prompt.readout]
    kinds = {"operator": "operator_out", "mlp": "mlp_out"}
    for one, other in (("L1.operator", "L2.operator"), ("L0.mlp", "L1.operator"), ("L1.operator", "L1.operator")):
        edits = [(int(n[1]), kinds[n[3:]], lambda value: value * 0) for n in sorted({one, other})]
        changed = reference.logits(model.model, prompt.ids, edits)[prompt.readout]
        ours = pair(dataset, "kl_joint", one, other)[3]
        assert reference.agree(ours, reference.kl(clean, changed))
        assert ours == pytest.approx(pair(dataset, "kl_joint", other, one)[3])


def test_the_strongest_components_of_layer_ablation_are_paired_by_default():
    probe = PairwiseAblation()
    assert probe.requires == (Requirement("layer_ablation"),)
    assert PairwiseAblation(components=EVERY).requires == ()
    layers = LayerAblation(ablations="zero").measure(planted(), suite(), Inputs())
    assert strongest(layers, "zero", 2) == ["L0.mlp", "L1.operator"]
    dataset = measured(planted(), Inputs(results={"layer_ablation": layers}), strongest=3)
    assert {"L0.mlp", "L1.operator"} < set(dataset["component"].values)
    assert dataset.sizes["component"] == 3
    with pytest.raises(XatlasError, match="measured without ablation 'mean'"):
        measured(planted(), Inputs(results={"layer_ablation": layers}), ablation="mean")


@pytest.mark.parametrize(
    ("components", "told"),
    [
        ("L0.mlp,L9.mlp", "unknown component 'L9.mlp'. Valid: L0 to L2, then .operator or .mlp."),
        ("L0.mlp,L1.attention", "unknown component 'L1.attention'"),
        ("mlp,operator", "unknown component 'mlp'"),
        ("L0.mlp", "one component makes no pair"),
        ("L0.mlp,L0.mlp", "one component makes no pair"),
    ],
)
def test_bad_names_are_told_in_one_line(components, told):
    with pytest.raises(XatlasError) as caught:
        measured(planted(), components=components)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
