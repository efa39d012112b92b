"""Runs: only what is missing, nothing that others rest on is lost, every failure named."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
import xarray as xr
from running import Counting, another, go, plugged, seeds

from xatlas.api import load, measure
from xatlas.contracts.probe import Inputs, ReadingProbe, Requirement
from xatlas.errors import XatlasError
from xatlas.loading.model_names import resolve
from xatlas.probing.reading import read_together
from xatlas.results.atlas import verify
from xatlas.results.store import Store, read_entry
from xatlas.run import runner
from xatlas.run.plan import Plan
from xatlas.run.runner import run
from xatlas.testing import write_tiny_model


def test_what_is_there_is_not_measured_again(model, settings, tmp_path):
    store = Store(tmp_path)
    with plugged(xatlas_probes=[Counting]):
        first = go(model, settings, store, "counting")
        again = go(model, settings, store, "counting")
        other = go(model, dataclasses.replace(settings, seed=3), store, "counting")
    assert [len(first.measured), len(again.measured), len(again.reused), len(other.measured)] == [1, 0, 1, 1]
    assert len(Counting.calls) == 2
    assert float(store.read(other.measured[0].job).value[0]) == 3


def test_provenance_says_how_it_was_measured(model, settings, tmp_path):
    store = Store(tmp_path)
    with plugged(xatlas_probes=[Counting]):
        step = go(model, settings, store, "counting").measured[0]
    entry = read_entry(store.file(step.job))
    assert entry.job == step.job
    assert entry.name_of("suite") == "suite"
    assert entry.provenance["suite"]["hash"] == settings.suite.hash
    assert entry.provenance["model"]["weights_hash"] == model.weights_hash
    assert {"xatlas", "torch", "transformers", "numpy"} <= set(entry.provenance["versions"])
    assert entry.provenance["device"] == "cpu"
    assert entry.provenance["wall_time_s"] >= 0


def raising(self, model, suite, inputs):
    raise ValueError("two\nlines")


def off_contract(self, model, suite, inputs):
    return seeds(self.variables, suite, inputs).drop_vars("family")


def training(self, model, suite, inputs):
    with __import__("torch").no_grad():
        next(model.model.parameters()).add_(1)
    return seeds(self.variables, suite, inputs)


@pytest.mark.parametrize(
    ("measure_", "reason"),
    [
        (raising, "ValueError: two lines"),
        (off_contract, "'prompt' lacks its coordinate 'family'"),
        (training, "it changed the model's weights"),
    ],
)
def test_a_probe_that_fails_is_named_and_stops_nothing_else(model, settings, tmp_path, measure_, reason):
    store = Store(tmp_path)
    with plugged(xatlas_probes=[another("bad", measure_), Counting]):
        outcome = go(model, settings, store, "bad", "counting")
    assert [step.job.probe for step in outcome.measured] == ["counting"]
    assert [failure.what for failure in outcome.failures] == [f"bad on {model.slug}"]
    assert reason in outcome.failures[0].reason
    assert not list(tmp_path.glob("*/bad-*.nc"))


def test_a_probe_that_trains_gets_a_model_that_nobody_else_sees(model, settings, tmp_path):
    seen = []

    def look(self, model, suite, inputs):
        seen.append(model.checksum())
        return training(self, model, suite, inputs) if self.mutates else seeds(self.variables, suite, inputs)

    probes = [another("trains", look, mutates=True), another("looks", look)]
    with plugged(xatlas_probes=probes):
        outcome = go(model, settings, Store(tmp_path), "looks", "trains", "looks")
        outcome = go(model, dataclasses.replace(settings, seed=1), Store(tmp_path), "trains", "looks")
    assert not outcome.failures
    assert len(seen) == 4
    assert len(set(seen)) == 1


def test_a_probe_that_trains_is_not_let_at_somebodys_own_model(model, settings):
    loaded = load("qwen-mini", device="cpu")
    before = loaded.checksum()
    with (
        plugged(xatlas_probes=[another("trains", training, mutates=True)]),
        pytest.raises(XatlasError, match="name the"),
    ):
        measure(loaded, "trains", suite=settings.suite)
    assert loaded.checksum() == before


def test_results_of_required_probes_are_given_and_enter_the_key(model, settings, tmp_path):
    def twice(self, model, suite, inputs):
        result = seeds(self.variables, suite, inputs)
        result["value"] += 2 * inputs.results["counting"].value
        return result

    needs = property(lambda self: (Requirement("counting"),))
    store = Store(tmp_path)
    with plugged(xatlas_probes=[another("twice", twice, requires=needs), Counting]):
        outcome = go(model, dataclasses.replace(settings, seed=5), store, "twice")
    assert [step.job.probe for step in outcome.measured] == ["counting", "twice"]
    first, second = (step.job for step in outcome.measured)
    assert second.inputs == {"counting": first.key}
    assert float(store.read(second).value[0]) == 15


def test_what_another_run_measured_while_this_one_waited_is_reused(model, settings, tmp_path, monkeypatch):
    ours, theirs, lock = Store(tmp_path), Store(tmp_path), Store.lock

    def waiting(store, job):
        if store is ours:
            go(model, settings, theirs, "counting")
        return lock(store, job)

    Counting.calls.clear()
    monkeypatch.setattr(Store, "lock", waiting)
    with plugged(xatlas_probes=[Counting]):
        outcome = go(model, settings, ours, "counting")
    assert Counting.calls == [model.slug]
    assert [step.job.probe for step in outcome.reused] == ["counting"]
    assert not outcome.measured
    assert not outcome.failures


def test_what_rests_on_a_failed_probe_fails_with_that_reason(model, settings, tmp_path):
    needs = property(lambda self: (Requirement("bad"),))
    probes = [another("bad", raising), another("upper", Counting.measure, requires=needs)]
    with plugged(xatlas_probes=probes):
        outcome = go(model, settings, Store(tmp_path), "upper")
    assert "rests on bad, which could not be measured" in outcome.failures[1].reason


def test_reading_probes_share_one_pass_and_a_bad_one_spoils_no_other(model, settings, tmp_path, monkeypatch):
    from xatlas.model import HookedModel

    passes = []
    original = HookedModel.capture

    def counted(self, ids, sites):
        if any(site.kind == "resid_pre" for site in sites):  # loading captures attention patterns
            passes.append(len(ids))
        return original(self, ids, sites)

    monkeypatch.setattr(HookedModel, "capture", counted)

    def reader(name, finish):
        def start(self, model, suite, inputs):
            self.suite, self.inputs = suite, inputs

        attributes = {
            "name": name, "sites": ("resid_pre",), "variables": Counting.variables, "start": start,
            "update": lambda self, capture: None, "finish": finish,
        }  # fmt: skip
        return type(name, (ReadingProbe,), attributes)

    def fine(self):
        return seeds(self.variables, self.suite, self.inputs)

    def bad(self):
        raise ValueError("no")

    with plugged(xatlas_probes=[reader("one", fine), reader("two", fine)]):
        outcome = go(model, settings, Store(tmp_path / "a"), "one", "two")
    assert len(outcome.measured) == 2
    assert sum(passes) == len(settings.suite)
    with plugged(xatlas_probes=[reader("one", fine), reader("bad", bad)]):
        outcome = go(model, settings, Store(tmp_path / "b"), "bad", "one")
    assert [step.job.probe for step in outcome.measured] == ["one"]
    assert [failure.what for failure in outcome.failures] == [f"bad on {model.slug}"]


def test_patterns_are_read_of_the_model_as_it_is_loaded(model, settings, tmp_path, monkeypatch):
    """Beside other probes: it is loaded once, with the attention asked for, and the job says what was eager."""
    loaded = []
    original = runner.load_model
    monkeypatch.setattr(
        runner, "load_model", lambda named, given: loaded.append(given["attention"]) or original(named, given)
    )
    outcome = go(model, settings, Store(tmp_path), "attention_patterns", "residual_norms", "layer_ablation")
    assert not outcome.failures
    assert loaded == ["sdpa"]
    kinds = {step.job.probe: step.job.attention for step in outcome.measured}
    assert kinds == {"attention_patterns": "eager", "residual_norms": "sdpa", "layer_ablation": "sdpa"}


def test_a_model_without_sdpa_is_loaded_with_what_it_has(settings, tmp_path, capsys):
    model = resolve(str(write_tiny_model(tmp_path / "mamba", "MambaForCausalLM")))
    outcome = go(model, settings, Store(tmp_path / "atlas"), "residual_norms", "layer_ablation")
    assert not outcome.failures
    assert {step.job.attention for step in outcome.measured} == {"eager"}
    assert "MambaForCausalLM has no sdpa attention" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_does_not_stop_the_next(model, settings, tmp_path):
    broken = dataclasses.replace(model, slug="broken", folder=tmp_path / "gone")
    with plugged(xatlas_probes=[Counting]):
        outcome = run(Plan([broken, model], settings, probes=["counting"]), Store(tmp_path / "atlas"))
    assert [failure.what for failure in outcome.failures] == ["broken"]
    assert [step.job.model for step in outcome.measured] == [model.slug]


def test_prompts_left_out_are_said(model, settings, tmp_path, caplog):
    def leaving_out(self, model, suite, inputs):
        result = seeds(self.variables, suite, inputs)
        result.attrs["dropped"] = '{"a0": "logits not finite"}'
        return result

    with plugged(xatlas_probes=[another("partial", leaving_out)]):
        go(model, settings, Store(tmp_path), "partial")
    assert "prompts left out: 1, e.g. a0: logits not finite" in caplog.text


def test_a_device_that_is_not_there_is_said_once(model, settings, tmp_path):
    with plugged(xatlas_probes=[Counting]), pytest.raises(XatlasError, match="cuda:99"):
        go(model, dataclasses.replace(settings, device="cuda:99"), Store(tmp_path), "counting")


def test_measure_gives_what_the_atlas_then_holds(folder, tmp_path):
    arguments = {
        "suite": str(folder / "suite.jsonl"),
        "reference": str(folder / "reference.jsonl"),
        "parameters": {"ablations": ["zero"]},
    }
    stored = measure(str(folder / "tiny"), "layer_ablation", out=tmp_path, device="cpu", **arguments)
    direct = measure(load(str(folder / "tiny"), device="cpu"), "layer_ablation", **arguments)
    assert list((tmp_path / "atlas").glob("*/layer_ablation-*.nc"))
    np.testing.assert_array_equal(stored.kl, direct.kl)
    assert stored.kl.dims == ("prompt", "layer", "component", "ablation", "scope")


def test_a_loaded_model_refuses_options_that_are_not_its_own(folder, settings):
    hooked = load("qwen-mini", device="cpu", bos="native")
    others = {"bos": "always", "dtype": "bfloat16", "attention": "eager", "chat_template": True, "device": "mps"}
    for name, value in (others | {"template_date": "2024-02-02"}).items():
        with pytest.raises(XatlasError, match=f"the loaded model has {name} = .*, not {value}: leave {name} out"):
            measure(hooked, "residual_norms", suite=settings.suite, **{name: value})
    with plugged(xatlas_probes=[Counting]):
        measure(hooked, "counting", suite=settings.suite, bos="native", dtype="float32", device="auto", seed=3)


class Heard:
    """Writes down what it hears."""

    def __init__(self):
        self.told = []

    def loading(self, model):
        self.told.append(("loading", model))

    def start(self, step):
        self.told.append(("start", str(step)))

    def progress(self, label, done, total):
        self.told.append(("progress", label))

    def finish(self, step, seconds):
        self.told.append(("finish", str(step)))

    def fail(self, failure):
        self.told.append(("fail", str(failure)))


def test_measuring_a_loaded_model_reports(folder, settings):
    def advance(self, model, suite, inputs):
        inputs.progress("half", 1, 2)
        return seeds(self.variables, suite, inputs)

    hooked, heard = load(str(folder / "tiny"), device="cpu"), Heard()
    needs = property(lambda self: (Requirement("counting"),))
    probes = [Counting, another("upper", advance, requires=needs), another("bad", raising)]
    with plugged(xatlas_probes=probes):
        measure(hooked, "upper", suite=settings.suite, reporter=heard)
        with pytest.raises(XatlasError, match="ValueError: two lines"):
            measure(hooked, "bad", suite=settings.suite, reporter=heard)
    on = f"on {hooked.slug}"
    assert heard.told[:5] == [
        ("start", f"counting {on}"),
        ("finish", f"counting {on}"),
        ("start", f"upper {on}"),
        ("progress", "half"),
        ("finish", f"upper {on}"),
    ]
    assert [kind for kind, _ in heard.told[5:]] == ["start", "fail"]


def test_records_hold_the_hash_of_the_tokens_that_were_run(folder, model, settings, tmp_path):
    store = Store(tmp_path)
    with plugged(xatlas_probes=[Counting]):
        first = go(model, settings, store, "counting").measured[0]
        other = go(model, dataclasses.replace(settings, bos="native"), store, "counting").measured[0]
    hooked = load(str(folder / "tiny"), device="cpu")
    about = read_entry(store.file(first.job)).provenance
    assert about["suite"]["tokens"] == hooked.read(settings.suite).hash
    assert about["reference"]["tokens"] == hooked.read(settings.reference).hash
    assert read_entry(store.file(other.job)).provenance["suite"]["tokens"] != about["suite"]["tokens"]


def made_by(store, job, **versions):
    """Write a result again, as one that other versions gave."""
    entry, dataset = read_entry(store.file(job)), store.read(job)
    about = {name: value for name, value in entry.provenance.items() if name not in ("format", "key")}
    store.write(job, dataset, about | {"versions": about["versions"] | versions})


def test_results_of_other_versions_are_reused_and_said_once(model, settings, tmp_path, caplog):
    store = Store(tmp_path)
    probes = [Counting, another("second", Counting.measure), another("third", Counting.measure)]
    with plugged(xatlas_probes=probes):
        steps = go(model, settings, store, "counting", "second", "third").measured
        made_by(store, steps[0].job, transformers="4.1.0")
        made_by(store, steps[1].job, transformers="4.1.2")
        here = torch.__version__
        made_by(store, steps[2].job, torch=f"{here.rpartition('.')[0]}.99")
        caplog.clear()
        assert len(go(model, settings, store, "counting", "second", "third").reused) == 3
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert f"with transformers 4.1.0: counting on {model.slug}; with transformers 4.1.2: second on" in told[0]
    assert "--refresh" in told[0]
    assert "third" not in told[0]


def test_refresh_measures_again_and_replaces_only_what_was_measured(model, settings, tmp_path):
    def lower(self, model, suite, inputs):
        if Counting.calls.count("fail"):
            raise ValueError("no")
        assert inputs.checkpoint.load("part") is None  # parts of another run may be another version's
        Counting.calls.append("lower")
        return seeds(self.variables, suite, inputs) + len(Counting.calls)

    def upper(self, model, suite, inputs):
        return inputs.results["lower"]

    def value(job):
        return float(store.read(job)["value"][0])

    needs = property(lambda self: (Requirement("lower"),))
    store = Store(tmp_path)
    with plugged(xatlas_probes=[another("lower", kept(lower)), another("upper", kept(upper), requires=needs)]):
        plan = Plan([model], settings, probes=["upper"])
        jobs = [step.job for step in plan.steps]
        assert len(run(plan, store).measured) == 2
        store.checkpoint(jobs[0]).save("part", {"x": np.zeros(1)})
        assert [value(job) for job in jobs] == [1, 1]
        assert len(run(plan, store, refresh=True).measured) == 2
        assert [value(job) for job in jobs] == [2, 2]
        assert store.checkpoint(jobs[0]).load("part") is None
        Counting.calls.append("fail")
        outcome = run(plan, store, refresh=True)
        assert "rests on lower, which could not be measured" in outcome.failures[1].reason
        assert [value(job) for job in jobs] == [2, 2]
        assert len(run(plan, store).reused) == 2


def kept(measure_):
    """Let a measure keep its variables' attributes through arithmetic."""

    def measuring(self, model, suite, inputs):
        with xr.set_options(keep_attrs=True):
            return measure_(self, model, suite, inputs)

    return measuring


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_a_hundred_times_loses_no_finished_bucket(folder, settings, model, tmp_path, request):
    """SIGKILL at random moments, again and again: what is finished stays, and the end is the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child waits for ever for the threads of its parent
    request.addfinalizer(lambda: torch.set_num_threads(before))
    plan = Plan([model], settings, probes=["layer_ablation"])
    whole = Store(tmp_path / "whole")
    assert not run(plan, whole).failures
    started = time.monotonic()  # by now all that is needed is imported, as it will be in the children
    run(plan, Store(tmp_path / "timed"))
    duration = time.monotonic() - started
    expected = whole.read(plan.steps[0].job).drop_attrs()
    draw = random.Random(0)
    kills = finished = rounds = 0
    while kills < 100:
        rounds += 1
        store = Store(tmp_path / f"round{rounds}")
        kept: set[str] = set()
        while store.state(plan.steps[0].job) != "done":
            child = os.fork()
            if child == 0:
                failed = run(plan, store).failures
                os._exit(1 if failed else 0)
            time.sleep(draw.uniform(0, duration))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
            kills += os.WIFSIGNALED(status)
            parts = store.checkpoint(plan.steps[0].job)
            there = {file.stem for file in parts.folder.glob("*.npz")}
            if store.state(plan.steps[0].job) != "done":
                assert kept <= there
                assert all(parts.load(key) is not None for key in there)
            kept, finished = there, max(finished, len(there))
        xr.testing.assert_identical(store.read(plan.steps[0].job).drop_attrs(), expected)
        assert run(plan, store).reused  # it clears away what a kill after the end left
        assert not list(verify(store.path))
        assert not [path for path in store.path.rglob("*") if path.suffix in (".tmp", ".parts", ".damaged")]
    assert finished > 1, "no kill met a run with finished buckets: the test shows nothing"


@pytest.mark.parametrize("number", [1, 2])
def test_what_a_reading_probe_does_to_its_values_in_place_the_next_does_not_see(number, model, settings):
    class Reader(ReadingProbe):
        name, sites, variables = "reader", ("resid_pre",), Counting.variables

        def start(self, model, suite, inputs):
            self.total = 0.0

        def update(self, capture):
            for value in capture.values.values():
                self.total += float(value.abs().sum())
                value.zero_()

        def finish(self):
            return self.total

    hooked = load(str(model.folder), device="cpu")
    totals = read_together([Reader() for _ in range(number)], hooked, settings.suite, [Inputs()] * number)
    assert len(set(totals)) == 1
    assert totals[0] > 0


def test_a_reading_probe_that_is_tried_again_begins_anew(model, settings, tmp_path):
    def reader(name, finish):
        def start(self, model, suite, inputs):
            self.suite, self.inputs = suite, inputs

        def update(self, capture):
            self.seen = [*getattr(self, "seen", []), *capture.index]

        held = {"sites": ("resid_pre",), "variables": Counting.variables}
        return type(name, (ReadingProbe,), {"name": name, **held, "start": start, "update": update, "finish": finish})

    def fine(self):
        assert sorted(self.seen) == list(range(len(self.suite)))
        return seeds(self.variables, self.suite, self.inputs)

    def bad(self):
        raise ValueError("no")

    with plugged(xatlas_probes=[reader("one", fine), reader("bad", bad)]):
        outcome = go(model, settings, Store(tmp_path), "bad", "one")
    assert [step.job.probe for step in outcome.measured] == ["one"]


def test_results_of_another_minor_version_are_said(model, settings, tmp_path, caplog):
    store = Store(tmp_path)
    major, minor, *_ = torch.__version__.split(".")
    with plugged(xatlas_probes=[Counting]):
        made_by(store, go(model, settings, store, "counting").measured[0].job, torch=f"{major}.{int(minor) + 1}.0")
        go(model, settings, store, "counting")
    assert f"with torch {major}.{int(minor) + 1}.0" in caplog.text
