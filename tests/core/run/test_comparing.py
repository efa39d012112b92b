"""Comparisons of runs: made again only when their inputs change, over the models that are left, with variants."""

from __future__ import annotations

import dataclasses

from running import Counting, go, plugged, suite_file, tiny

from xatlas.api import compare, make_settings, measure
from xatlas.errors import XatlasError
from xatlas.store import Store


def test_a_comparison_goes_on_without_the_model_that_failed(folder, tmp_path, monkeypatch):
    from xatlas.run import runner as module

    def load(step, settings, original=module.load_hooked):
        if step.job.model.startswith("other"):
            raise XatlasError("the weights are damaged.")
        return original(step, settings)

    monkeypatch.setattr(module, "load_hooked", load)
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
    other = tiny(tmp_path, "other", seed=1)
    arguments = {"suite": str(folder / "suite.jsonl"), "reference": str(folder / "reference.jsonl")}
    names = [str(folder / "tiny"), other]

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


def test_sensitivity_runs_reach_a_comparison_as_variants(folder, settings, model, tmp_path):
    from xatlas.run.lineup import build_tree, variants

    store = Store(tmp_path)
    with plugged(xatlas_probes=[Counting]):
        main = go(model, settings, store, "counting").measured[0].job
        for change in ({"bos": "native"}, {"seed": 1}, {"dtype": "bfloat16"}):
            go(model, dataclasses.replace(settings, **change), store, "counting")
        longer = suite_file(tmp_path / "longer.jsonl", "abc", 6)
        both = make_settings(longer, settings.reference, bos="native", device="cpu")
        go(model, both, store, "counting")
        stale = tmp_path / "suite.jsonl"
        suite_file(stale, "ab", 2)
        go(model, make_settings(str(stale), settings.reference, device="cpu"), store, "counting")
    found = variants(main, settings, store)
    root = f"/{model.slug}/counting"
    assert sorted(found) == [f"{root}@bos=native", f"{root}@bos=native,suite=longer"]
    tree = build_tree([(root, store.file(main)), *found.items()])
    assert tree[f"{root}@bos=native,suite=longer"].sizes["prompt"] == 18
