"""Comparisons of runs: made again only when their inputs change, over the models that are left, with variants."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import time

import pytest
import torch
import xarray as xr
from running import Counting, go, plugged, suite_file, tiny

from xatlas import files
from xatlas.api import compare, measure
from xatlas.config import MeasureConfig
from xatlas.contracts.comparison import Finding
from xatlas.errors import XatlasError
from xatlas.files import write_hashed
from xatlas.results import store as store_module
from xatlas.results.atlas import verify
from xatlas.results.store import Store, read_entry
from xatlas.run.compare import _adjusted


def test_a_comparison_goes_on_without_the_model_that_failed(folder, tmp_path, monkeypatch):
    from xatlas.run import runner as module

    def load(model, given, original=module.load_model):
        if model.slug.startswith("other"):
            raise XatlasError("the weights are damaged.")
        return original(model, given)

    monkeypatch.setattr(module, "load_model", load)
    names = [str(folder / "tiny"), tiny(tmp_path, "other", seed=1)]
    done = compare(
        names,
        comparisons=["hub"],
        suite=str(folder / "suite.jsonl"),
        reference=str(folder / "reference.jsonl"),
        out=tmp_path,
        device="cpu",
    )
    assert [row["model"].partition("-")[0] for row in done.results[0].table[:1]] == ["tiny"]
    assert ["other" in failure.what for failure in done.failures] == [True, True]


def test_compare_is_made_again_only_when_its_inputs_change(folder, tmp_path):
    arguments = {"suite": str(folder / "suite.jsonl"), "reference": str(folder / "reference.jsonl")}
    names = [str(folder / "tiny")]

    def again(**more):
        return compare(names, comparisons=["hub"], out=tmp_path, device="cpu", **arguments, **more)

    first, second = again(), again()
    assert not first.failures
    assert [first.results[0].reused, second.results[0].reused] == [False, True]
    assert second.results[0].table == first.results[0].table
    assert len(second.results[0].findings) == len(first.results[0].findings)
    figure = first.results[0].files[0]
    figure.write_bytes(b"scribbled over")
    assert not again().results[0].reused
    assert figure.read_bytes() != b"scribbled over"
    # A sensitivity run that lands in the atlas is news for the comparison.
    measure(names[0], "layer_ablation", out=tmp_path, device="cpu", bos="native", **arguments)
    assert not again().results[0].reused


def test_a_comparison_reads_each_result_once(folder, tmp_path, monkeypatch):
    arguments = {"suite": str(folder / "suite.jsonl"), "reference": str(folder / "reference.jsonl")}
    names = [str(folder / "tiny")]
    asked = {"comparisons": ["hub", "early_late"], "out": tmp_path, "device": "cpu", **arguments}
    assert not compare(names, **asked).failures
    time.sleep(0.05)
    reads = []

    def counted(path, original=files.read_hashed):
        reads.append(path)
        return original(path)

    monkeypatch.setattr(files, "read_hashed", counted)
    store_module._remembered.clear()  # as in a command of its own
    for record in (tmp_path / "atlas" / ".comparisons").glob("*.json"):
        record.unlink()
    assert not any(result.reused for result in compare(names, **asked).results)
    assert sorted(reads) == sorted((tmp_path / "atlas").glob("*/*.nc"))


def test_sensitivity_runs_reach_a_comparison_as_variants(folder, settings, model, tmp_path):
    from xatlas.run.compare import variants

    store = Store(tmp_path)
    with plugged(xatlas_probes=[Counting]):
        main = go(model, settings, store, "counting").measured[0].job
        for change in ({"bos": "native"}, {"seed": 1}, {"dtype": "bfloat16"}):
            go(model, dataclasses.replace(settings, **change), store, "counting")
        longer = suite_file(tmp_path / "longer.jsonl", "abc", 6)
        part = dataclasses.replace(settings, suite=settings.suite.first_templates(1))
        go(model, part, store, "counting")  # a part of a suite is not another suite
        both = MeasureConfig.make(suite=longer, reference=settings.reference, bos="native", device="cpu")
        go(model, both, store, "counting")
        stale = tmp_path / "suite.jsonl"
        suite_file(stale, "ab", 2)
        go(model, MeasureConfig.make(suite=str(stale), reference=settings.reference, device="cpu"), store, "counting")
    found = variants(main, settings, store)
    root = f"/{model.slug}/counting"
    assert sorted(found) == [f"{root}@bos=native", f"{root}@bos=native,suite=longer"]
    tree = xr.DataTree.from_dict(
        {node: read_entry(path).dataset() for node, path in {root: store.file(main), **found}.items()}
    )
    assert tree[f"{root}@bos=native,suite=longer"].sizes["prompt"] == 18


PLUGIN = """
import math

