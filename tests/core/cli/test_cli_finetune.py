"""The command that fine-tunes: what it says, what it saves, and who can load it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

import xatlas
from xatlas import XatlasError
from xatlas.cli import app
from xatlas.plugins.training.finetune import _begin

SHORT = ["--steps", "6", "--rank", "2", "--data", "letter_doubling", "--suite", "quick[1]"]


def run(*words):
    return CliRunner().invoke(app, ["finetune", *map(str, words)])


def test_weights_load_here_and_in_plain_peft(tmp_path):
    done = run("qwen-mini", "--out", tmp_path / "w", "--roles", "mlp,attention.out", "--layers", "0,2", *SHORT)
    assert done.exit_code == 0, done.output
    assert "8 modules in layers 0, 2" in done.stderr
    assert done.stderr.index("8 modules") < done.stderr.index("step 6/6")
    assert f"The tuned model is 'qwen-mini+{tmp_path / 'w'}'" in done.stdout
    (row,) = (line.split() for line in done.stdout.split("\n") if "letter_doubling" in line)
    assert float(row[-1]) > 0  # KL, which is 0 before
    ids = torch.arange(3, 13)[None]
    base = xatlas.load("qwen-mini").model
    plain = base(ids).logits
    ours = xatlas.load(f"qwen-mini+{tmp_path / 'w'}").model(ids).logits
    theirs = PeftModel.from_pretrained(base, tmp_path / "w").eval()(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert float((ours - plain).abs().max()) > 1e-2
    assert not list((tmp_path / "w").glob("checkpoint*"))
    again = run("qwen-mini", "--out", tmp_path / "w", "--roles", "mlp", "--layers", "0,2", *SHORT)
    assert again.exit_code == 2
    assert "holds another run" in again.stderr


def test_json_has_every_family_before_and_after(tmp_path):
    done = run("qwen-mini", "--out", tmp_path / "w", "--layers", "hub", "--roles", "out", "--json", *SHORT)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    rows = {row["family"]: row for row in found["families"]}
    assert rows["letter_doubling"]["trained"]
    assert not rows["arithmetic"]["trained"]
    assert rows["letter_doubling"]["heldout_loss after"] < rows["letter_doubling"]["heldout_loss before"]
    n_layers = xatlas.load("qwen-mini").n_layers
    assert found["modules"] == -(-n_layers // 3)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--method", "ppo"], "unknown method 'ppo'"),
        (["--layers", "first"], "--layers first does not fit"),
        (["--roles", "conv"], "no module has the role 'conv'"),
        (["--data", "nothing.jsonl"], "cannot read nothing.jsonl"),
        (["--rank", "0"], "rank = 0 does not fit"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, words, what):
    done = run("qwen-mini", "--out", tmp_path / "w", *SHORT, *words)
    assert done.exit_code == 2
    assert what in done.stderr
    assert len(done.stderr.strip().split("\n")) == 1
    assert not (tmp_path / "w").exists()


def test_a_run_that_never_began_leaves_its_folder_to_another(tmp_path):
    """Data that don't fit are found once the folder is there; then one tries others."""
    place = _begin(tmp_path / "w", {"data": "first"})
    assert _begin(tmp_path / "w", {"data": "second"}) == place
    (place / "checkpoint-2").mkdir()
    assert _begin(tmp_path / "w", {"data": "second"}) == place
    with pytest.raises(XatlasError, match="holds another run"):
        _begin(tmp_path / "w", {"data": "first"})
