"""What every comparison owes its verdicts: kinds without a number don't vote, one wording supports nothing."""

import math

import numpy as np
import pytest

from xatlas.comparisons.conv_profile import ConvProfile
from xatlas.comparisons.early_late import EarlyLate
from xatlas.comparisons.head_specialisation import HeadSpecialisation
from xatlas.comparisons.hub import Hub
from xatlas.comparisons.mlp_ratio import MlpRatio
from xatlas.comparisons.patching_profile import PatchingProfile
from xatlas.comparisons.steering_profile import SteeringProfile
from xatlas.comparisons.verdict import fails

HYBRID = ["conv", "attention"] * 6


def planted(kl):
    """Falling over depth, more in conv layers, with a hub in layer 0 whose MLP does most."""
    kl *= (1.3 ** -np.arange(kl.shape[1]))[:, None, None, None]
    kl[:, [kind == "conv" for kind in HYBRID]] *= 4
    kl[:, 0] *= 6
    kl[:, 0, 1] *= 9
    return kl


def few_heads(kl):
    kl *= np.linspace(1, 3, kl.shape[1])[:, None, None, None]
    kl[:, :, 1] *= 20
    kl[:, 3, 1] *= 9
    return kl


def verdicts(synthetic, kind, **results):
    dataset = kind().compare(synthetic.tree_of(**results))
    return dataset, [finding.verdict for finding in kind().findings(dataset)]


@pytest.mark.parametrize("kind", [Hub, EarlyLate, MlpRatio, HeadSpecialisation])
def test_a_kind_that_gave_no_number_does_not_disagree(synthetic, kind):
    """Resample ablation is NaN in every prompt when none has a donor."""
    if kind is HeadSpecialisation:
        result = synthetic.head_result(["attention"] * 12, 4, few_heads, ablations=("mean", "zero", "resample"))
        held = {"head_ablation": result}
    else:
        result = synthetic.layer_result(HYBRID, planted)
        held = {"layer_ablation": result}
    before = verdicts(synthetic, kind, a=held)[1]
    assert "supported" in before
    result["kl"].loc[{"ablation": "resample"}] = np.nan
    assert verdicts(synthetic, kind, a=held)[1] == before


def results(synthetic, kind):
    """Return what each comparison finds something in."""
    if kind is ConvProfile:
        plant = synthetic.conv_plant(1)
        return synthetic.conv_results(plant, plant)
    if kind is PatchingProfile:
        return {"activation_patching": synthetic.patching_result(HYBRID, 7)}
    if kind is SteeringProfile:
        return {"steering": synthetic.steering_result(family=1.5 ** -np.arange(8.0), growth=1.3, matched=20)}
    if kind is HeadSpecialisation:
        return {"head_ablation": synthetic.head_result(["attention"] * 12, 4, few_heads, ablations=("mean", "zero"))}
    return {"layer_ablation": synthetic.layer_result(HYBRID, planted)}


@pytest.mark.parametrize(
    "kind", [Hub, EarlyLate, MlpRatio, HeadSpecialisation, ConvProfile, PatchingProfile, SteeringProfile]
)
def test_families_of_one_wording_each_decide_nothing(synthetic, kind):
    held = results(synthetic, kind)
    for dataset in held.values():
        dataset["template"] = ("prompt", dataset["family"].values)
    other = results(synthetic, kind)
    after = kind().compare(synthetic.tree_of(b=other, a=held))
    pairs = [finding for finding in kind().findings(after) if not finding.model or finding.model_other]
    assert {finding.verdict for finding in pairs} <= {"undecided"}
    dataset, found = verdicts(synthetic, kind, a=held, b=other)
    assert {"supported", "refuted"} & set(found)  # of the other model
    findings = [finding for finding in kind().findings(dataset) if finding.model != "b"]
    findings = [finding for finding in findings if not finding.name.startswith("types_")]  # layers are their sample
    assert {finding.verdict for finding in findings} == {"undecided"}
    assert np.isnan([[finding.low, finding.high] for finding in findings]).all()
    table = kind().table(dataset)
    rows = [row for row in table if row["model"] == "a"]
    assert len(rows) == len(table) / 2
    assert not [cell for row in rows for cell in map(str, row.values()) if "nan" in cell]
    assert {cell for row in rows for name, cell in row.items() if name.startswith("P(")} <= {"–"}
    assert kind().plot(dataset).axes


def test_an_unknown_interval_fails_nothing():
    assert not fails(math.nan, math.nan, 1, 0.0)
    assert fails(-1.0, 1.0, 1, 0.0)