import helper_of_mine
from xatlas import Comparison, Finding, Requirement


class Told(Comparison):
    name = "told"
    summary = "What a helper says."
    requires = (Requirement("counting"),)

    def compare(self, tree):
        import xarray as xr

        models = list(tree.children)
        return xr.Dataset({"value": ("model", [1.0] * len(models))}, coords={"model": models})

    def plot(self, dataset):
        from matplotlib.figure import Figure

        made = Figure(figsize=(1, 1))
        made.subplots()
        return made

    def findings(self, dataset):
        return [Finding("A thing.", 1.0, -math.inf, math.inf, math.nan, math.nan, "undecided")]

    def table(self, dataset):
        return [{"model": "m", "says": helper_of_mine.SAID, "nothing": math.nan}]
"""


@pytest.fixture
def told(folder, tmp_path, monkeypatch):
    """Return a function that writes a comparison and its helper, loads them and compares."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions of one second would share it
    arguments = {"suite": str(folder / "suite.jsonl"), "reference": str(folder / "reference.jsonl"), "device": "cpu"}

    def run(said=None, plugin=PLUGIN, change=None, more=(), names=("tiny",), **others):
        if said is not None:
            (tmp_path / "helper_of_mine.py").write_text(f"SAID = {said!r}\n")
            (tmp_path / "plugin_of_mine.py").write_text(plugin)
            for module in ("helper_of_mine", "plugin_of_mine"):
                sys.modules.pop(module, None)
            importlib.invalidate_caches()
        kind = importlib.import_module("plugin_of_mine").Told
        if change:
            change(kind)
        with plugged(xatlas_probes=[Counting], xatlas_comparisons=[kind, *more]):
            chosen = [*(other.name for other in more), "told"]
            models = [str(folder / name) for name in names]
            return compare(models, comparisons=chosen, out=tmp_path, **{**arguments, **others})

    yield run
    for module in ("helper_of_mine", "plugin_of_mine"):
        sys.modules.pop(module, None)


def test_a_changed_comparison_is_not_printed_from_an_old_record(told, tmp_path):
    first, again = told("this").results[0], told("this").results[0]
    assert (first.reused, again.reused) == (False, True)
    assert repr((again.table, again.findings)) == repr((first.table, first.findings))
    assert [again.findings[0].low, again.findings[0].high] == [-math.inf, math.inf]
    for change in (
        {"said": "that"},  # its helper
        {"plugin": PLUGIN.replace('{"model": "m",', '{"model": "m", "more": 1,')},
        {"change": lambda kind: setattr(kind, "version", 2)},
        {"change": lambda kind: setattr(kind, "table", lambda self, dataset: [{"model": "changed"}])},
    ):
        result = told(**{"said": "this", **change}).results[0]
        assert not result.reused
    assert result.table == [{"model": "changed"}]
    # The file has changed since it was loaded: neither is told from its record, nor kept under its name.
    told("this")
    (tmp_path / "helper_of_mine.py").write_text("SAID = 'later'\n")
    assert told().results[0].table[0]["says"] == "this"
    assert told("later").results[0].table[0]["says"] == "later"


def test_a_comparison_of_results_that_were_measured_again_is_made_again(told):
    """The names of their files, which are those of their jobs, are the same."""
    made = [told("this", refresh=refresh).results[0].reused for refresh in (False, True, False)]
    assert made == [False, False, True]


