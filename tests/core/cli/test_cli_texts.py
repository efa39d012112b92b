"""What models wrote, shown prompt by prompt, two models side by side."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from xatlas import XatlasError, measure
from xatlas.cli.app import app
from xatlas.cli.lists import _texts

TESTS = [
    {"id": "a", "category": "one", "prompt": "2 + 2?", "check": {"number": {}}, "target": 4, "tokens": 3},
    {"id": "b", "category": "one", "prompt": "Say it.", "check": {"regex": "(?s).+"}, "tokens": 3},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    own = folder / "own.jsonl"
    own.write_text("\n".join(map(json.dumps, TESTS)))
    for model in ("qwen-mini", "lfm2-mini"):
        measure(model, "capability", parameters={"tests": str(own)}, out=folder, reporter=None)
    return [next((folder / "atlas" / model).glob("capability-*.nc")) for model in ("qwen-mini", "lfm2-mini")]


def test_two_models_stand_side_by_side(files):
    import xatlas.cli  # noqa: F401

    rows = _texts(files)
    assert [row["test"] for row in rows] == ["a", "b"]
    assert rows[0]["read"] == "User: 2 + 2?\nAssistant:"
    assert {"qwen-mini", "lfm2-mini"} <= rows[0].keys()
    assert all(row["qwen-mini"][:2] in ("+ ", "- ") for row in rows)
    shown = CliRunner().invoke(app, ["show", str(files[0]), "--texts", "--beside", str(files[1]), "--json"])
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)[1]["test"] == "b"


def test_without_texts_there_is_one_line(files):
    shown = CliRunner().invoke(app, ["show", str(files[0]), "--beside", str(files[1])])
    assert shown.exit_code == 2
    with pytest.raises(XatlasError, match="no file"):
        _texts([files[0].parent])
