"""Families about what programs mean: code_semantics, dead_code, variable_renaming."""

from __future__ import annotations

import random

from .wording import Content, Family, Frame, other
from .words import FUNCTIONS, NAMES, VARIABLES

DIGITS = tuple(range(10))


def _two_variables(generator: random.Random) -> Content:
    """Two names with a digit each, one of which is read; the twin gives that one another digit."""
    names = generator.sample(VARIABLES, 2)
    digits = generator.sample(DIGITS, 2)
    asked = generator.randrange(2)
    changed = [*digits]
    changed[asked] = other(generator, DIGITS, *digits)
    gaps = {"a": names[0], "b": names[1], "m": digits[0], "n": digits[1], "asked": names[asked]}
    return Content(
        gaps,
        {**gaps, "m": changed[0], "n": changed[1]},
        str(digits[asked]),
        str(changed[asked]),
        f"{names}{digits}{asked}",
    )


def _alias(generator: random.Random) -> Content:
    """A name with a digit and a second name for it; the twin has another digit."""
    names = generator.sample(VARIABLES, 2)
    digit, changed = generator.sample(DIGITS, 2)
    gaps = {"a": names[0], "b": names[1], "m": digit}
    return Content(gaps, {**gaps, "m": changed}, str(digit), str(changed), f"{names}{digit}")


def _overwritten(generator: random.Random) -> Content:
    """A name set twice; the twin's second digit differs."""
    name = generator.choice(VARIABLES)
    before, digit, changed = generator.sample(DIGITS, 3)
    gaps = {"a": name, "m": before, "n": digit}
    return Content(gaps, {**gaps, "n": changed}, str(digit), str(changed), f"{name}{before}{digit}")


def _indexed(generator: random.Random) -> Content:
    """A list of two digits and an index; the twin reads the other element."""
    name = generator.choice(VARIABLES)
    digits = generator.sample(DIGITS, 2)
    asked = generator.randrange(2)
    gaps = {"a": name, "m": digits[0], "n": digits[1], "i": asked}
    return Content(gaps, {**gaps, "i": 1 - asked}, str(digits[asked]), str(digits[1 - asked]), f"{name}{digits}{asked}")


CODE_SEMANTICS = Family(
    "code_semantics",
    "what a short program prints",
    (
        Frame("read", "{a} = {m}\n{b} = {n}\nprint({asked}) # prints", _two_variables),
        Frame("alias", "{a} = {m}\n{b} = {a}\nprint({b}) # prints", _alias),
        Frame("overwrite", "{a} = {m}; {a} = {n}\nprint({a}) # prints", _overwritten),
        Frame("index", "{a} = [{m}, {n}]\nprint({a}[{i}]) # prints", _indexed),
        Frame("tuple", "{a}, {b} = {m}, {n}\nprint({asked}) # prints", _two_variables),
    ),
    ("", "# code\n", "# example\n", "# trace\n", "import sys\n", "# program\n", "# run\n", "import os\n"),
)


def _reached(generator: random.Random, live: tuple[str, ...], dead: tuple[str, ...]) -> Content:
    """A guard that lets the next statement run, or one that does not; the twin has its counterpart."""
    alive = generator.random() < 0.5
    # one number per outcome is drawn, whichever is used: so what follows does not depend on the outcome
    number = [generator.randrange(len(outcome)) for outcome in (dead, live)][alive]
    guards = (dead[number], live[number])
    gaps = {"g": guards[alive], "f": generator.choice(FUNCTIONS), "v": generator.choice(VARIABLES)}
    words = ("dead", "live")
    return Content(gaps, {**gaps, "g": guards[not alive]}, words[alive], words[not alive], f"{gaps['f']}{gaps['v']}")


def _guarded(generator: random.Random) -> Content:
    return _reached(generator, ("True", "not False", "1"), ("False", "not True", "0"))


def _jumped(generator: random.Random) -> Content:
    return _reached(generator, ("pass",), ("return",))


def _assigned(generator: random.Random) -> Content:
    """An assignment under a constant condition; the twin turns the condition around."""
    taken = generator.random() < 0.5
    before, after = generator.sample(DIGITS, 2)
    name = generator.choice(VARIABLES)
    gaps = {"v": name, "m": before, "n": after, "g": taken}
    answers = (str(before), str(after))
    return Content(gaps, {**gaps, "g": not taken}, answers[taken], answers[not taken], f"{name}{before}{after}")


DEAD_CODE = Family(
    "dead_code",
    "whether a statement can run, and what follows from it",
    (
        Frame("guard", "if {g}:\n    {f}({v})\n# the call is", _guarded),
        Frame("loop", "while {g}:\n    {f}({v})\n# {f} is", _guarded),
        Frame("jump", "def {f}({v}):\n    {g}\n    print({v}) # print is", _jumped),
        Frame("assign", "{v} = {m}\nif {g}:\n    {v} = {n}\nprint({v}) # prints", _assigned),
        Frame("either", "if not {g}:\n    {v} = {m}\nelse:\n    {v} = {n}\nprint({v}) # prints", _assigned),
    ),
    ("", "# code\n", "# dead or live\n", "# check\n", "import sys\n", "# lint\n", "# review\n", "import os\n"),
)


def _one_renamed(generator: random.Random) -> Content:
    """An old name and a new one; the twin has another new name."""
    old, keep, new, changed = generator.sample(NAMES + VARIABLES, 4)
    gaps = {"a": old, "b": new, "k": keep, "n": generator.randint(1, 9)}
    return Content(gaps, {**gaps, "b": changed}, new, changed, f"{old}{new}")


def _two_renamed(generator: random.Random) -> Content:
    """Two renamings, one of which is asked for; the twin asks for the other."""
    first, second, third, fourth = generator.sample(NAMES + VARIABLES, 4)
    asked = generator.randrange(2)
    gaps = {"a": first, "b": second, "c": third, "d": fourth, "asked": (first, third)[asked]}
    answers = (second, fourth)
    return Content(
        gaps,
        {**gaps, "asked": (first, third)[1 - asked]},
        answers[asked],
        answers[1 - asked],
        f"{first}{second}{third}{asked}",
    )


VARIABLE_RENAMING = Family(
    "variable_renaming",
    "the name that stands in a program after renaming",
    (
        Frame("becomes", "Rename {a} to {b}: {a} + {n} becomes", _one_renamed),
        Frame("second", "Rename {a} to {b}: {k} + {a} becomes {k} +", _one_renamed),
        Frame("call", "With {a} renamed to {b}, print({k}, {a}) is print({k},", _one_renamed),
        Frame("pair", "Rename {a} to {b} and {c} to {d}: {asked} becomes", _two_renamed),
        Frame("arrows", "{a} -> {b}, {c} -> {d}. The new name of {asked} is", _two_renamed),
    ),
    ("", "Refactor: ", "# rename\n", "Edit: ", "Step one. ", "Cleanup: ", "# refactor\n", "First. "),
)
