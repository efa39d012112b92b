"""Handovers that were planted are found where they are; shuffled layers and flat profiles support nothing."""

from __future__ import annotations

import numpy as np
import pytest
from looking import explained, shows

from xatlas.comparisons.patching_profile import PatchingProfile
from xatlas.errors import XatlasError

SITES = ("resid_post", "operator_out", "mlp_out")
HYBRID = ["conv", "attention"] * 4


def compare(synthetic, **models):
    tree = synthetic.tree_of(**{name: {"activation_patching": each} for name, each in models.items()})
    return PatchingProfile().compare(tree)


def told(dataset, model="a"):
    found = PatchingProfile().findings(dataset)
    return {finding.name: finding for finding in found if finding.model == model and not finding.model_other}


def pair(dataset):
    return next(finding for finding in PatchingProfile().findings(dataset) if finding.model_other)


def onset(dataset, mode="denoise"):
    return dataset["onset"].sel(mode=mode, bound="value").values


def shuffled(dataset, seed, rows=1):
    """Return the dataset with the layers before the last in another order in every ``rows`` prompts."""
    rng = np.random.default_rng(seed)
    mixed = dataset.copy(deep=True)
    for i in range(0, dataset.sizes["prompt"], rows):
        order = np.append(rng.permutation(dataset.sizes["layer"] - 1), dataset.sizes["layer"] - 1)
        for name in dataset.data_vars:
            mixed[name].values[i : i + rows] = dataset[name].values[i : i + rows][:, order]
    return mixed


def test_a_planted_handover_is_found_where_it_is(synthetic):
    dataset = compare(synthetic, a=synthetic.patching_result(HYBRID, 5))
    assert onset(dataset).item() == pytest.approx(5 / 7)
    assert dataset["departure"].sel(model="a", mode="noise", bound="value").item() == pytest.approx(5 / 7)
    assert dataset["mover"].item() == 5
    found = told(dataset)
    assert {finding.verdict for finding in found.values()} == {"supported"}
    assert found["onset"].control == 1
    assert "layer 5, attention" in found["onset"].sentence
    assert found["onset"].low <= found["onset"].value <= found["onset"].high < 1
    assert 0.6 < found["mover"].low < found["mover"].value < found["mover"].high < 0.7
    assert abs(found["mover"].control) < 0.05
    rows = PatchingProfile().table(dataset)
    assert [row["layer"] for row in rows] == ["5"] * 3
    assert (int(dataset["prompts"][0]), int(dataset["dropped"][0])) == (synthetic.N_PROMPTS, 1)


def test_layers_permuted_within_templates_support_nothing(synthetic):
    """At most 3 of 30: the layers before the last in one order a template, which the test has to be able to see."""
    count = 0
    for seed in range(30):
        dataset = synthetic.patching_result(HYBRID, (2, 4, 6)[seed % 3])
        found = told(compare(synthetic, a=shuffled(dataset, seed, rows=2)))
        count += found["onset"].verdict == "supported" or found["mover"].verdict == "supported"
    assert count <= 3


def test_the_last_layer_has_no_part_in_the_test_of_the_onset(synthetic):
    result, rng = synthetic.patching_result(HYBRID, 6), np.random.default_rng(0)
    stream = {"site": "resid_post", "position": "last"}
    result["recovery"].loc[stream] = rng.uniform(0.3, 0.7, (synthetic.N_PROMPTS, 8, 2))
    found = set()
    for last in (1.0, 0.2):
        result["recovery"].loc[{**stream, "layer": 7}] = last
        found.add(told(compare(synthetic, a=result))["onset"].p)
    assert len(found) == 1
    assert found.pop() > 0.05


def test_what_is_there_by_construction_is_no_finding(synthetic):
    found = told(compare(synthetic, a=synthetic.patching_result(["attention"] * 6, 5)))
    assert found["onset"].value == 1
    assert found["onset"].verdict == "refuted"
    flat = told(compare(synthetic, a=synthetic.patching_result(["attention"] * 6, 0)))
    assert flat["onset"].reason == "it is so from the first layer on"


def test_modes_that_disagree_leave_it_undecided(synthetic):
    dataset = synthetic.patching_result(HYBRID, 2)
    other = synthetic.patching_result(HYBRID, 5)
    for name in dataset.data_vars:
        dataset[name].values[..., 1] = other[name].values[..., 1]
    found = told(compare(synthetic, a=dataset))
    assert {finding.verdict for finding in found.values()} == {"undecided"}
    assert found["onset"].reason == "denoise and noise disagree"


def test_two_operators_that_share_the_work_tie(synthetic):
    dataset = synthetic.patching_result(HYBRID, 3)
    dataset["recovery"].values[:, 5, 1, 2] += 0.6
    assert told(compare(synthetic, a=dataset))["mover"].reason.startswith("it ties with layer")
    dataset["recovery"].values[:, 5, 1, 2] += 0.6
    rows = {row["number"]: row["layer"] for row in PatchingProfile().table(compare(synthetic, a=dataset))}
    assert rows == {"at readout from": "3", "gone from subject": "3", "top operator": "5"}


def test_an_operator_that_moves_no_more_than_a_random_change_is_refuted(synthetic):
    dataset = synthetic.patching_result(HYBRID, 3)
    dataset["recovery_control"].loc[{"site": "operator_out", "layer": 3}] = 0.9
    assert told(compare(synthetic, a=dataset))["mover"].verdict == "refuted"


