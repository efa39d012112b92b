"""What fine-tuning costs, and whether it moved the hub: planted curves and hubs are found, and nothing else is."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from xatlas import check_comparison
from xatlas.comparisons.hub_shift import HubShift
from xatlas.comparisons.lora_frontier import LoraFrontier, _at, _Curves, _quotient
from xatlas.findings.verdict import verdict

TYPES = ["conv", "attention"] * 2
STEPS = [0, 6, 12, 25, 50, 100]
TARGETS = ("all_linear", "attention_only", "mlp_only", "conv_only", "atlas_guided", "atlas_full", "random_layers")


def result(curves, *, seeds=5, noise=0.02, **about):
    """Return a training result: ``curves`` is setting → (speed of learning, KL elsewhere for each squared fall)."""
    rng = np.random.default_rng(0)
    shape = (len(curves), seeds, len(STEPS), 2)
    loss, kl = np.full(shape, np.nan), np.full(shape, np.nan)
    for row, (speed, price) in enumerate(curves.values()):
        for seed in range(seeds):
            fall = 4 * (1 - np.exp(-speed * np.array(STEPS) / 100)) * rng.normal(1, noise)
            loss[row, seed, :, 0], loss[row, seed, :, 1] = 6 - fall, 0.1
            kl[row, seed, :, 0], kl[row, seed, :, 1] = fall, price * np.exp(fall) * fall**2
    dims = ("setting", "seed", "step", "family")
    coords = {"setting": list(curves), "seed": range(seeds), "step": STEPS, "family": ["doubling", "sums"]}
    coords |= {"trained": ("family", [True, False])}
    for name, usual in (("rank", 8), ("learning_rate", 1e-3), ("steps", 100)):
        coords[name] = ("setting", about.get(name, [usual] * len(curves)))
    attrs = {"xatlas": json.dumps({"suite": {"name": "quick"}, "job": {"bos": "always"}})}
    variables = {"heldout_loss": loss, "kl_shift": kl, "reward": 1 - loss / 6}
    return xr.Dataset({name: (dims, values) for name, values in variables.items()}, coords, attrs)


def found_in(comparison, **nodes):
    tree = xr.DataTree.from_dict({f"/mini/{probe}": data for probe, data in nodes.items()})
    check_comparison(type(comparison), tree)
    return {finding.name: finding for finding in comparison.findings(comparison.compare(tree))}


def strategies(**changed):
    return dict.fromkeys(TARGETS, (1.0, 1e-4)) | changed


def test_what_looks_dear_after_equal_steps_and_learns_more_is_an_artefact():
    """all_linear learns faster along the same frontier: after equal steps it has shifted the model more."""
    found = found_in(LoraFrontier(), lora_targets=result(strategies(all_linear=(3.0, 1e-4))))
    guided = found["all_over_atlas_guided"]
    assert guided.value == pytest.approx(1.0, abs=0.25)
    assert guided.verdict == "artefact"
    assert "after equal steps" in guided.reason
    assert found["random_over_guided"].verdict == "refuted"  # equal


def test_a_curve_is_read_between_its_points_where_it_first_reaches_a_loss():
    """From 0 a KL grows with the square of what is learnt; later it is its logarithm that is interpolated."""
    loss, kl = np.array([6.0, 5.0, 4.0, 4.5]), np.array([0.0, 0.4, 1.6, 9.0])
    assert [_at(level, loss, kl) for level in (5.5, 4.5, 4.0)] == pytest.approx([0.1, 0.8, 1.6])
    other = np.array([6.0, 5.0, 4.0, 3.0]), np.array([0.0, 0.4, 0.4, 0.4])
    assert _quotient(loss, other[0], kl, other[1]) == pytest.approx(np.log(4))  # at 4, the lowest that both reach


def judged(seed, *, quotient, faster, noise):
    """Return the verdict on two ways whose seeds learn unequally, while KL goes by the steps alone."""
    rng, steps = np.random.default_rng(seed), np.array(STEPS) / 100
    shape = (2, 5, len(STEPS), 2)
    loss, kl = np.full(shape, 0.1), np.zeros(shape)
    for row, (speed, price) in enumerate(((faster, quotient), (1.0, 1.0))):
        fall = 4 * (1 - np.exp(-speed * steps))
        loss[row, :, :, 0] = 6 - fall * np.exp(rng.normal(0, noise, (5, 1)))
        kl[row, :, :, 1] = price * np.exp(fall) * fall**2 * np.exp(rng.normal(0, 0.1, (5, 1)))
    data = result(dict.fromkeys(("dear", "cheap"), (1.0, 1.0))).copy()
    data["heldout_loss"].values[:], data["kl_shift"].values[:] = loss, kl
    found = _Curves(SimpleNamespace(dataset=data), "others").cost("dear", "cheap")
    return verdict(found, found.p)[0]


def test_an_artefact_is_not_made_of_a_wide_interval():
    """Where both ways differ as much at equal loss, but seeds don't show it, nothing is decided."""
    same = Counter(judged(seed, quotient=2.0, faster=1.02, noise=0.25) for seed in range(60))
    assert same["artefact"] + same["refuted"] <= 6
    assert same["undecided"] >= 30  # or nothing could have gone wrong
    none = Counter(judged(seed, quotient=1.0, faster=1.0, noise=0.25) for seed in range(60))
    assert none["artefact"] + none["supported"] <= 6
    learnt = Counter(judged(seed, quotient=1.0, faster=3.0, noise=0.05) for seed in range(60))
    assert learnt["artefact"] >= 48
    dear = Counter(judged(seed, quotient=3.0, faster=1.5, noise=0.05) for seed in range(60))
    assert dear["supported"] >= 48