def test_a_comparison_without_source_is_made_every_time(told):
    def typed_in(kind):
        space = {"Told": kind}
        exec("def table(self, dataset): return [{'model': 'typed in'}]", space)
        kind.table = space["table"]

    for _ in range(2):
        result = told("this", change=typed_in).results[0]
        assert (result.reused, result.table) == (False, [{"model": "typed in"}])


#: What happens to a comparison's record.
EDITS = [
    lambda record: b"[" * 100_000,
    lambda record: b'{"files": ' + b"9" * 5000 + b"}",
    lambda record: b"null",
    lambda record: b"\xff",
    lambda record: record | {"key": "0" * 64, "table": [{"model": "another's"}]},
    lambda record: record | {"table": [["no row"]]},
    lambda record: record | {"findings": [{"sentence": "half"}]},
    lambda record: record | {"findings": [record["findings"][0] | {"p": None}]},
    lambda record: record | {"files": 3},
    lambda record: record | {"files": {"nowhere.png": "0"}},
]


def test_a_record_that_is_not_this_comparisons_is_made_again(told, tmp_path):
    first = told("this").results[0]
    (path,) = (tmp_path / "atlas" / ".comparisons").glob("*.json")
    for number, edit in enumerate(EDITS):
        edited = edit(json.loads(path.read_bytes()))
        write_hashed(path, edited if isinstance(edited, bytes) else json.dumps(edited).encode())
        again = told("this")
        assert not again.failures, number
        assert not again.results[0].reused, number
        assert repr(again.results[0].table) == repr(first.table), number
        assert told("this").results[0].reused, number


def test_what_is_there_is_read_without_a_lock_and_what_can_not_be_kept_is_made(told, tmp_path, monkeypatch):
    told("this")

    def closed(*arguments):
        raise XatlasError("the folder is not writable.")

    monkeypatch.setattr("xatlas.run.compare.locked", closed)
    assert told("this").results[0].reused
    made = told("that")
    assert (made.failures, made.results[0].table[0]["says"]) == ([], "that")


@dataclasses.dataclass(frozen=True)
class Sized:
    size: int = 1


def test_figures_of_two_settings_are_two(told, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "uses_reference", True)
    monkeypatch.setattr(Counting, "Parameters", Sized)
    changes = (
        {"suite": str(shutil.copy(folder / "suite.jsonl", tmp_path / "other.jsonl"))},  # the same by another name
        {"suite": suite_file(tmp_path / "suite.jsonl", "abd")},
        {"reference": suite_file(tmp_path / "reference.jsonl", "ab", 9)},
        {"parameters": {"counting": {"size": 2}}},
    )
    first = told("this").results[0]
    for number, change in enumerate(changes, 2):
        other = told("this", **change).results[0]
        assert (other.reused, other.files) == (False, first.files), change
        suffixes = sorted(path.suffix for path in (tmp_path / "figures").iterdir())
        assert suffixes == sorted([".csv", ".nc", ".png", ".svg"] * number), change
    assert told("this").results[0].files == first.files
    assert len(list((tmp_path / "figures").iterdir())) == 20


