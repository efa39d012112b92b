"""The probes that train: what they hold, what is absent and why, and that finished runs are kept."""

from __future__ import annotations

import numpy as np
import pytest

from xatlas import XatlasError, api, manager
from xatlas.plugins.training import probe as training
from xatlas.schema import notes
from xatlas.testing import CountingCheckpoint, tiny_reference, write_tiny_model

SHORT = {"seeds": 1, "steps": 4, "points": 2, "batch": 2, "data": "letter_doubling"}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    return tmp_path_factory.mktemp("atlas")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def given():
    """Few held-out prompts of other families, and few to find layers on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LEAST_OTHERS", 1)
        yield api.MeasureConfig.make(suite="quick[1]", reference=tiny_reference())


@pytest.fixture(scope="module")
def targets(atlas, tiny, given):
    few = {"suite": given.suite, "reference": given.reference}
    return api.measure(tiny, "lora_targets", parameters=SHORT, out=atlas, **few)


def test_strategies_are_measured_before_along_and_after(targets):
    assert targets["step"].values.tolist() == [0, 1, 2, 4]
    there = targets.drop_sel(setting="conv_only")
    assert np.isfinite(there["heldout_loss"]).all()
    assert (there["kl_shift"].sel(step=0) == 0).all()
    assert (there["kl_shift"].sel(step=4, family="letter_doubling") > 0).all()
    assert targets["family"].values[targets["trained"].values].tolist() == ["letter_doubling"]
    assert targets.sizes["family"] > 10


def test_what_an_architecture_lacks_is_absent_with_the_reason(targets):
    gone = targets.sel(setting="conv_only")
    assert all(np.isnan(gone[name]).all() for name in targets.data_vars)
    reasons = notes(targets, "absent")
    assert any("no module has the role 'conv'" in reason for reason in reasons.values())


def test_random_layers_have_just_the_parameters_of_the_guided(targets):
    size = targets["parameters"]
    assert size.sel(setting="random_layers") == size.sel(setting="atlas_guided") > 0
    layers = targets["layers"]
    assert (layers.sel(setting="random_layers") != layers.sel(setting="atlas_guided")).all()
    assert size.sel(setting="all_linear") == size.sel(setting=["attention_only", "mlp_only"]).sum()


def test_finished_runs_are_kept(tiny, given, monkeypatch):
    """A run that is killed in its second training goes on there, and ends with the same numbers."""
    from xatlas.contracts.probe import Inputs
    from xatlas.plugins.training import trainer

    probe = manager.probes()["lora_rank"](**SHORT | {"points": 1, "steps": 2}, ranks=(2, 4))
    train, calls = trainer.train, []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        train(*args, **kwargs)

    def measure(checkpoint):
        inputs = Inputs(reference=given.reference, checkpoint=checkpoint)
        return probe.measure(api.load(tiny), given.suite, inputs)

    whole = measure(CountingCheckpoint())
    monkeypatch.setattr(trainer, "train", counted)
    kept = CountingCheckpoint()
    with pytest.raises(KeyboardInterrupt):
        measure(kept)
    again = measure(kept)
    assert len(calls) == 2 + 1  # two runs, of which one was kept
    assert again.identical(whole)


def test_settings_that_differ_in_steps_alone_are_one_run(tiny, given):
    from xatlas.contracts.probe import Inputs

    asked = {**SHORT, "learning_rates": (1e-3, 1e-2), "ranks": (), "lengths": (2,)}
    probe = manager.probes()["lora_hyperparameters"](**asked)
    labels = list(probe.settings())
    assert labels == ["lr 0.001, rank 8, 4 steps", "lr 0.01, rank 8, 4 steps", "lr 0.001, rank 8, 2 steps"]
    assert len(manager.probes()["lora_hyperparameters"]().settings()) == 13
    found = probe.measure(api.load(tiny), given.suite, Inputs(reference=given.reference))
    short, centre = found.sel(setting=labels[2]), found.sel(setting=labels[0])
    shared = short["heldout_loss"].sel(step=2)
    np.testing.assert_array_equal(shared, centre["heldout_loss"].sel(step=2))  # one run: the rate is constant
    assert np.isnan(short["heldout_loss"].sel(step=4)).all()


def test_four_bits_are_another_model_before_any_training(tiny, given, monkeypatch):
    """Of other methods what is measured before is one and the same."""
    from xatlas.contracts.probe import Inputs

    def steps(*_, watch, **__):
        for step in (1, 2):
            watch(step)

    monkeypatch.setattr("xatlas.plugins.training.trainer.train", steps)
    probe = manager.probes()["finetune_methods"](**SHORT | {"points": 1, "steps": 2})
    found = probe.measure(api.load(tiny), given.suite, Inputs(reference=given.reference))["kl_shift"].sel(step=0)
    assert (found.sel(setting="qlora") > 0).all()
    assert (found.drop_sel(setting="qlora") == 0).all()


def test_what_is_trained_on_is_never_held_out(tiny, given, tmp_path, monkeypatch):
    """Also where the prompts to measure on are those of the train split."""
    from xatlas.contracts.probe import Inputs
    from xatlas.plugins.training.data import split
    from xatlas.plugins.training.finetune import finetune

    held = []

    def stopped(model, examples):
        held.append([example for example in examples if example.family == "letter_doubling"])
        raise KeyboardInterrupt

    for module in ("measure", "finetune"):
        monkeypatch.setattr(f"xatlas.plugins.training.{module}.HeldOut", stopped)
    suite = api.MeasureConfig.make(suite="transfer-train").suite
    model, inputs = api.load(tiny), Inputs(reference=given.reference)
    with pytest.raises(KeyboardInterrupt):
        manager.probes()["lora_rank"](**SHORT).measure(model, suite, inputs)
    with pytest.raises(KeyboardInterrupt):
        finetune(tiny, tmp_path / "w", data="letter_doubling", suite="transfer-train")
    assert held == [split(model, "letter_doubling")[1]] * 2


def test_training_needs_the_name_of_a_model(tiny):
    with pytest.raises(XatlasError, match="lora_rank trains the model that it is given"):
        api.measure(api.load(tiny), "lora_rank")


@pytest.mark.slow
def test_methods_learn_what_they_are_for(atlas, given):
    """SFT's held-out loss falls by a fifth, DPO's preferences beat chance, GRPO's reward rises: over five seeds."""
    from xatlas.stats import t_quantile

    short = {"data": "letter_doubling", "points": 1, "steps": 40, "batch": 4, "learning_rate": 3e-3}
    few = {"suite": given.suite, "reference": given.reference}
    found = api.measure("lfm2-mini", "finetune_methods", parameters=short, out=atlas, **few)
    own = found.sel(family="letter_doubling")
    first, last = own.isel(step=0), own.isel(step=-1)

    def low(values):
        return float(values.mean() - t_quantile(4) * values.std(ddof=1) / np.sqrt(5))

    fall = 1 - last["heldout_loss"].sel(setting="sft") / first["heldout_loss"].sel(setting="sft")
    assert low(fall) > 0.2
    preference = last["preference"].sel(setting="dpo")
    assert low(preference) > 0.5
    assert low(preference - first["preference"].sel(setting="dpo")) > 0  # the base prefers most of them already
    assert low(last["reward"].sel(setting="grpo") - first["reward"].sel(setting="grpo")) > 0
