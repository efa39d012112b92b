"""Text of others made safe to print and to file; lists of names as people write them."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Sequence
from typing import Any

from xatlas.errors import XatlasError

#: What moves a cursor, hides or turns text around: control characters (but tab and line break), marks of
#: direction, separators of lines, and halves of characters, which no terminal can print.
_UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
#: How a formula begins in one spreadsheet or another.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def printable(text: str) -> str:
    """Return text that does nothing to a terminal but stand there: what would is written as its escape."""
    return _UNSAFE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Return printable text without line breaks or runs of spaces."""
    return printable(" ".join(text.split()))


def first_line(error: BaseException) -> str:
    """Return what an error of another library says, cut to one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."


def and_more(names: Sequence[str]) -> str:
    """Return the first of several names, and how many more there are."""
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def say_on_stderr(line: str) -> None:
    """Tell the user what takes time; stdout is for results."""
    print(f"xatlas: {one_line(line)}", file=sys.stderr, flush=True)


def spreadsheet_cell(value: Any) -> Any:
    """Return a value for a CSV file; a text that a spreadsheet would run as a formula gets an apostrophe."""
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def split_names(text: str) -> list[str]:
    """Return the names in a comma-separated text; one that holds a comma stands in double quotes."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise XatlasError(f"the list {text!r} can't be read: {error}.") from None
    names = [name.strip() for row in rows for name in row]
    if not names or not all(names):
        raise XatlasError(f"the list {text!r} has an empty name: leave no comma too many, or leave the option out.")
    return names


def number(value: float) -> str:
    """Return a number in three digits, a whole one without any after the point; ``–`` for none."""
    if value != value:
        return "–"
    if abs(value) >= 1000 or value == round(value):
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".")


def interval(value: float, low: float, high: float) -> str:
    """Return ``0.530 [0.400, 0.660]``, the number alone where the interval is unknown; ``–`` for none."""
    if value != value or low != low or high != high:
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def span(values: Sequence[float], form: str) -> str:
    """Return the least and the largest number as text, once where they are written alike."""
    return "–".join(dict.fromkeys(format(end, form) for end in (min(values), max(values))))