def test_a_figure_that_can_not_be_written_costs_no_numbers(told, tmp_path):
    (tmp_path / "figures").write_text("in the way")
    done = told("this")
    assert done.results[0].table[0]["says"] == "this"
    assert ["can't write the figure 'told'" in failure.reason for failure in done.failures] == [True]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_comparison_killed_a_hundred_times_ends_as_if_it_had_not_been(folder, tmp_path, request):
    """SIGKILL at random moments, again and again: the same numbers, tables and figures, and nothing besides."""
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)  # a forked child waits for ever for the threads of its parent
    options = {"suite": str(folder / "suite.jsonl"), "reference": str(folder / "reference.jsonl"), "device": "cpu"}

    def once(out):
        done = compare([str(folder / "tiny")], comparisons=["hub"], out=out, **options)
        return done.results[0] if not done.failures else None

    expected = once(tmp_path / "whole")
    started = time.monotonic()  # by now all that is needed is imported, as it will be in the children
    once(tmp_path / "timed")
    duration = time.monotonic() - started
    draw = random.Random(0)
    kills = rounds = 0
    while kills < 100:
        rounds += 1
        out = tmp_path / f"round{rounds}"
        killed = True
        while killed:
            child = os.fork()
            if child == 0:
                os._exit(0 if once(out) else 1)
            time.sleep(draw.uniform(0, duration))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status)
            assert killed or os.WEXITSTATUS(status) == 0
            kills += killed
        again = once(out)
        assert again.reused
        assert repr((again.table, again.findings)) == repr((expected.table, expected.findings))
        assert contents(out) == contents(tmp_path / "whole")
        assert not list(verify(out))
        for path in (out / "atlas").glob("*/*.nc"):
            whole = read_entry(tmp_path / "whole" / path.relative_to(out)).dataset()
            xr.testing.assert_identical(read_entry(path).dataset().drop_attrs(), whole.drop_attrs())


def contents(out):
    """Return the files of what compare wrote, with the bytes of those that depend on nothing but the numbers."""
    same = (".png", ".svg", ".csv")
    found = sorted(path for path in out.rglob("*") if path.is_file())
    # The key of a comparison's record digests its inputs' files, which say when they were measured.
    names = [re.sub(r"-[0-9a-f]{16}(?=\.json)", "", str(path.relative_to(out))) for path in found]
    return [(name, path.read_bytes() if path.suffix in same else None) for name, path in zip(names, found, strict=True)]


@pytest.mark.parametrize("method", ["compare", "table", "plot"])
@pytest.mark.parametrize("end", ["raise ValueError('two\\nlines')", "raise SystemExit(3)"])
def test_a_comparison_that_fails_is_one_line_with_its_place_and_the_others_go_on(told, tmp_path, method, end):
    head = f"    def {method}(self, " + ("tree):\n" if method == "compare" else "dataset):\n")
    plugin = PLUGIN.replace(head, f"{head}        {end}\n")
    line = plugin.splitlines().index(f"        {end}") + 1
    told("this")
    other = importlib.import_module("plugin_of_mine").Told

    class Other(other):
        name = "other"

    done = told("this", plugin=plugin, more=[Other])
    assert [result.name for result in done.results] == ["other"]
    (failure,) = done.failures
    assert failure.what == "told"
    assert f"plugin_of_mine.py, line {line}" in failure.reason
    assert "\n" not in failure.reason


SIZED = (
    PLUGIN.replace("import math\n", "import math\nfrom dataclasses import dataclass\n")
    .replace(
        '    summary = "What a helper says."\n',
        '    summary = "What a helper says."\n\n    @dataclass(frozen=True)\n    class Parameters:\n'
        "        size: int = 1  # how large\n",
    )
    .replace('{"model": "m",', '{"model": "m", "size": self.parameters.size,')
)


def test_a_comparison_with_other_parameters_is_not_printed_from_an_old_record(told):
    first = told("this", plugin=SIZED)
    other = told("this", plugin=SIZED, parameters={"told": {"size": 2}})
    assert [first.results[0].table[0]["size"], other.results[0].table[0]["size"]] == [1, 2]


def test_p_values_without_the_kit_are_adjusted_over_those_about_the_same_model_or_pair():
    told = [("a", 0.03), ("a", 0.04), ("b", 0.03)]
    given = [Finding("It is so.", 1, 0, 2, 0, p, "supported", model=model) for model, p in told]
    assert [each.p_adjusted for each in _adjusted(given)] == [0.06, 0.06, 0.03]
    pairs = [dataclasses.replace(given[0], model_other=other) for other in ("", "b", "c", "c")]
    assert [each.p_adjusted for each in _adjusted(pairs)] == [0.03, 0.03, 0.06, 0.06]
    given[0] = dataclasses.replace(given[0], p_adjusted=0.5)  # what was adjusted with others is not adjusted again
    assert [each.p_adjusted for each in _adjusted(given)] == [0.5, None, 0.03]
