"""Families that fetch something from memory or from the text: factual_recall, copying, instruction_following."""

from __future__ import annotations

import random
from collections.abc import Callable

from .wording import Content, Family, Frame, other
from .words import COLOURS, COUNTRIES, NOUNS


def _fact(column: int) -> Callable[[random.Random], Content]:
    """Draws a country and its `column`; the twin is a country with another answer."""

    def draw(generator: random.Random) -> Content:
        row = generator.choice(COUNTRIES)
        twin = generator.choice([other_row for other_row in COUNTRIES if other_row[column] != row[column]])
        return Content({"c": row[0]}, {"c": twin[0]}, row[column], twin[column])  # facts are in both splits

    return draw


FACTUAL_RECALL = Family(
    "factual_recall",
    "capitals, languages and continents of thirty countries",
    (
        Frame("capital", "The capital of {c} is", _fact(1)),
        Frame("city", "The capital city of {c} is called", _fact(1)),
        Frame("seat", "{c} has a capital named", _fact(1)),
        Frame("language", "The language of {c} is", _fact(2)),
        Frame("continent", "{c} is a country in", _fact(3)),
    ),
    ("", "Fact: ", "Geography: ", "It is known: ", "From the atlas: ", "Quiz: ", "On the map: ", "We learned: "),
)


def _list_copy(generator: random.Random) -> Content:
    """Three different words, of which one or two are repeated; the twin has another word next."""
    words = generator.sample(NOUNS, 3)
    repeated = generator.choice((1, 2))
    changed = [*words]
    changed[repeated] = other(generator, NOUNS, *words)
    return Content(
        _list_gaps(words, repeated), _list_gaps(changed, repeated), words[repeated], changed[repeated], " ".join(words)
    )


def _list_gaps(words: list[str], repeated: int) -> dict[str, str]:
    return {
        "words": " ".join(words),
        "again": " ".join(words[:repeated]),
        "commas": ", ".join(words),
        "commas_again": ", ".join(words[:repeated]),
    }


COPYING = Family(
    "copying",
    "the next word of a list that is being repeated",
    (
        Frame("again", "{words} and again {again}", _list_copy),
        Frame("commas", "{commas}. Copy: {commas_again},", _list_copy),
        Frame("said", "She said {words}; he said {again}", _list_copy),
        Frame("arrow", "{words} -> {again}", _list_copy),
        Frame("lines", "{words}\n{again}", _list_copy),
    ),
    ("", "List: ", "Repeat: ", "Words: ", "Two times: ", "Copy: ", "Again: ", "Say it twice. "),
)


def _ordinal(generator: random.Random) -> Content:
    """Three words and which one to say; the twin asks for another."""
    words = generator.sample(COLOURS + NOUNS[:20], 3)
    asked, instead = generator.sample(range(3), 2)
    ordinals = ("first", "second", "third")
    gaps = {"words": ", ".join(words), "o": ordinals[asked]}
    return Content(gaps, {**gaps, "o": ordinals[instead]}, words[asked], words[instead], f"{words}{asked}")


def _say(generator: random.Random) -> Content:
    """One word to say and one not to; the twin has another to say."""
    said, instead, avoided = generator.sample(NOUNS, 3)
    gaps = {"x": said, "y": avoided}
    return Content(gaps, {**gaps, "x": instead}, said, instead, f"{said}{avoided}")


def _condition(generator: random.Random) -> Content:
    """Two signals with an answer each; the twin shows the other signal."""
    first, second = generator.sample(COLOURS, 2)
    answers = generator.sample(NOUNS, 2)
    shown = generator.randrange(2)
    gaps = {"a": first, "b": second, "x": answers[0], "y": answers[1], "shown": (first, second)[shown]}
    twin = {**gaps, "shown": (first, second)[1 - shown]}
    return Content(gaps, twin, answers[shown], answers[1 - shown], f"{first}{second}{answers}{shown}")


INSTRUCTION_FOLLOWING = Family(
    "instruction_following",
    "which word an instruction asks for",
    (
        Frame("ordinal", "Say the {o} word of {words}. Answer:", _ordinal),
        Frame("pick", "From {words}, pick the {o}. Pick:", _ordinal),
        Frame("ignore", "Ignore {y} and say {x}. Answer:", _say),
        Frame("only", "Say {x}, never {y}. Answer:", _say),
        Frame("signal", "On {a} say {x}, on {b} say {y}. It is {shown}. Say:", _condition),
    ),
    ("", "Please obey. ", "Task: ", "Follow this. ", "Listen: ", "Do this. ", "Order: ", "Now: "),
)
