"""What goes wrong on the command line: one line per mistake on stderr, exit codes that mean something."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from running import Counting, another, plugged, seeds
from typer.testing import CliRunner

from xatlas.cli import app


def one_line(result, code):
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("xatlas: ")
    return lines[0]


EMPTY, SAME = "empty.jsonl", "same.jsonl"
MISTAKES = {
    "model": (["run", "no-such-model", "--probes", "residual_norms"], "no-such-model"),
    "model path": (["run", "./nowhere"], "./nowhere"),
    "probe": (["run", "tiny", "--probes", "layer_ablatio"], "did you mean 'layer_ablation'"),
    "comparison": (["compare", "-m", "tiny", "--comparisons", "hubb"], "did you mean 'hub'"),
    "suite": (["run", "tiny", "--suite", "quik"], "did you mean 'quick'"),
    "suite file": (["run", "tiny", "--suite", "none.jsonl"], "none.jsonl"),
    "device": (["run", "tiny", "--device", "tpu"], "unknown device 'tpu'"),
    "dtype": (["run", "tiny", "--dtype", "float8"], "unknown dtype 'float8'"),
    "bos": (["run", "tiny", "--bos", "maybe"], "unknown BOS habit 'maybe'"),
    "attention": (["run", "tiny", "--attention", "flash"], "unknown attention implementation"),
    "set": (["run", "tiny", "--set", "layer_ablation"], "PROBE.NAME=VALUE"),
    "set probe": (["run", "tiny", "--set", "nope.a=1"], "unknown probe 'nope'"),
    "set name": (["run", "tiny", "--set", "layer_ablation.scope=all"], "did you mean 'scopes'"),
    "option": (["run", "tiny", "--sute", "quick"], "did you mean '--suite'"),
    "option of another probe": (
        ["run", "tiny", "--probes", "residual_norms", "--components", "x"],
        "pairwise_ablation",
    ),
    "option without a value": (["run", "tiny", "--components"], "--components needs a value"),
    "stray word": (["run", "tiny", "other"], "unexpected 'other'"),
    "option before the model": (["run", "--components", "L0.mlp", "tiny"], "xatlas run MODEL, then options"),
    "empty suite": (["run", "tiny", "--suite", EMPTY], "holds no prompt"),
    "same ids": (["run", "tiny", "--suite", SAME], "line 2"),
    "explain": (["explain", "hubb"], "did you mean 'hub'"),
    "empty name": (["compare", "-m", "tiny,,other"], "has an empty name"),
    "no name at all": (["compare", "-m", ""], "has an empty name"),
    "no suite's name": (["run", "tiny", "--suite", ""], "unknown suite ''"),
    "open quote": (["compare", "-m", '"tiny,other'], "can't be read"),
    "set twice": (
        ["run", "tiny", "--set", "layer_ablation.ablations=zero", "--set", "layer_ablation.ablations=mean"],
        "layer_ablation.ablations is set twice",
    ),
    "set of no use": (
        ["run", "tiny", "--probes", "residual_norms", "--set", "layer_ablation.ablations=zero"],
        "'layer_ablation' would not be measured",
    ),
    "set comparison in run": (["run", "tiny", "--set", "steering_profile.dose=1"], "is a comparison that is not asked"),
    "set comparison of no use": (
        ["compare", "-m", "tiny", "--comparisons", "hub", "--set", "steering_profile.dose=1"],
        "is a comparison that is not asked",
    ),
    "set unknown": (["compare", "-m", "tiny", "--set", "steering_profil.dose=1"], "did you mean 'steering_profile'"),
    "set nan": (
        ["compare", "-m", "tiny", "--comparisons", "steering_profile", "--dose", "nan"],
        "steering_profile.dose = 'nan' does not fit",
    ),
    "set to nothing": (["run", "tiny", "--probes", "layer_ablation", "--ablations="], "ablations = '' does not fit"),
    "set to one thing twice": (
        ["plan", "-m", "tiny", "--probes", "layer_ablation", "--ablations", "zero,zero"],
        "ablations = 'zero,zero' does not fit",
    ),
    "fetch nothing": (["models", "fetch", ""], "'' names no model"),
    "no draws": (["run", "tiny", "--draws", "0"], "draws = 0 does not fit"),
    "huge seed": (["run", "tiny", "--seed", "9" * 40], "does not fit"),
    "no tokens": (
        ["steer", "tiny", "x", "--direction", "random:1", "--layer", "0", "--strength", "1", "--tokens", "0"],
        "--tokens 0 does not fit",
    ),
    "show nothing": (["show", "nowhere"], "nothing has been measured there"),
    "show foreign": (["show", "suite.jsonl"], "no hash beside it"),
    "fetch": (["models", "fetch", "./nowhere"], "./nowhere"),
    "check": (["check", "nope"], "unknown plugin 'nope'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(case, cli, folder):
    (folder / EMPTY).write_text("\n")
    (folder / SAME).write_text('{"id": "a", "family": "f", "text": "x"}\n' * 2)
    words, message = MISTAKES[case]
    assert message in one_line(cli(*words), 2)


@pytest.mark.parametrize("words", [["compare"], ["run"], ["nonsense"], ["show"]])
def test_bad_usage_is_exit_2(words):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_out_that_is_a_file_is_one_line(cli, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    result = cli("run", "tiny", "--probes", "residual_norms", "--suite", "suite.jsonl", "--out", str(taken), out=False)
    assert "is not a folder" in one_line(result, 2)
    assert taken.read_text() == "mine"


def test_plan_refuses_what_run_would(cli, tmp_path):
    (tmp_path / "taken").write_text("mine")
    assert "is not a folder" in one_line(cli("plan", "-m", "tiny", "--out", str(tmp_path / "taken"), out=False), 2)


@pytest.mark.parametrize("name", ["x" * 300, "two\nlines"])
def test_out_with_an_odd_name_is_one_line_or_works(cli, tmp_path, name):
    words = ["run", "tiny", "--probes", "residual_norms", "--suite", "suite.jsonl", "--out", str(tmp_path / name)]
    result = cli(*words, out=False)
    assert "atlas/atlas" not in result.output
    if result.exit_code == 2:
        one_line(result, 2)
    else:
        assert len(result.stdout.split("\n\n")[0].splitlines()) == 3


def raising(self, model, suite, inputs):
    raise ValueError("no\nwords")


def test_a_failing_probe_is_named_at_the_end_with_exit_1(cli):
    with plugged(xatlas_probes=[another("bad", raising), Counting]):
        result = cli("run", "tiny", "--probes", "bad,counting")
    assert result.exit_code == 1
    assert "counting" in result.stdout
    assert "bad on tiny" in result.stderr.splitlines()[-1]
    assert "ValueError: no words" in result.stderr
    assert "Traceback" not in result.output


def test_a_prompt_longer_than_the_context_is_exit_1_with_its_id(cli, folder):
    line = {"id": "long-one", "family": "f", "text": "x" * 200, "target": " y"}
    (folder / "long.jsonl").write_text(json.dumps(line) + "\n")
    result = cli("run", "tiny", "--probes", "residual_norms", "--suite", "long.jsonl")
    assert result.exit_code == 1
    assert "long-one: it has 20" in result.stderr
    assert "Traceback" not in result.output


def test_interrupting_is_130_and_says_that_work_is_kept(cli):
    def interrupted(self, model, suite, inputs):
        raise KeyboardInterrupt

    with plugged(xatlas_probes=[another("stopped", interrupted)]):
        result = cli("run", "tiny", "--probes", "stopped")
    assert result.exit_code == 130
    assert "is kept" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_ctrl_c_ends_a_real_run_cleanly(folder, tmp_path):
    command = [sys.executable, "-m", "xatlas.cli", "run", "tiny", "--probes", "head_ablation", "--out", str(tmp_path)]
    command += ["--suite", "suite.jsonl", "--reference", "reference.jsonl", "--draws", "500"]
    run = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env={**os.environ})
    while "head_ablation" not in run.stderr.readline():
        assert run.poll() is None
    time.sleep(1)
    run.send_signal(signal.SIGINT)
    rest = run.communicate(timeout=100)[1]
    assert run.returncode == 130
    assert "is kept" in rest
    assert "Traceback" not in rest


def test_values_of_seeds_are_floats():
    # Guards the helper: a dataset off its contract would make the failing-probe tests pass for a wrong reason.
    from types import SimpleNamespace

    from xatlas.schema import validate
    from xatlas.suites import Prompt, Suite

    suite = Suite("s", (Prompt("a", "f", "x"),))
    validate(seeds(Counting.variables, suite, SimpleNamespace(seed=1)), Counting)
