"""A folder with tiny models and suites, and the command line called in it."""

from __future__ import annotations

import sys

import pytest
from running import suite_file, tiny
from typer.testing import CliRunner

from xatlas.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tiny(folder)
    tiny(folder, "other", seed=1)
    tiny(folder, "copy")
    suite_file(folder / "suite.jsonl")
    suite_file(folder / "reference.jsonl", "abcd", 12)
    return folder


@pytest.fixture
def cli(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)

    def call(*words, out=True):
        measuring = words[0] in ("compare", "run", "plan") and out
        more = ["--out", str(tmp_path), "--reference", "reference.jsonl"] if measuring else []
        if measuring and "--suite" not in words:
            more += ["--suite", "suite.jsonl"]
        monkeypatch.setattr(sys, "argv", ["xatlas", *words, *more])
        return CliRunner().invoke(app, [*words, *more])

    return call
