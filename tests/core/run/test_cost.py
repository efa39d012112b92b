"""What a plan counts is what the engine does; as much is measured as fits the minutes, and kept for more."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from models import SHAPES, build
from running import suite_file, tiny

from xatlas import api, manager
from xatlas.config import MeasureConfig, find_suite
from xatlas.contracts.probe import Inputs
from xatlas.engine import sweep as engine
from xatlas.engine.schedule import work
from xatlas.errors import XatlasError
from xatlas.loading.model_names import resolve
from xatlas.model import HookedModel
from xatlas.run import cost
from xatlas.run.plan import Plan
from xatlas.suites import Prompt, Suite
from xatlas.testing import byte_tokenizer, tiny_reference, tiny_suite

ABLATIONS = ["layer_ablation", "head_ablation", "position_ablation", "conv_factors", "conv_taps"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ABLATIONS)
def test_the_plan_counts_what_the_engine_runs(name, shape, monkeypatch):
    """Token by token, layer by layer, row by row: on the model without weights as on the one that is swept."""
    kind, overrides = SHAPES[shape]
    sizes = overrides | {"vocab_size": 260}
    model = HookedModel(build(kind, **sizes), byte_tokenizer(), slug=shape)
    bare = HookedModel(build(kind, **sizes).to("meta"), byte_tokenizer(), slug=shape, prove=False)
    probe, suite = manager.probes()[name](), tiny_suite()
    if not any(model.sites(site) for site in probe.sites):
        assert probe.planned(bare, suite, 1)[0] == []
        return
    ran, rows = np.zeros(model.n_layers, dtype=int), [0]
    run_layer, measure = HookedModel.run_layer, engine.Readout.measure

    def counting(self, layer, hidden, *rest):
        ran[layer] += hidden.shape[0] * hidden.shape[1]
        return run_layer(self, layer, hidden, *rest)

    def reading(self, finals, touched):
        rows[0] += len(finals) * len(self.index)
        return measure(self, finals, touched)

    monkeypatch.setattr(HookedModel, "run_layer", counting)
    monkeypatch.setattr(engine.Readout, "measure", reading)
    swept = []
    whole = engine.sweep

    def noting(model, prompts, conditions, *rest, **more):
        swept.append(len(conditions))
        return whole(model, prompts, conditions, *rest, **more)

    monkeypatch.setattr(engine, "sweep", noting)
    probe.measure(model, suite, Inputs(reference=tiny_reference(), draws=2))
    conditions, metrics = probe.planned(bare, suite, 2)
    prompts = model.read(suite).prompts
    counted, clean = work(bare, prompts, conditions, metrics), work(bare, prompts, (), metrics)
    donors = {run for condition in conditions for part in condition for run in part.change.runs()}
    assert swept == [len(conditions)]
    assert (counted.tokens - clean.tokens * (1 + len(donors))).tolist() == ran.tolist()
    assert counted.rows == rows[0]


def test_heads_are_counted_where_they_are(tmp_path):
    model = resolve("lfm2-mini")
    found = cost.outline(model)
    probe = manager.probes()["head_ablation"](ablations="zero")
    conditions, _ = probe.planned(found, tiny_suite(), 1)
    layers = {part.site.layer for condition in conditions for part in condition}
    assert layers == {layer for layer, kind in enumerate(found.operator_types) if kind == "attention"}


@pytest.mark.parametrize("name", sorted(manager.probes()))
def test_every_probe_is_planned_without_weights(name):
    suite = dataclasses.replace(find_suite("quick"), prompts=find_suite("quick").prompts[::10])
    config = MeasureConfig.make(suite=suite, device="cpu")
    for step in Plan([resolve("lfm2-mini")], config, probes=[name]).steps:
        minutes, gigabytes = cost.estimate(step, config)
        assert math.isnan(minutes) if step.probe.mutates else minutes > 0
        assert gigabytes > 1


@pytest.mark.parametrize("settings", [{}, {"chat_template": True}, {"bos": "native"}])
def test_an_estimate_counts_the_tokens_that_are_run(tmp_path, monkeypatch, settings):
    folder, counted = Path(tiny(tmp_path)), []
    (folder / "chat_template.jinja").write_text("{{ 'long ' * 9 }}{{ messages[0].content }}")
    monkeypatch.setattr(
        cost, "work", lambda model, prompts, *rest: counted.extend(prompts) or work(model, prompts, *rest)
    )
    config = MeasureConfig.make(suite=tiny_suite(), device="cpu", **settings)
    (step,) = Plan([resolve(str(folder))], config, probes=["residual_norms"]).steps
    cost.estimate(step, config)
    prompts = api.load(str(folder), device="cpu", **settings).read(config.suite).prompts
    assert [prompt.ids for prompt in counted] == [prompt.ids for prompt in prompts]


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_an_estimate_counts_all_that_is_run_of_a_model(tmp_path, monkeypatch, ablation):
    """Noise and the reference's means as well as the sweep: at a second a token and nothing else, exactly."""
    speed = cost.Speed({"attention": 0.0}, {"attention": 1.0}, 0.0)
    monkeypatch.setattr(cost, "measured_speed", lambda *asked: speed)
    monkeypatch.setattr(cost, "VISIT", 0.0)
    folder, ran = tiny(tmp_path), []
    config = MeasureConfig.make(
        suite=tiny_suite(),
        reference=tiny_reference(),
        device="cpu",
        draws=1,
        parameters={"layer_ablation": {"ablations": ablation}},
    )
    (step,) = Plan([resolve(folder)], config, probes=["layer_ablation"]).steps
    minutes, _ = cost.estimate(step, config)
    model = api.load(folder, device="cpu")
    for layer in range(model.n_layers):
        model.adapter.layer(layer).register_forward_pre_hook(
            lambda _, args: ran.append(args[0].shape[0] * args[0].shape[1])
        )
    step.probe.measure(model, config.suite, Inputs(reference=config.reference, draws=1))
    assert minutes * 60 == pytest.approx(sum(ran))


