"""Which tests are asked, what is made of the answers, and what is kept beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xatlas import Probe
from xatlas.plugins.skills.asking import Chat

if TYPE_CHECKING:
    from xatlas import HookedModel
    from xatlas.plugins.skills.asking import Answer, Asked
    from xatlas.plugins.skills.tests import Test


class AskingProbe(Probe):
    """A probe that asks tests."""

    measures_on = "tests"
    replicate = None

    @dataclass(frozen=True)
    class Parameters:
        """How and what is asked."""

        tests: str = "built-in"
        categories: tuple[str, ...] = ()  # all
        per_category: int = 0  # the first so many of each; 0: all
        chat: Chat = "auto"
        run_code: bool = False

    def canonical_parameters(self) -> dict[str, Any]:
        """Return the parameters; tests by their contents, whatever the file is called."""
        return super().canonical_parameters() | {"tests": chosen(self.parameters)[0]}


def chosen(parameters: Any) -> tuple[str, tuple[Test, ...]]:
    """Return the tests that are asked for, and a name that tells them from others by what they hold."""
    from xatlas import manager
    from xatlas.config import find_suite
    from xatlas.errors import unknown
    from xatlas.plugins.skills import tests as held

    given = parameters.tests
    if given == "built-in":
        tests = held.built_in()
    elif given in manager.suites():
        tests = held.of_suite(find_suite(given))
    else:
        tests = held.read_tests(given)
    known = list(dict.fromkeys(test.category for test in tests))
    for name in parameters.categories:
        if name not in known:
            raise unknown("category", name, known)
    kept: list[Test] = []
    for category in known:
        own = [test for test in tests if test.category == category and category in (parameters.categories or known)]
        kept += own[: parameters.per_category or None]
    name = given if given == "built-in" or given in manager.suites() else "file"
    return f"{name}:{held.hash_of(kept)[:12]}", tuple(kept)


def questions_of(model: HookedModel, parameters: Any) -> tuple[list[Test], list[Asked]]:
    """Return the tests and, of each, the question as the model reads it; with both chat modes each test twice."""
    from xatlas.plugins.skills.asking import asked, chat_modes, continued

    tests = chosen(parameters)[1]
    if "verbatim" in tests[0].check:
        own = continued(model, tests)
        return [test for test in tests if test.id in own], list(own.values())
    modes = chat_modes(model, parameters.chat)
    found: list[Asked] = []
    for mode in modes:
        found += asked(model, [(test.id, test.messages, test.tokens) for test in tests], mode)
    return list(tests) * len(modes), found


def judged(tests: Sequence[Test], answers: Sequence[Answer], run_code: bool = False) -> list[float]:
    """Return 1 for each answer that passes, 0 for one that fails, NaN where nothing could be asked."""
    from xatlas.plugins.skills.checks import passes

    return [
        float("nan") if answer.stop_reason == "context" else float(passes(test, answer.text, run_code=run_code))
        for test, answer in zip(tests, answers, strict=True)
    ]


def about(tests: Sequence[Test], questions: Sequence[Asked], answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the coordinates of the dimension ``test``."""
    twice = len({one.id for one in questions}) < len(questions)
    labels = [f"{one.id} ({one.chat})" if twice else one.id for one in questions]
    return {
        "test": labels,
        "category": ("test", [test.category for test in tests]),
        "chat": ("test", [one.chat for one in questions]),
        "text": ("test", [one.text for one in questions]),
        "answer": ("test", [each.text for each in answers]),
        "answer_tokens": ("test", [each.tokens for each in answers]),
        "stop_reason": ("test", [each.stop_reason for each in answers]),
        "ties": ("test", [each.ties for each in answers]),
    }
