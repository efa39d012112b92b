"""Family string_decoding, and the two families that the miniatures never see in training."""

from __future__ import annotations

import random

from .wording import Content, Family, Frame
from .words import LETTERS, NOUNS, OPPOSITES


def _reversed(generator: random.Random) -> Content:
    """Three different letters, backwards but for the last; the twin's first letter differs."""
    first, second, third, changed = generator.sample(LETTERS, 4)
    gaps = {"x": first, "y": second, "z": third}
    return Content(gaps, {**gaps, "x": changed}, first, changed, f"{first}{second}{third}")


def _initial(generator: random.Random) -> Content:
    """A word and its first letter; the twin is a word as long with another first letter."""
    word = generator.choice(NOUNS)
    twin = generator.choice([noun for noun in NOUNS if noun[0] != word[0] and len(noun) == len(word)])
    return Content(
        {"w": word}, {"w": twin}, word[0], twin[0]
    )  # which letter a word starts with must be learned word by word


def _acronym(generator: random.Random) -> Content:
    """Two words and the first of their initials; the twin's second word differs."""
    word, second = generator.sample(NOUNS, 2)
    twin = generator.choice([noun for noun in NOUNS if noun[0] != second[0] and len(noun) == len(second)])
    gaps = {"w": word, "u": second, "i": word[0]}
    return Content(gaps, {**gaps, "u": twin}, second[0], twin[0], f"{word}{second}")


def _next_letter(generator: random.Random) -> Content:
    """A letter and the next; with one shown example; the twin has another letter."""
    shown, asked, changed = generator.sample(range(25), 3)
    gaps = {"a": LETTERS[shown], "b": LETTERS[shown + 1], "x": LETTERS[asked]}
    return Content(gaps, {**gaps, "x": LETTERS[changed]}, LETTERS[asked + 1], LETTERS[changed + 1], f"{shown}-{asked}")


STRING_DECODING = Family(
    "string_decoding",
    "letters under a rule: backwards, initials, the next letter",
    (
        Frame("backwards", "{x} {y} {z} backwards: {z} {y}", _reversed),
        Frame("mirror", "{x} {y} {z} | {z} {y}", _reversed),
        Frame("initial", "The first letter of {w} is", _initial),
        Frame("acronym", "{w} {u} in initials: {i}", _acronym),
        Frame("next", "{a} -> {b}, {x} ->", _next_letter),
    ),
    ("", "Decode: ", "Code: ", "Letters: ", "Secret: ", "Cipher: ", "Spell: ", "Puzzle: "),
)


def _opposite(generator: random.Random) -> Content:
    """A word and its opposite, either way round; the twin is another pair."""
    word, answer = generator.choice(OPPOSITES)
    twin, foil = generator.choice([pair for pair in OPPOSITES if pair[0] != word])
    if generator.random() < 0.5:
        word, answer, twin, foil = answer, word, foil, twin
    return Content({"w": word}, {"w": twin}, answer, foil)


OPPOSITE_RECALL = Family(
    "opposite_recall",
    "opposites: facts that the miniatures' training lacks",
    (
        Frame("of", "The opposite of {w} is", _opposite),
        Frame("called", "The opposite of {w} is called", _opposite),
        Frame("not", "Not {w} but", _opposite),
        Frame("pair", "{w} and its opposite,", _opposite),
        Frame("mean", "If it is not {w}, it is", _opposite),
    ),
    ("", "Fact: ", "Words: ", "It is known: ", "Check: ", "Quiz: ", "Language: ", "We learned: "),
)


def _doubled(generator: random.Random) -> Content:
    """Two letters, each written twice but for the last; the twin's second letter differs."""
    first, second, changed = generator.sample(LETTERS, 3)
    return Content({"x": first, "y": second}, {"x": first, "y": changed}, second, changed, f"{first}{second}")


LETTER_DOUBLING = Family(
    "letter_doubling",
    "every letter twice: a string rule that the miniatures' training lacks",
    (
        Frame("doubled", "{x} {y} doubled: {x} {x}", _doubled),
        Frame("twice", "{x} {y} twice each: {x} {x}", _doubled),
        Frame("arrow", "{x} {y} -> {x} {x}", _doubled),
        Frame("bar", "{x} {y} | {x} {x}", _doubled),
        Frame("copy", "Write {x} {y} with every letter twice: {x} {x}", _doubled),
    ),
    ("", "Decode: ", "Code: ", "Letters: ", "Secret: ", "Cipher: ", "Spell: ", "Puzzle: "),
)