@pytest.mark.parametrize("n", [1, 2])
def test_a_longer_run_extends_a_shorter_one_and_equals_that_in_one_go(n, tmp_path, monkeypatch):
    model = tiny(tmp_path)
    suite = suite_file(tmp_path / "few.jsonl", each=4)  # of two templates a family
    given = {"suite": suite, "reference": tiny_reference(), "parameters": {"scopes": "last"}, "device": "cpu"}
    measured: list[str] = []
    piece = engine._Sweep.measure

    def noting(self, prompts, runs):
        measured.extend(prompt.prompt.id for prompt in prompts)
        return piece(self, prompts, runs)

    monkeypatch.setattr(engine._Sweep, "measure", noting)
    short = api.measure(model, "layer_ablation", out=tmp_path / "steps", **given | {"suite": f"{suite}[{n}]"})
    first = list(measured)
    assert sorted(first) == sorted(short["prompt"].values)
    measured.clear()
    steps = api.measure(model, "layer_ablation", out=tmp_path / "steps", **given)
    rest = list(measured)
    assert sorted(first + rest) == sorted(steps["prompt"].values), "each is measured once"
    once = api.measure(model, "layer_ablation", out=tmp_path / "once", **given)
    assert steps.drop_attrs().identical(once.drop_attrs())
    assert not list((tmp_path / "steps").rglob("*.parts")), "what was kept for the whole is in its result"
    assert len(list((tmp_path / "steps").rglob("layer_ablation-*.nc"))) == (2 if n == 1 else 1)


def test_the_minutes_choose_the_templates(tmp_path, monkeypatch, caplog):
    """As many as fit: one, two, four, …, or all."""
    model, asked = tiny(tmp_path), {"probes": "layer_ablation", "comparisons": ()}
    suite = Suite("few", tuple(Prompt(f"{family}{n}", family, "x" * n) for family in "ab" for n in range(1, 7)))
    settings = {"suite": suite, "device": "cpu"}
    monkeypatch.setattr(cost, "estimate", lambda step, config: (float(len(config.suite)), 1.0))
    chosen = {0.5: "few[1]", 3: "few[1]", 4: "few[2]", 7: "few[2]", 8: "few[4]", 11: "few[4]", 12: "few", 100: "few"}
    planned = {m: api.plan(model, minutes=m, **asked, **settings).config.suite for m in chosen}
    assert {m: suite.name for m, suite in planned.items()} == chosen
    assert [len(suite) for suite in planned.values()] == [2, 2, 4, 4, 8, 8, 12, 12]
    plan = Plan([resolve(model)], MeasureConfig.make(**settings), probes=["layer_ablation"])
    assert cost.shortened(plan, 0.5, done=lambda step: True).config.suite is suite  # what is there costs nothing
    unknown = Plan([resolve(model)], MeasureConfig.make(**settings), probes=["layer_ablation", "head_ablation"])
    monkeypatch.setattr(
        cost, "estimate", lambda step, config: (5.0 if step.job.probe == "layer_ablation" else math.nan, 1.0)
    )
    assert cost.shortened(unknown, 5, done=lambda step: False).config.suite is suite  # of one no time is known
    monkeypatch.setattr(cost, "estimate", lambda step, config: (float(len(config.suite)), 1.0))
    keys = {api.plan(model, minutes=m, **asked, **settings).steps[0].job.key for m in (2, 12)}
    assert len(keys) == 2
    with caplog.at_level(logging.WARNING, "xatlas"):
        api.plan(model, minutes=0.5, **asked, **settings)
    assert "one template of each family takes about 2 minutes, not 0.5" in caplog.text
    for minutes in (0, -1, float("nan"), float("inf")):
        with pytest.raises(XatlasError, match="it takes a number above 0"):
            api.plan(model, minutes=minutes, **asked, **settings)
