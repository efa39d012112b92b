"""Tests of what a model can do, as data: read from JSON lines, checked, hashed. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from xatlas.errors import XatlasError, unknown
from xatlas.files import sha256
from xatlas.plugins.skills.checks import CHECKS
from xatlas.suites import Suite

#: The built-in categories, one file each.
CATEGORIES = (
    "factual_knowledge",
    "multilingual",
    "structured_output",
    "code",
    "entity_extraction",
    "data_extraction",
    "math",
    "classification",
    "agentic_patterns",
    "instruction_following",
    "robustness",
    "reasoning",
    "text_transformation",
    "summarisation",
)
_FIELDS = ("id", "category", "prompt", "messages", "check", "target", "wrong", "right", "tokens")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Test:
    """One test: what is asked, and what an answer must be.

    Raises
    ------
    XatlasError
        A field is missing, or does not fit.
    """

    id: str
    category: str
    messages: tuple[Mapping[str, str], ...]
    check: Mapping[str, Any]  # name of a check → its settings; all must hold
    target: Any = None
    wrong: tuple[str, ...] = ()  # answers that must fail; short ones may not stand beside a right phrase
    right: tuple[str, ...] = ()  # answers that must pass
    tokens: int = 64  # most tokens of an answer
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in (self.id, self.category):
            if not isinstance(name, str) or not name:
                raise XatlasError("'id' and 'category' must be texts that are not empty")
        if not self.check or not isinstance(self.check, Mapping):
            raise XatlasError(f"'check' must name at least one of {', '.join(CHECKS)}")
        for name in self.check:
            if name not in CHECKS:
                raise unknown("check", str(name), CHECKS)
        needed = {"verbatim", "phrase", "choice", "number", "exact", "items", "yaml", "csv"} & self.check.keys()
        if needed and self.target is None:
            raise XatlasError(f"the check '{min(needed)}' needs a 'target'")
        for turn in self.messages:
            if (
                not isinstance(turn, Mapping)
                or turn.get("role") not in _ROLES
                or not isinstance(turn.get("content"), str)
            ):
                raise XatlasError(f"'messages' are objects with a role ({', '.join(_ROLES)}) and a content")
        if not self.messages or self.messages[-1]["role"] != "user":
            raise XatlasError("a 'prompt' is needed, or 'messages' of which the last is the user's")
        if type(self.tokens) is not int or self.tokens < 1:
            raise XatlasError("'tokens' must be a whole number from 1")

    @property
    def asked(self) -> str:
        """What the user said last."""
        return self.messages[-1]["content"]

    @property
    def targets(self) -> tuple[str, ...]:
        """The target and its alternatives, as texts."""
        return tuple(map(str, self.target)) if isinstance(self.target, list | tuple) else (str(self.target),)


def parse(record: Any) -> Test:
    """Make a test of a JSON record."""
    if not isinstance(record, Mapping):
        raise XatlasError("one JSON object per line is needed")
    for name in record:
        if name not in _FIELDS:
            raise unknown("field", str(name), _FIELDS)
    given = dict(record)
    prompt, messages = given.pop("prompt", None), given.pop("messages", None)
    if (prompt is None) == (messages is None):
        raise XatlasError("give 'prompt' or 'messages', one of the two")
    turns = messages if prompt is None else [{"role": "user", "content": prompt}]
    for name in ("wrong", "right"):
        given[name] = tuple(given.get(name, ()))
    for name in ("id", "category", "check"):
        if name not in given:
            raise XatlasError(f"'{name}' is missing")
    return Test(messages=tuple(turns), record=record, **given)


def read_tests(path: str | Path) -> tuple[Test, ...]:
    """Read tests from JSON lines; a line that is off is named."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise XatlasError(f"cannot read the tests {path}: {error}.") from None
    return _parse_lines(text, str(path))


def _parse_lines(text: str, where: str) -> tuple[Test, ...]:
    found: dict[str, Test] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            test = parse(json.loads(line))
            if test.id in found:
                raise XatlasError(f"the id '{test.id}' stands twice")
        except (XatlasError, ValueError, RecursionError) as error:
            raise XatlasError(f"{where}, line {number}: {str(error).rstrip('.')}.") from None
        found[test.id] = test
    if not found:
        raise XatlasError(f"{where} holds no test: write one JSON object per line with id, category, prompt and check.")
    return tuple(found.values())


@cache
def built_in(categories: tuple[str, ...] = CATEGORIES) -> tuple[Test, ...]:
    """Return the built-in tests of some categories."""
    folder = files("xatlas.plugins.skills") / "data"
    return tuple(
        test
        for name in categories
        for test in _parse_lines((folder / f"{name}.jsonl").read_text(encoding="utf-8"), f"{name}.jsonl")
    )


def of_suite(suite: Suite) -> tuple[Test, ...]:
    """Return tests made of a suite's prompts that have targets: a model that goes on with the target passes."""
    made = tuple(
        Test(
            one.id,
            one.family,
            ({"role": "user", "content": one.text},),
            {"verbatim": {}},
            one.target,
            record=one.record(),
        )
        for one in suite
        if one.target is not None
    )
    if not made:
        raise XatlasError(f"suite '{suite.name}' has no prompt with a target: nothing can be tested with it.")
    return made


def hash_of(tests: Sequence[Test]) -> str:
    """Return the hex sha256 of what tests ask and check."""
    return sha256(json.dumps(test.record, sort_keys=True).encode() + b"\n" for test in tests)
