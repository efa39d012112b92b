"""What a suite and a named model must keep to: each violation is one line that says what is off."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from running import plugged
from typer.testing import CliRunner

from xatlas import ModelSource, Prompt, Suite, SuiteSpec, check_source, check_suite
from xatlas.cli import app
from xatlas.errors import XatlasError

GOOD = Prompt("a", "sums", "3 + 4 =", " 7", " 9", "3 + 6 =", (4, 5), "plus", {"note": [1, {"x": None}]})
COUNT = itertools.count()


def spec(*prompts, name="mine", **changes):
    return replace(SuiteSpec("mine", "Mine.", lambda: Suite(name, prompts)), **changes)


def test_a_good_suite_passes():
    check_suite(spec(GOOD, Prompt("b", "sums", "é\n \u200d x")))
    check_suite(Suite("mine", (GOOD,)))


@pytest.mark.parametrize(
    ("suite", "told"),
    [
        (spec(GOOD, summary=""), "no summary"),
        (spec(GOOD, default_for="measures"), "did you mean 'measure'"),
        (spec(load=lambda: [GOOD]), "must return a Suite, not list"),
        (spec(GOOD, name="other"), "calls itself 'other'"),
        (spec(load=lambda: Suite("mine", (replace(GOOD, text=f"{next(COUNT)} + 4"),))), "another each time"),
        (spec(load=lambda: Suite("mine", (replace(GOOD, foil=" 7"),))), "the same"),
        (spec(GOOD, GOOD), "twice"),
        (spec(GOOD, Prompt("c", "cut", "x", " 1", " 12")), "no prompt of family 'cut' can be read"),
        (spec(replace(GOOD, foil=None)), "has a twin, but no foil"),
        ("mine", "takes a SuiteSpec or a Suite"),
    ],
)
def test_what_is_off_in_a_suite_is_one_line(suite, told):
    with pytest.raises(XatlasError, match=told) as error:
        check_suite(suite)
    assert "\n" not in str(error.value)


HUB = ModelSource("m", "owner/model", "hub", "A model.")
WHEEL = ModelSource("w", "some-wheel==1.0", "wheel-gguf", "A model.", "a.gguf", "0" * 64)


@pytest.mark.parametrize("source", [HUB, WHEEL])
def test_a_good_source_passes(source):
    check_source(source)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (replace(HUB, summary="a\nb"), "no summary"),
        (replace(HUB, kind="hubb"), "did you mean 'hub'"),
        (replace(HUB, location="model"), "a hub id is owner/model"),
        (replace(HUB, kind="folder", location="here"), "absolute path"),
        (replace(WHEEL, sha256="abc"), "sha256"),
        (replace(WHEEL, location="some-wheel"), "pinned"),
    ],
)
def test_what_is_off_in_a_source_is_one_line(source, told):
    with pytest.raises(XatlasError, match=told):
        check_source(source)


def test_the_command_checks_suites_and_models():
    with plugged(xatlas_suites=[spec(replace(GOOD, foil=None))], xatlas_models={"m": replace(HUB, location="nowhere")}):
        done = CliRunner().invoke(app, ["check", "mine", "m", "quick"])
    assert done.exit_code == 1
    assert "FAILED  suite mine: suite 'mine': prompt 'a' has a twin, but no foil" in done.stdout
    assert "FAILED  model m: model 'm' is at 'nowhere'" in done.stdout
    assert "ok      suite quick" in done.stdout
