"""From Python: lists of names as people write them."""

from __future__ import annotations

import pytest
from running import Counting, plugged, suite_file, tiny

import xatlas
from xatlas.api import resolve_all
from xatlas.errors import XatlasError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    tiny(folder)
    tiny(folder, "other", seed=1)
    suite_file(folder / "suite.jsonl")
    suite_file(folder / "reference.jsonl", "abcd", 12)
    return folder


def test_a_text_is_a_list_with_commas_and_a_path_is_a_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    with plugged(xatlas_probes=[Counting]):
        options = {"suite": "suite.jsonl", "reference": "reference.jsonl", "out": tmp_path, "device": "cpu"}
        done = xatlas.compare("tiny, other", comparisons="early_late,early_late", **options)
        assert [result.name for result in done.results] == ["early_late"]
        assert len(done.results[0].table) >= 2
        assert xatlas.measure(folder / "tiny", "counting", **options).sizes["prompt"] == 12


@pytest.mark.parametrize(("given", "told"), [([], "at least one"), ("", "empty name"), ([3], "3 is no name")])
def test_what_is_no_list_of_names_is_refused(given, told):
    with pytest.raises(XatlasError, match=told):
        xatlas.compare(given)


def test_an_empty_suite_name_is_not_the_default():
    with pytest.raises(XatlasError, match="unknown suite ''"):
        xatlas.compare("lfm2-mini", suite="")


def test_names_of_one_model_are_said(folder, caplog):
    with pytest.raises(XatlasError, match="name it once"):
        resolve_all([str(folder / "tiny"), str(folder / "other" / ".." / "tiny")])
