"""The bridge to lm-evaluation-harness, on a task of our own, without a network."""

from __future__ import annotations

import json
import sys

import pytest

from xatlas import XatlasError, manager, measure
from xatlas.contracts.probe import Inputs
from xatlas.plugins.lm_eval import LmEval
from xatlas.testing import CountingCheckpoint, tiny_model, tiny_suite

TASK = """
task: xatlas_sums
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list:
  - metric: acc
"""


def test_without_the_harness_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    model = tiny_model(manager.adapters()["LlamaForCausalLM"])
    with pytest.raises(XatlasError, match=r"pip install 'xatlas-lm\[lm-eval\]'"):
        LmEval(lm_eval="arc_easy").measure(model, tiny_suite(), Inputs())


def test_the_key_depends_on_the_files_that_a_task_names(tmp_path):
    task, data, code = tmp_path / "sums.yaml", tmp_path / "sums.jsonl", tmp_path / "own.py"
    task.write_text(TASK.format(file=data) + "process_docs: !function own.kept\n")
    keys = set()
    for changed in (data, code, task):
        changed.write_text(changed.read_text() + "\n" if changed.exists() else "{}")
        keys |= {str(LmEval(lm_eval=str(given)).canonical_parameters()["lm_eval"]) for given in (task, tmp_path)}
    assert len(keys) == 6
    task.write_text("task: [")
    with pytest.raises(XatlasError, match=r"sums\.yaml"):
        LmEval(lm_eval=str(task)).canonical_parameters()


@pytest.mark.slow
def test_a_task_of_ones_own_is_run_and_kept(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": f"{a} + {b} =", "choices": [f"{a + b + 1}", f"{a + b}"], "label": 1}
        for a, b in ((1, 2), (2, 2), (3, 1))
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = tmp_path / "sums.yaml"
    task.write_text(TASK.format(file=tmp_path / "sums.jsonl"))
    asked = {"lm_eval": (str(task),)}
    found = measure("qwen-mini", "lm_eval", parameters=asked, out=tmp_path, reporter=None)
    assert list(found["metric"].values) == ["xatlas_sums: acc,none"]
    from xatlas import load

    model = load("qwen-mini")
    right = 0
    for row in rows:
        ids = [
            model.tokenizer(f"{row['question']} {choice}", return_tensors="pt")["input_ids"]
            for choice in row["choices"]
        ]
        start = len(model.tokenizer(row["question"])["input_ids"])
        logits = [model.model(each).logits[0].log_softmax(-1) for each in ids]
        scores = [
            sum(float(one[at - 1, each[0, at]]) for at in range(start, each.shape[1]))
            for one, each in zip(logits, ids, strict=True)
        ]
        right += scores[1] > scores[0]
    assert float(found["value"][0]) == pytest.approx(right / 3)
    kept = CountingCheckpoint()
    again = LmEval(lm_eval=str(tmp_path)).measure(model, tiny_suite(), Inputs(checkpoint=kept))
    assert again.equals(found)
    assert len(kept.parts) == 1
    monkeypatch.setattr("lm_eval.simple_evaluate", None)
    assert LmEval(lm_eval=str(task)).measure(model, tiny_suite(), Inputs(checkpoint=kept)).equals(found)
    with pytest.raises(XatlasError, match="no task"):
        measure("qwen-mini", "lm_eval", parameters={"lm_eval": ("no_such_task",)}, out=tmp_path, reporter=None)
