"""A tiny model on disk for the loading tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from running import write_tiny_llama


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("original") / "tiny")


@pytest.fixture
def tiny(tmp_path, original, monkeypatch):
    monkeypatch.setenv("XATLAS_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(original, tmp_path / "tiny"))
