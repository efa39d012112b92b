"""Families about numbers: arithmetic and constant_folding."""

from __future__ import annotations

import random
from collections.abc import Callable

from .wording import Content, Family, Frame
from .words import VARIABLES

DIGITS = tuple(range(1, 10))


def _sum(generator: random.Random) -> Content:
    """One or two digits plus one digit; the twin has another second summand."""
    first = generator.choice(DIGITS) if generator.random() < 0.5 else generator.randint(10, 59)
    second = generator.choice(DIGITS)
    twins = tuple(d for d in DIGITS if len(str(first + d)) == len(str(first + second)) and d != second)
    if not twins:  # 1 + 9 and the like: no other sum with as many digits
        return _sum(generator)
    changed = generator.choice(twins)
    return Content(
        {"a": first, "b": second},
        {"a": first, "b": changed},
        str(first + second),
        str(first + changed),
        f"{first}+{second}",
    )


def _difference(generator: random.Random) -> Content:
    """One or two digits minus one digit, never below zero; the twin has another second number."""
    first = generator.randint(2, 9) if generator.random() < 0.5 else generator.randint(10, 59)
    second = generator.randint(1, min(first, 9))
    twins = tuple(d for d in DIGITS if d <= first and len(str(first - d)) == len(str(first - second)) and d != second)
    if not twins:
        return _difference(generator)
    changed = generator.choice(twins)
    return Content(
        {"a": first, "b": second},
        {"a": first, "b": changed},
        str(first - second),
        str(first - changed),
        f"{first}-{second}",
    )


ARITHMETIC = Family(
    "arithmetic",
    "sums and differences of a number below 60 and a digit",
    (
        Frame("plus", "{a} + {b} =", _sum),
        Frame("words", "{a} plus {b} equals", _sum),
        Frame("sum", "The sum of {a} and {b} is", _sum),
        Frame("minus", "{a} - {b} =", _difference),
        Frame("less", "{a} minus {b} equals", _difference),
    ),
    ("", "Compute: ", "Math: ", "Solve this. ", "Quick sum: ", "Numbers: ", "Work out: ", "Add up. "),
)


def _fold(operator: Callable[[int, int], int], symbol: str, top: int) -> Callable[[random.Random], Content]:
    """Draws two digits; the twin has another second one and a result of as many digits."""

    def draw(generator: random.Random) -> Content:
        name = generator.choice(VARIABLES)
        first, second = generator.randint(1, 9), generator.randint(1, top)
        result = operator(first, second)
        twins = [d for d in range(1, top + 1) if d != second and len(str(operator(first, d))) == len(str(result))]
        if not twins:
            return draw(generator)
        changed = generator.choice(twins)
        gaps = {"v": name, "a": first, "b": second}
        return Content(
            gaps, {**gaps, "b": changed}, str(result), str(operator(first, changed)), f"{first}{symbol}{second}{name}"
        )

    return draw


def _comparison(generator: random.Random) -> Content:
    """Two different numbers below 100 with as many digits; the twin turns the outcome around."""
    low, high = (1, 9) if generator.random() < 0.5 else (10, 99)
    first = generator.randint(low + 1, high - 1)
    below, above = generator.randint(low, first - 1), generator.randint(first + 1, high)
    name = generator.choice(VARIABLES)
    second, changed = (below, above) if generator.random() < 0.5 else (above, below)
    gaps = {"v": name, "a": first, "b": second}
    return Content(gaps, {**gaps, "b": changed}, str(first > second), str(first > changed), f"{first}>{second}{name}")


def _logic(generator: random.Random) -> Content:
    """`and`/`or` of two truth values with a name before it; the twin flips the value that decides."""
    operator = generator.choice(("and", "or"))
    first = operator == "and"  # so that the second value decides
    second = generator.random() < 0.5
    gaps = {"v": generator.choice(VARIABLES), "a": first, "o": operator, "b": second}
    return Content(
        gaps, {**gaps, "b": not second}, str(second), str(not second), f"{first}{operator}{second}{gaps['v']}"
    )


CONSTANT_FOLDING = Family(
    "constant_folding",
    "what an expression of constants folds to",
    (
        Frame("add", "{v} = {a} + {b} folds to {v} =", _fold(lambda a, b: a + b, "+", 9)),
        Frame("times", "{v} = {a} * {b} folds to {v} =", _fold(lambda a, b: a * b, "*", 5)),
        Frame("inner", "{v} + ({a} + {b}) folds to {v} +", _fold(lambda a, b: a + b, "i", 9)),
        Frame("compare", "{v} = {a} > {b} folds to {v} =", _comparison),
        Frame("logic", "{v} = {a} {o} {b} folds to {v} =", _logic),
    ),
    ("", "Fold: ", "Optimize: ", "# fold\n", "# constants\n", "Simplify: ", "# compile\n", "Reduce: "),
)