def test_what_is_dearer_at_equal_loss_is_found():
    found = found_in(LoraFrontier(), lora_targets=result(strategies(random_layers=(1.5, 4e-4))))
    assert found["random_over_guided"].value == pytest.approx(4.0, rel=0.3)
    assert found["random_over_guided"].verdict == "supported"
    assert found["all_over_mlp_only"].verdict != "supported"
    cheap = found_in(LoraFrontier(), lora_targets=result(strategies(random_layers=(1.5, 2e-5))))
    assert cheap["random_over_guided"].verdict == "refuted"


def test_a_strategy_that_an_architecture_lacks_makes_no_claim_and_one_that_learns_nothing_is_open():
    data = result(strategies(mlp_only=(0.001, 1e-4)))
    data["heldout_loss"].loc[{"setting": "conv_only"}] = np.nan
    data["kl_shift"].loc[{"setting": "conv_only"}] = np.nan
    found = found_in(LoraFrontier(), lora_targets=data)
    assert "all_over_conv_only" not in found
    assert found["all_over_mlp_only"].verdict == "undecided"
    assert "learnt next to nothing" in found["all_over_mlp_only"].reason


def test_fewer_than_five_seeds_decide_nothing():
    found = found_in(LoraFrontier(), lora_targets=result(strategies(random_layers=(1.5, 4e-4)), seeds=4))
    assert {finding.verdict for finding in found.values()} == {"undecided"}
    assert found["random_over_guided"].reason == "too few training seeds"


def test_ranks_rates_and_methods_are_judged_where_they_were_measured():
    ranks = (2, 4, 8, 16, 32)
    doubling = result({f"rank {r}": (1.0, 1e-5 * r) for r in ranks}, rank=list(ranks), noise=0.002)
    rates = result(
        {"b": (1.0, 1e-4), "c": (3.0, 1e-4), "a": (0.3, 1e-4)}, learning_rate=[1e-3, 1e-2, 1e-4], noise=0.002
    )  # the centre first, as the probe lists them
    methods = result({"sft": (2.0, 1e-4), "qlora": (2.0, 4e-4), "dpo": (1.0, 1e-4), "grpo": (1.0, 1e-5)})
    methods["heldout_loss"].loc[{"setting": ["dpo", "grpo"]}] = 6.0  # they learn what is rewarded, and no loss
    nodes = {"lora_rank": doubling, "lora_hyperparameters": rates, "finetune_methods": methods}
    found = found_in(LoraFrontier(), lora_targets=result(strategies()), **nodes)
    assert found["rank_doubles"].value == pytest.approx(2.0, rel=0.05)
    assert found["rank_doubles"].verdict == "supported"
    assert found["rank_cost"].value == pytest.approx(16.0, rel=0.2)
    assert found["learning_rate_shift"].value > 5
    assert found["learning_rate_loss"].value < 0.9
    assert found["learning_rate_cost"].verdict == "artefact"  # it only learns faster
    assert found["qlora_cost"].verdict == "supported"
    assert found["dpo_cost"].verdict == "artefact"
    assert found["grpo_cost"].verdict == "supported"
    assert "steps_shift" not in found
    flat = result({f"rank {r}": (1.0, 1e-4) for r in ranks}, rank=list(ranks))
    again = found_in(LoraFrontier(), lora_targets=result(strategies()), lora_rank=flat)
    assert again["rank_doubles"].verdict == "refuted"


