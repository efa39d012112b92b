"""Handovers that were planted are found where they are; shuffled layers and flat profiles support nothing."""

from __future__ import annotations

import numpy as np
import pytest

from xatlas.comparisons.patching_profile import PatchingProfile
from xatlas.errors import XatlasError

SITES = ("resid_post", "operator_out", "mlp_out")
HYBRID = ["conv", "attention"] * 4


def compare(synthetic, **models):
    tree = synthetic.tree_of(**{name: {"activation_patching": each} for name, each in models.items()})
    return PatchingProfile().compare(tree)


def shuffled(dataset, seed):
    rng = np.random.default_rng(seed)
    mixed = dataset.copy(deep=True)
    for i in range(dataset.sizes["prompt"]):
        order = rng.permutation(dataset.sizes["layer"])
        for name in dataset.data_vars:
            mixed[name].values[i] = dataset[name].values[i, order]
    return mixed


def test_a_planted_handover_is_found_where_it_is(synthetic):
    dataset = compare(synthetic, a=synthetic.patching_result(HYBRID, 5))
    assert dataset["arrival"].sel(model="a", mode="denoise").item() == pytest.approx(5 / 7)
    assert dataset["departure"].sel(model="a", mode="noise").item() == pytest.approx(5 / 7)
    assert dataset["mover"].sel(model="a", mode="denoise").item() == 5
    arrival, mover, types = PatchingProfile().findings(dataset)
    assert [finding.verdict for finding in (arrival, mover, types)] == ["supported"] * 3
    assert arrival.control == 1
    assert "layer 5, attention" in arrival.sentence
    assert 0.6 < mover.value < 0.7
    assert abs(mover.control) < 0.05
    assert "an attention layer moves more than another layer" in types.sentence
    (row,) = PatchingProfile().table(dataset)
    assert row["strongest operator"] == "5 (attention)"
    assert (row["pairs"], row["dropped"]) == (synthetic.N_PROMPTS, 1)


def test_convs_that_move_more_are_told_too(synthetic):
    finding = PatchingProfile().findings(compare(synthetic, a=synthetic.patching_result(HYBRID, 4)))[2]
    assert finding.verdict == "supported"
    assert "moves less than another layer" in finding.sentence


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("arrives", [0, 2, 6])
def test_shuffled_layers_support_nothing(synthetic, arrives, seed):
    dataset = synthetic.patching_result(HYBRID, arrives)
    assert PatchingProfile().findings(compare(synthetic, a=dataset))[0].verdict == "supported"
    mixed = compare(synthetic, a=shuffled(dataset, seed))
    assert "supported" not in [finding.verdict for finding in PatchingProfile().findings(mixed)]


def test_what_is_there_by_construction_is_no_finding(synthetic):
    finding = PatchingProfile().findings(compare(synthetic, a=synthetic.patching_result(["attention"] * 6, 5)))[0]
    assert finding.value == 1
    assert finding.verdict == "refuted"


def test_modes_that_disagree_leave_it_undecided(synthetic):
    dataset = synthetic.patching_result(HYBRID, 2)
    other = synthetic.patching_result(HYBRID, 5)
    for name in dataset.data_vars:
        dataset[name].values[..., 1] = other[name].values[..., 1]
    found = PatchingProfile().findings(compare(synthetic, a=dataset))
    assert [finding.verdict for finding in found[:2]] == ["undecided", "undecided"]


def test_two_operators_that_share_the_work_tie(synthetic):
    dataset = synthetic.patching_result(HYBRID, 3)
    dataset["recovery"].values[:, 5, 1, 2] += 0.6
    mover = PatchingProfile().findings(compare(synthetic, a=dataset))[1]
    assert mover.verdict == "undecided"


def test_models_are_compared_on_the_prompts_that_both_answer(synthetic):
    late, early = synthetic.patching_result(HYBRID, 6), synthetic.patching_result(["attention"] * 8, 1, seed=1, rows=30)
    # on the prompts that only the first answers, it is early as well: they must not count
    late["recovery"].values[30:, :, 0, 2] = 1
    dataset = compare(synthetic, a=late, b=early)
    pair = PatchingProfile().findings(dataset)[-1]
    assert int(dataset["arrival_difference_prompts"].sel(model="a", model_other="b")) == 30
    assert pair.value == pytest.approx(5 / 7)
    assert dataset["arrival_difference"].sel(model="b", model_other="a").item() == pytest.approx(-5 / 7)
    assert "on 30 prompts" in pair.sentence
    assert (
        PatchingProfile().findings(compare(synthetic, a=synthetic.patching_result(HYBRID, 6), b=early))[-1].verdict
        == "supported"
    )


def test_one_layer_and_models_without_common_prompts_are_told_apart_from_findings(synthetic):
    other = synthetic.patching_result(HYBRID, 3)
    other = other.assign_coords(prompt=[f"other-{i}" for i in range(other.sizes["prompt"])])
    one = synthetic.patching_result(["conv"], 0)
    found = PatchingProfile().findings(compare(synthetic, a=one, b=other))
    assert np.isnan(found[-1].value)
    assert found[-1].verdict == "undecided"
    assert "supported" not in [finding.verdict for finding in found if finding.model == "a"]


def test_the_figure_shows_the_maps_and_where_it_arrives(synthetic):
    dataset = compare(
        synthetic, a=synthetic.patching_result(HYBRID, 5), b=synthetic.patching_result(["attention"] * 14, 3)
    )
    made = PatchingProfile().plot(dataset)
    meshes = {m.get_gid(): m for axes in made.axes for m in axes.collections if str(m.get_gid()).startswith("map-")}
    assert set(meshes) == {f"map-{site}" for site in SITES}
    last = next(axes for axes in made.axes if axes.get_title() == "" and axes.lines)  # titles stand at the left
    rings = [line for line in last.lines if line.get_gid() == "arrival"]
    assert [ring.get_xdata()[0] for ring in rings] == [5]
    shown = np.asarray(meshes["map-operator_out"].get_array()).reshape(4, -1)
    np.testing.assert_allclose(
        shown[3], dataset["recovery"].sel(model="b", site="operator_out", position="last", mode="denoise").values[:14]
    )


def test_a_result_without_the_subject_says_how_to_measure_it(synthetic):
    with pytest.raises(XatlasError, match="without the position 'subject'; measure it with: xatlas run a"):
        compare(synthetic, a=synthetic.patching_result(HYBRID, 5).sel(position=["first", "last", "other"]))
