"""A family that only teaches: looking a key up among two. No suite tests it.

Schemas, variables and renamings all need a look-up, which small models find late; this leads there.
"""

from __future__ import annotations

import random

from .structure import TYPES
from .wording import Content, Family, Frame
from .words import COLOURS, NAMES, NOUNS, VARIABLES

KEYS = (NOUNS, NAMES, VARIABLES)
VALUES = (NOUNS, COLOURS, NAMES, VARIABLES, TYPES, tuple("0123456789"))


def _pairs(generator: random.Random) -> Content:
    """Two keys with a value each, one of which is asked for; the twin asks for the other."""
    keys = generator.sample(generator.choice(KEYS), 2)
    values = generator.sample([word for word in generator.choice(VALUES) if word not in keys], 2)
    asked = generator.randrange(2)
    gaps = {"k": keys[0], "l": keys[1], "s": values[0], "t": values[1], "asked": keys[asked]}
    twin = {**gaps, "asked": keys[1 - asked]}
    return Content(gaps, twin, values[asked], values[1 - asked], f"{keys}{values}{asked}")


PAIRS = Family(
    "pairs",
    "the value of one of two keys",
    (
        Frame("plain", "{k} {s} {l} {t} {asked}", _pairs),
        Frame("commas", "{k} {s}, {l} {t}, {asked}", _pairs),
        Frame("colons", "{k}: {s}, {l}: {t}, {asked}:", _pairs),
        Frame("equals", "{k} = {s}; {l} = {t}; {asked} =", _pairs),
        Frame("find", "{k} {s} and {l} {t}. Find {asked}. Found", _pairs),
    ),
    ("", "Pairs: ", "Look up: ", "Table: ", "Given: ", "Data: ", "Keys: ", "Search: "),
)
