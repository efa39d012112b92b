"""How much of the test split's wording training has seen, once numbers and names are masked."""

from __future__ import annotations

import re
from collections.abc import Iterable

from xatlas.suites import Prompt

from .words import COLOURS, COUNTRIES, FUNCTIONS, LETTERS, MODULES, NAMES, NOUNS, OPPOSITES, VARIABLES

CONTENT = frozenset(
    (
        *(*NOUNS, *COLOURS, *LETTERS, *VARIABLES, *NAMES, *FUNCTIONS, *MODULES),
        *(word for row in COUNTRIES for word in row),
        *(word for pair in OPPOSITES for word in pair),
    )
)


def mask(text: str) -> str:
    """The text with every number replaced by 0 and every name, noun or variable of the word lists by _."""
    return re.sub(r"[A-Za-z]+", lambda word: "_" if word[0] in CONTENT else word[0], re.sub(r"\d+", "0", text))


def overlap(test: Iterable[Prompt], train_texts: Iterable[str]) -> dict[str, float]:
    """Per family, the share of test prompts whose masked text occurs among the masked training texts."""
    seen = {mask(text) for text in train_texts}
    hits: dict[str, list[bool]] = {}
    for prompt in test:
        hits.setdefault(prompt.family, []).append(mask(prompt.text) in seen)
    return {family: sum(values) / len(values) for family, values in hits.items()}
