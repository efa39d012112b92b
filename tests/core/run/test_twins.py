"""Untrained twins beside their models: planned, measured, kept, and shown to comparisons that use them."""

from __future__ import annotations

import pytest
import xarray as xr
from matplotlib.figure import Figure
from running import Counting, plugged, tiny

from xatlas import Comparison, Requirement, XatlasError, api
from xatlas.results.store import Store, read_entry
from xatlas.twins import twins


class Grouping(Comparison):
    """Shows which twins each model has."""

    name = "grouping"
    summary = "Which twins are there?"
    requires = (Requirement("counting"),)
    uses_twins = True

    def compare(self, tree):
        found = twins(tree)
        own = [",".join(name.rpartition("-")[2] for name in each) for each in found.values()]
        return xr.Dataset({"twins": ("model", own)}, {"model": list(found)})

    def plot(self, dataset):
        figure = Figure()
        figure.subplots()
        return figure

    def findings(self, dataset):
        return []

    def table(self, dataset):
        names = [str(model).partition("-")[0] for model in dataset["model"].values]
        return [{"model": name, "twins": str(own)} for name, own in zip(names, dataset["twins"].values, strict=True)]


class Blind(Grouping):
    """Knows nothing of twins."""

    name = "blind"
    uses_twins = False


@pytest.fixture
def go(folder, tmp_path):
    given = {
        "suite": str(folder / "suite.jsonl"),
        "reference": str(folder / "reference.jsonl"),
        "device": "cpu",
        "out": tmp_path,
        "reporter": None,
        "comparisons": ["grouping", "blind"],
    }
    with plugged(xatlas_probes=[Counting], xatlas_comparisons=[Grouping, Blind]):
        yield lambda *names, **more: api.compare(list(names), **given | more)


def tables(report):
    return {result.name: {row["model"]: row["twins"] for row in result.table} for result in report.results}


def test_each_model_has_three_twins_where_a_comparison_uses_them(go, folder, tmp_path):
    names = [str(folder / "tiny"), tiny(tmp_path, "other", seed=1)]
    alone = go(*names)
    assert tables(alone) == {"grouping": {"tiny": "", "other": ""}, "blind": {"tiny": "", "other": ""}}
    report = go(*names, null="untrained")
    assert tables(report) == {"grouping": {"tiny": "0,1,2", "other": "0,1,2"}, "blind": {"tiny": "", "other": ""}}
    assert [result.reused for result in report.results] == [False, True]
    assert (len(report.measured), len(report.reused)) == (6, 2), "models are measured once"
    about = [read_entry(Store(tmp_path / "atlas").file(step.job)).provenance["model"] for step in report.measured]
    assert [each["untrained"] for each in about] == [0, 1, 2, 0, 1, 2]
    assert all(each["source"].startswith("random weights") for each in about)
    again = go(*names, null="untrained")
    assert not again.measured
    assert all(result.reused for result in again.results)


def test_an_untrained_model_that_is_named_has_no_twins_and_may_be_one(go, folder):
    path = str(folder / "tiny")
    assert tables(go(f"{path}~untrained:7", null="untrained"))["grouping"] == {"tiny": ""}
    report = go(path, f"{path}~untrained:1", f"{path}~untrained:7", null="untrained")
    assert tables(report)["grouping"] == {"tiny": "0,1,2,7"}
    assert len(report.plan.steps) == 5


@pytest.mark.slow
def test_twins_of_a_model_that_failed_are_not_taken_for_models(go, folder, tmp_path, monkeypatch):
    from xatlas.run import runner

    broken = ["other"]

    def load(model, given, original=runner.load_model):
        if any(model.name.endswith(end) for end in broken):
            raise XatlasError("it could not be loaded.")
        return original(model, given)

    monkeypatch.setattr(runner, "load_model", load)
    names = [str(folder / "tiny"), tiny(tmp_path, "other", seed=1)]
    assert tables(go(*names, null="untrained"))["grouping"] == {"tiny": "0,1,2"}
    broken.append("tiny~untrained:1")
    report = go(*names, null="untrained", refresh=True, out=tmp_path / "again")
    assert tables(report)["grouping"] == {"tiny": "0,2"}
    assert [str(each.what).partition("-")[0] for each in report.failures if each.what.startswith("grouping")] == [
        "grouping of other",
        "grouping of tiny",
    ]


def test_what_has_no_twins_is_told_in_a_line(go, folder, tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "lora" / "adapter_model.safetensors").touch()
    with pytest.raises(XatlasError, match="has no untrained twin, for LoRA weights come of training"):
        go(f"{folder / 'tiny'}+{tmp_path / 'lora'}", null="untrained")
    with pytest.raises(XatlasError, match="unknown null 'untraind'; did you mean 'untrained'"):
        go(str(folder / "tiny"), null="untraind")
