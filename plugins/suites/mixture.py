"""What trains the miniatures: the families' train splits, the slow ones more often."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace

from xatlas.suites import Prompt

from . import FAMILIES
from .lessons import PAIRS
from .wording import Family

LESSONS: dict[str, Family] = {PAIRS.name: PAIRS}  # in no suite
#: Share of the lines whose answer is the twin's: without slips, models grow so sure that no change moves them.
SLIPS = 0.1
OTHERS = "others"  # weight of every family that is not named

#: How often the stream draws from each family: more often where small models are slow, in arithmetic and look-ups.
WEIGHTS: Mapping[str, float] = {
    "arithmetic": 3.0,
    "json_schema": 2.0,
    "code_semantics": 1.5,
    "variable_renaming": 1.5,
    "instruction_following": 1.5,
    "pairs": 1.5,
    OTHERS: 1.0,
}


def proportions(weights: Mapping[str, float] = WEIGHTS) -> dict[str, float]:
    """The share of every family and lesson."""
    full = {name: weights.get(name, weights[OTHERS]) for name in FAMILIES | LESSONS}
    return {name: weight / sum(full.values()) for name, weight in full.items()}


def training_stream(seed: int, weights: Mapping[str, float] = WEIGHTS) -> Iterator[Prompt]:
    """Prompts of the train split without end, the same for the same arguments on every machine."""
    generator = random.Random(f"mixture/{seed}")
    shares = proportions(weights)
    names, sums = list(shares), list(itertools.accumulate(shares.values()))
    streams = {
        name: family.stream("train", seed + 1) for name, family in (FAMILIES | LESSONS).items()
    }  # not the suite's
    while True:
        prompt = next(streams[generator.choices(names, cum_weights=sums)[0]])
        slip = generator.random() < SLIPS
        yield replace(prompt, target=prompt.foil, foil=prompt.target) if slip else prompt
