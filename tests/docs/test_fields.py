"""The guides name every field of what an author fills in or is given, and no other."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from xatlas import Finding, HeadLayout, HookPoint, Inputs, ModelSource, Prompt, Requirement, SuiteSpec, Variable
from xatlas.prompts.reader import TokenPrompt

DOCS = Path(__file__).parents[2] / "docs"
PLACES = [
    (SuiteSpec, "suites"),
    (ModelSource, "hooks"),
    (Variable, "probes"),
    (Requirement, "probes"),
    (Inputs, "probes"),
    (TokenPrompt, "probes"),
    (HookPoint, "adapters"),
    (HeadLayout, "adapters"),
    (Finding, "comparisons"),
]


def listed(table):
    return [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]


@pytest.mark.parametrize(("cls", "page"), PLACES, ids=lambda value: getattr(value, "__name__", value))
def test_a_guide_has_a_row_for_every_field(cls, page):
    text = (DOCS / f"{page}.md").read_text()
    (section,) = re.findall(rf"^### `{cls.__name__}`\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
    assert sorted(listed(section)) == sorted(field.name for field in dataclasses.fields(cls))


def test_the_suites_guide_has_a_row_for_every_field_of_a_prompt():
    section = re.search(r"^## Your own\n(.*?)^#", (DOCS / "suites.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    assert sorted([*listed(section), "extra"]) == sorted(field.name for field in dataclasses.fields(Prompt))
    assert "`extra`" in section
