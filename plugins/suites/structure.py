"""Families about structure: delimiter_tracking, json_schema, code_syntax."""

from __future__ import annotations

import random
from collections.abc import Callable

from .wording import Content, Family, Frame, other
from .words import FUNCTIONS, MODULES, NAMES, VARIABLES

CLOSERS = {"(": ")", "[": "]", "{": "}", "<": ">"}
OPENERS = tuple(CLOSERS)


def _brackets(asked: str) -> Callable[[random.Random], Content]:
    """Draws openers o, p, q with closers O, P, Q and names; the twin changes the opener in gap `asked`."""

    def draw(generator: random.Random) -> Content:
        openers = {gap: generator.choice(OPENERS) for gap in "opq"}
        changed = {**openers, asked: other(generator, OPENERS, openers[asked])}
        names = dict(zip("xyz", generator.sample(VARIABLES, 3), strict=True))
        key = "".join(openers.values()) + "".join(names.values())
        return Content(
            _bracket_gaps(openers, names),
            _bracket_gaps(changed, names),
            CLOSERS[openers[asked]],
            CLOSERS[changed[asked]],
            key,
        )

    return draw


def _bracket_gaps(openers: dict[str, str], names: dict[str, str]) -> dict[str, str]:
    return {**openers, **names, **{gap.upper(): CLOSERS[opener] for gap, opener in openers.items()}}


DELIMITER_TRACKING = Family(
    "delimiter_tracking",
    "which bracket must close next, up to three deep",
    (
        Frame("flat", "{p} {x} {P} {o} {y}", _brackets("o")),
        Frame("inner", "{p} {x} {o} {y}", _brackets("o")),
        Frame("outer", "{o} {p} {x} {P}", _brackets("o")),
        Frame("deep", "{o} {p} {q} {x} {Q} {P}", _brackets("o")),
        Frame("middle", "{q} {o} {x} {p} {y} {P}", _brackets("o")),
    ),
    ("", "Close: ", "Brackets: ", "Balance this: ", "Match: ", "Nesting: ", "Parse: ", "Finish: "),
)

TYPES = ("string", "number", "boolean", "array", "object", "null")


def _schema(generator: random.Random) -> Content:
    """Two fields with different types, one of which is asked for; the twin gives that field another type."""
    names = generator.sample(NAMES, 2)
    types = generator.sample(TYPES, 2)
    asked = generator.randrange(2)
    changed = [*types]
    changed[asked] = other(generator, TYPES, *types)
    gaps = {"k": names[0], "l": names[1], "s": types[0], "t": types[1], "asked": names[asked]}
    return Content(
        gaps, {**gaps, "s": changed[0], "t": changed[1]}, types[asked], changed[asked], f"{names}{types}{asked}"
    )


JSON_SCHEMA = Family(
    "json_schema",
    "the type that a small schema gives to a field",
    (
        Frame("object", '{{"{k}": "{s}", "{l}": "{t}"}} The type of "{asked}" is', _schema),
        Frame("plain", "{{{k}: {s}, {l}: {t}}} {asked}:", _schema),
        Frame("fields", "fields {k}: {s}, {l}: {t}. The field {asked} is of type", _schema),
        Frame("valid", "{{{k}: {s}, {l}: {t}}} A valid {asked} is of type", _schema),
        Frame("list", "[{k}: {s}, {l}: {t}] so {asked} must be", _schema),
    ),
    ("", "Schema: ", "JSON ", "Given ", "Check: ", "Types: ", "Object: ", "Look: "),
)

# keyword -> the keyword that follows its name
FOLLOWERS = {"from": "import", "import": "as", "for": "in", "with": "as", "if": "else"}


def _keyword(keywords: tuple[str, ...], names: tuple[str, ...]) -> Callable[[random.Random], Content]:
    """Draws a keyword and a name; the twin has another keyword with another follower."""

    def draw(generator: random.Random) -> Content:
        keyword = generator.choice(keywords)
        twins = tuple(word for word in keywords if FOLLOWERS[word] != FOLLOWERS[keyword])
        changed = generator.choice(twins)
        gaps = {
            "w": keyword,
            "n": generator.choice(names),
            "v": generator.choice(VARIABLES),
            "f": generator.choice(FUNCTIONS),
        }
        key = f"{gaps['n']}{gaps['v']}{gaps['f']}"
        return Content(gaps, {**gaps, "w": changed}, FOLLOWERS[keyword], FOLLOWERS[changed], key)

    return draw


CODE_SYNTAX = Family(
    "code_syntax",
    "the keyword that Python's grammar wants next",
    (
        Frame("module", "{v} = {f}()\n{w} {n}", _keyword(("from", "import"), MODULES)),
        Frame("function", "def {f}({v}):\n    {w} {n}", _keyword(("from", "import"), MODULES)),
        Frame("list", "{f} = [{v} {w} {n}", _keyword(("for", "if"), NAMES)),
        Frame("loop", "while {f}({v}):\n    {w} {n}", _keyword(("for", "with"), NAMES)),
        Frame("branch", "if {f}({v}):\n    {w} {n}", _keyword(("for", "import", "from"), MODULES)),
    ),
    ("", "# code\n", "# example\n", "# Python\n", "import sys\n", "# script\n", "# file\n", "import os\n"),
)
