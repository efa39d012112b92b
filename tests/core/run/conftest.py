"""A tiny model, suites and settings for the tests of runs."""

from __future__ import annotations

import pytest
from running import Counting, suite_file, tiny

from xatlas.config import MeasureConfig
from xatlas.loading.model_names import resolve


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny(folder)
    suite_file(folder / "suite.jsonl")
    suite_file(folder / "reference.jsonl", "abcd", 12)
    return folder


@pytest.fixture
def settings(folder):
    return MeasureConfig.make(
        suite=str(folder / "suite.jsonl"), reference=str(folder / "reference.jsonl"), device="cpu"
    )


@pytest.fixture
def model(folder):
    return resolve(str(folder / "tiny"))


@pytest.fixture(autouse=True)
def fresh():
    Counting.calls.clear()