def test_a_learning_rate_at_which_one_seed_learns_nothing_is_not_the_fastest():
    speeds = {"b": (1.0, 1e-4), "c": (3.0, 1e-4), "a": (0.3, 1e-4), "d": (3.0, 1e-3)}
    rates = result(speeds, learning_rate=[1e-3, 1e-2, 1e-4, 1e-1], noise=0.002)
    dear = found_in(LoraFrontier(), lora_targets=result(strategies()), lora_hyperparameters=rates)
    assert dear["learning_rate_cost"].value == pytest.approx(10, rel=0.2)
    rates["heldout_loss"].loc[{"setting": "d", "seed": 0}] = 6.0
    found = found_in(LoraFrontier(), lora_targets=result(strategies()), lora_hyperparameters=rates)
    assert found["learning_rate_cost"].value == pytest.approx(1, rel=0.2)


def test_the_figure_shows_kl_on_other_families_over_the_loss_on_those_that_were_trained_on():
    tree = xr.DataTree.from_dict({"/mini/lora_targets": result(strategies(all_linear=(3.0, 1e-3)))})
    dataset = LoraFrontier().compare(tree)
    curves, below = LoraFrontier().plot(dataset).axes
    drawn = {line.get_gid(): line.get_xydata() for line in curves.lines}
    assert set(drawn) == set(TARGETS)
    colours = {line.get_gid(): line.get_color() for line in curves.lines}
    of = {f"all_over_{name}": name for name in TARGETS[1:-1]} | {"random_over_guided": "random_layers"}
    quotients = {line.get_gid().partition("-")[0]: line for line in below.lines if line.get_gid()}
    assert {name: line.get_color() for name, line in quotients.items()} == {name: colours[of[name]] for name in of}
    found = {each.name: each.value for each in LoraFrontier().findings(dataset)}
    assert {name: line.get_xdata()[0] for name, line in quotients.items()} == {name: found[name] for name in of}
    for name, points in drawn.items():
        one = dataset.sel(model="mini", strategy=name, bound="value").isel(step=slice(1, None))  # before, KL is 0
        np.testing.assert_allclose(points, np.column_stack([one["loss"], one["kl"]]))


def hub_of(synthetic, layer, seed):
    def plant(kl):
        kl[:, layer] *= 12
        return kl

    return {"layer_ablation": synthetic.layer_result(TYPES, plant, seed=seed, ablations=("mean", "zero"))}


def shift_of(synthetic, before, after, **others):
    tree = synthetic.tree_of(**others)
    for name, result_of in (("net+lora-0a", after), ("net", before)):
        tree[name] = xr.DataTree.from_dict({f"/{probe}": data for probe, data in result_of.items()})
    if others:
        check_comparison(HubShift, tree)
    found = HubShift().findings(HubShift().compare(tree))
    return [finding for finding in found if finding.name == "hub_stays"]


def test_a_hub_that_stays_and_one_that_moves_are_told_apart(synthetic):
    beside = {"net_2": hub_of(synthetic, 1, 3)}  # called alike, and tuned from none of them
    (stays,) = shift_of(synthetic, hub_of(synthetic, 0, 0), hub_of(synthetic, 0, 1), **beside)
    assert (stays.verdict, stays.value > 3) == ("supported", True)
    assert "leaves the hub of net in layer 0: in net+lora-0a" in stays.sentence
    (moved,) = shift_of(synthetic, hub_of(synthetic, 0, 0), hub_of(synthetic, 3, 1))
    assert (moved.verdict, moved.value < 1) == ("refuted", True)
    assert "whose hub is layer 3" in moved.sentence
    even = {"layer_ablation": synthetic.layer_result(TYPES, seed=5, ablations=("mean", "zero"))}
    for before, after in ((even, hub_of(synthetic, 3, 1)), (hub_of(synthetic, 3, 1), even)):
        (none,) = shift_of(synthetic, before, after)
        assert none.verdict == "undecided"
        assert "ties" in none.reason
