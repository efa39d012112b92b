"""Suites by name or path, and those that stand in where none is named."""

from __future__ import annotations

import os
from typing import Literal

from xatlas import manager
from xatlas.errors import XatlasError, unknown
from xatlas.guard import calling
from xatlas.suites import Suite, read_suite


def find_suite(name: str) -> Suite:
    """Return the suite of that name, or the one in the JSON-lines file of that path.

    Raises
    ------
    XatlasError
        There is neither, or the file is off.
    """
    known = manager.suites()
    if name in known:
        try:
            with calling(known[name].load):
                return known[name].load()
        except XatlasError as error:
            if error.__cause__ is None:
                raise
            raise XatlasError(f"the suite '{name}' could not be made ({error}).") from error.__cause__
    if name.endswith((".jsonl", ".json")) or "/" in name or os.path.isfile(name):
        return read_suite(name)
    raise unknown("suite", name, known, "A path to a JSON-lines file works too.")


def default_suite(role: Literal["measure", "reference"]) -> str:
    """Return the name of the suite that is used when none is named.

    Raises
    ------
    XatlasError
        No plugin offers one.
    """
    for name, spec in manager.suites().items():
        if spec.default_for == role:
            return name
    raise XatlasError(f"no suite is the default to {role}: name one.")


def larger_suite(suite: Suite) -> Suite | None:
    """Return the smallest suite with a name that holds all prompts of ``suite`` and more; None if there is none."""
    ids = {prompt.id for prompt in suite}
    loaded = (find_suite(name) for name, spec in manager.suites().items() if spec.default_for != "reference")
    larger = [other for other in loaded if len(other) > len(suite) and ids <= {prompt.id for prompt in other}]
    return min(larger, key=len, default=None)