def test_a_last_layer_that_is_not_what_it_must_be_decides_nothing(synthetic):
    result = synthetic.patching_result(HYBRID, 3)
    result["recovery"].loc[{"site": "resid_post", "position": "last", "layer": 7}] = 0.9
    assert {finding.verdict for finding in told(compare(synthetic, a=result)).values()} == {"undecided"}


@pytest.mark.parametrize(("before", "behind", "depth"), [(0.4, 0.6, 3 / 7), (0.55, 0.6, 0.0), (0.4, 0.45, 1.0)])
def test_information_has_arrived_where_half_of_the_answer_is_recovered(synthetic, before, behind, depth):
    """From layer 3 of 8 on; in the last layer all of it is, whatever the model does."""
    result = synthetic.patching_result(HYBRID, 3)
    stream = np.where(np.arange(8) < 3, before, behind)
    stream[-1] = 1
    result["recovery"].loc[{"site": "resid_post", "position": "last"}] = stream[None, :, None]
    assert onset(compare(synthetic, a=result)).item() == pytest.approx(depth)


def test_information_has_arrived_where_it_stays(synthetic):
    """Half of it is at the readout in layer 1, less in layers 2 and 3, and half of it again from layer 4 on."""
    result = synthetic.patching_result(HYBRID, 4)
    result["recovery"].loc[{"site": "resid_post", "position": "last", "layer": 1}] = 0.8
    assert onset(compare(synthetic, a=result)).item() == pytest.approx(4 / 7)


@pytest.mark.parametrize(("layer", "said"), [(5, "differs"), (7, "is the same")])
def test_onsets_lie_apart_from_half_a_layer_of_the_shallower_model_on(synthetic, layer, said):
    shallow = synthetic.patching_result(HYBRID[:6], 4)
    deep = synthetic.patching_result([*HYBRID, "conv"], layer, seed=1)
    found = pair(compare(synthetic, a=shallow, b=deep))
    assert found.value == pytest.approx(4 / 5 - layer / 8)
    assert found.verdict == "supported"
    assert said in found.sentence


def test_models_are_compared_on_the_prompts_that_both_answer(synthetic):
    late, early = synthetic.patching_result(HYBRID, 6), synthetic.patching_result(["attention"] * 8, 1, seed=1, rows=30)
    # on the prompts that only the first answers, it is early as well: they must not count
    late["recovery"].values[30:, :, 0, 2] = 1
    found = pair(compare(synthetic, a=late, b=early))
    assert found.value == pytest.approx(5 / 7)
    assert found.verdict == "supported"


def test_two_models_are_compared_on_the_prompts_of_both(synthetic):
    """Four of six families arrive late in the first model; the second holds the other two alone."""
    early, late = (synthetic.patching_result(HYBRID, layer) for layer in (3, 5))
    rest = np.flatnonzero(np.isin(early["family"].values, ["family4", "family5"]))
    mixed = late.copy(deep=True)
    mixed["recovery"].values[rest] = early["recovery"].values[rest]
    dataset = compare(synthetic, a=mixed, b=early.isel(prompt=rest))
    np.testing.assert_allclose(onset(dataset), [5 / 7, 3 / 7])
    assert pair(dataset).value == 0


def test_one_layer_and_models_without_common_prompts_are_told_apart_from_findings(synthetic):
    other = synthetic.patching_result(HYBRID, 3)
    other = other.assign_coords(prompt=[f"other-{i}" for i in range(other.sizes["prompt"])])
    dataset = compare(synthetic, a=synthetic.patching_result(["conv"], 0), b=other)
    assert np.isnan(pair(dataset).value)
    assert pair(dataset).reason == "no prompt that both answer"
    assert {finding.verdict for finding in told(dataset).values()} == {"undecided"}


def test_the_figure_shows_the_maps_and_where_it_arrives(synthetic):
    dataset = compare(
        synthetic, a=synthetic.patching_result(HYBRID, 5), b=synthetic.patching_result(["attention"] * 14, 3)
    )
    made = PatchingProfile().plot(dataset)
    meshes = {m.get_gid(): m for axes in made.axes for m in axes.collections if str(m.get_gid()).startswith("map-")}
    assert set(meshes) == {"map-operator_out", "map-mlp_out"}  # the stream's curves stand above
    rings = [line for axes in made.axes for line in axes.lines if line.get_gid() == "onset"]
    assert [ring.get_xdata()[0] for ring in rings] == [5, 3]
    told, stream = (
        explained(made),
        dataset.sel(model="a", mode="denoise", site="resid_post", bound="value", layer=range(8)),
    )
    texts = {"at the subject": "subject", "at position 0": "first", "at other tokens": "other"}
    for text, position in texts.items():
        lines = [line for line in made.axes[0].lines if shows(line, stream["recovery"].sel(position=position))]
        assert told[text]._unscaled_dash_pattern in [line._unscaled_dash_pattern for line in lines]
    (control,) = (line for line in made.axes[0].lines if shows(line, stream["recovery_control"].sel(position="last")))
    assert control.get_color() == told["random change at the readout"].get_color()
    shown = np.asarray(meshes["map-operator_out"].get_array()).reshape(4, -1)
    own = dataset["recovery"].sel(model="b", site="operator_out", position="last", mode="denoise", bound="value")
    np.testing.assert_allclose(shown[3], own.values[:14])


def test_a_result_without_the_subject_says_how_to_measure_it(synthetic):
    with pytest.raises(XatlasError, match="without the position 'subject'; measure it with: xatlas run a"):
        compare(synthetic, a=synthetic.patching_result(HYBRID, 5).sel(position=["first", "last", "other"]))
