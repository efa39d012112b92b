"""What every comparison owes its verdicts: kinds without a number don't vote, one wording supports nothing."""

from dataclasses import replace

import numpy as np
import pytest

from xatlas.comparisons.conv_profile import ConvProfile
from xatlas.comparisons.early_late import EarlyLate
from xatlas.comparisons.head_specialisation import HeadSpecialisation
from xatlas.comparisons.hub import Hub
from xatlas.comparisons.loss_profile import LossProfile
from xatlas.comparisons.mlp_ratio import MlpRatio
from xatlas.comparisons.norm_profile import NormProfile
from xatlas.comparisons.patching_profile import PatchingProfile
from xatlas.comparisons.steering_profile import SteeringProfile
from xatlas.contracts.probe import Requirement
from xatlas.findings.readings import Source

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
        kinds = ("mean", "zero", "resample")
        result = synthetic.head_result(["attention"] * 12, 4, few_heads, ablations=kinds)
        held = {"head_ablation": result}
    else:
        result = synthetic.layer_result(HYBRID, planted)
        held = {"layer_ablation": result}
    dataset, before = verdicts(synthetic, kind, a=held)
    assert "supported" in before
    result["kl"].loc[{"ablation": "resample"}] = np.nan
    without, after = verdicts(synthetic, kind, a=held)
    assert after == before
    settings = [[finding.settings for finding in kind().findings(each)] for each in (dataset, without)]
    assert max(settings[1]) < max(settings[0])  # nor does it count as agreeing


def test_kinds_count_where_they_were_measured_as_the_main_one_was(synthetic):
    """On another suite, or with another token at position 0, they are other settings: they neither vote nor suffice."""
    for kinds in (["mean"], ["mean", "zero"]):
        held = {"layer_ablation": synthetic.layer_result(HYBRID, ablations=kinds, scopes=("last", "all"))}
        held["layer_ablation@bos=native"] = synthetic.layer_result(HYBRID, bos="native")
        held["layer_ablation@suite=standard"] = synthetic.layer_result(HYBRID, suite="standard")
        source = Source(synthetic.tree_of(a=held), "a", [Requirement("layer_ablation")])
        assert source.kinds == {kind: replace(source.usual, ablation=kind) for kind in kinds[1:]}


def test_a_control_stands_beside_the_kind_that_it_was_made_for_alone(synthetic):
    tree = synthetic.tree_of(a={"layer_ablation": synthetic.layer_result(HYBRID, planted)})
    source = Source(tree, "a", [Requirement("layer_ablation")])
    beside = {setting.ablation: source.effects(setting)[0].control is not None for setting in source.settings}
    assert beside == {"mean": True, "zero": False, "resample": False}


def results(synthetic, kind):
    """Return what each comparison finds something in."""
    if kind is ConvProfile:
        plant = synthetic.conv_plant(1)
        return synthetic.conv_results(plant, plant)
    if kind is PatchingProfile:
        return {"activation_patching": synthetic.patching_result(HYBRID, 7)}
    if kind is SteeringProfile:
        return {"steering": synthetic.steering_result(family=1.5 ** -np.arange(8.0), growth=1.3, matched=20)}
    if kind is NormProfile:
        return {"residual_norms": synthetic.norm_result(np.array([1.2, 1.2, 5.0, 1.2]))}
    if kind is LossProfile:
        return {"token_loss": synthetic.loss_result(np.linspace(0.5, 3, 6))}
    if kind is HeadSpecialisation:
        return {"head_ablation": synthetic.head_result(["attention"] * 12, 4, few_heads, ablations=("mean", "zero"))}
    return {"layer_ablation": synthetic.layer_result(HYBRID, planted)}


@pytest.mark.parametrize("kind", [Hub, EarlyLate, MlpRatio, HeadSpecialisation, ConvProfile, LossProfile])
def test_what_is_compared_with_untrained_twins_has_no_unit(synthetic, kind):
    """Nats and bits of untrained models are others than a trained one's, whatever the models are like."""
    held, compared = results(synthetic, kind), []
    for times in (1, 7):
        scaled = {probe: dataset.map(lambda values, by=times: by * values) for probe, dataset in held.items()}
        source = Source(synthetic.tree_of(a=scaled), "a", kind.requires)
        under = kind()._evidence(kind().estimate(*source.effects(source.usual, brief=True)))
        compared.append({name: each.compared for name, each in under.items()})
    assert compared[0].keys() == compared[1].keys() != set()
    for name in compared[0]:
        assert compared[1][name] == pytest.approx(compared[0][name]), name


@pytest.mark.parametrize(
    "kind",
    [
        Hub,
        EarlyLate,
        MlpRatio,
        HeadSpecialisation,
        ConvProfile,
        PatchingProfile,
        SteeringProfile,
        NormProfile,
        LossProfile,
    ],
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
    of_templates = {claim.name for claim in kind.claims if claim.unit == "network"}
    findings = [
        finding for finding in kind().findings(dataset) if finding.model != "b" and finding.name in of_templates
    ]
    assert {finding.verdict for finding in findings} == {"undecided"}
    assert np.isnan([[finding.low, finding.high] for finding in findings]).all()
    rows = [row for row in kind().table(dataset) if row["model"] == "a"]
    assert rows
    assert not [cell for row in rows for cell in map(str, row.values()) if "nan" in cell]
    assert kind().plot(dataset).axes
