"""What trains the miniatures: the families' train splits in proportions that change as learning goes on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping

from xatlas.suites import Prompt

from . import FAMILIES
from .lessons import PAIRS, RESUMING
from .wording import Family

LESSONS: dict[str, Family] = {family.name: family for family in (PAIRS, RESUMING)}  # in no suite
OTHERS = "others"  # weight of every family that a phase does not name

# first prompt of a phase, and how often it draws from each family; families that are learned early give way
Phases = tuple[tuple[int, Mapping[str, float]], ...]
PHASES: Phases = (
    (
        0,
        {
            "arithmetic": 2.0,
            "copying": 1.5,
            "delimiter_tracking": 1.5,
            "json_schema": 1.5,
            "code_semantics": 1.5,
            "constant_folding": 1.5,
            "string_decoding": 1.25,
            "instruction_following": 1.25,
            "pairs": 0.0,
            "resuming": 0.0,
            OTHERS: 1.0,
        },
    ),
    (
        256_000,
        {
            "arithmetic": 4.0,
            "factual_recall": 0.75,
            "json_schema": 5.0,
            "code_semantics": 3.0,
            "dead_code": 2.0,
            "variable_renaming": 3.0,
            "constant_folding": 0.75,
            "string_decoding": 0.75,
            "instruction_following": 2.0,
            "pairs": 5.0,
            "resuming": 0.0,
            OTHERS: 0.5,
        },
    ),
    (
        320_000,
        {
            "arithmetic": 5.0,
            "json_schema": 4.0,
            "code_semantics": 3.0,
            "variable_renaming": 3.0,
            "instruction_following": 1.5,
            "pairs": 3.0,
            "resuming": 6.0,
            OTHERS: 0.5,
        },
    ),
)


def proportions(weights: Mapping[str, float]) -> dict[str, float]:
    """The share of every family and lesson under one phase's weights."""
    full = {name: weights.get(name, weights[OTHERS]) for name in FAMILIES | LESSONS}
    return {name: weight / sum(full.values()) for name, weight in full.items()}


def training_stream(seed: int, phases: Phases = PHASES) -> Iterator[Prompt]:
    """Prompts of the train split without end, the same for the same arguments on every machine."""
    generator = random.Random(f"mixture/{seed}")
    families = FAMILIES | LESSONS
    streams = {name: family.stream("train", seed + 1) for name, family in families.items()}  # not the suite's seed
    cumulated = [
        (first, list(itertools.accumulate(weights.get(name, weights[OTHERS]) for name in families)))
        for first, weights in phases
    ]
    for number in itertools.count():
        weights = next(sums for first, sums in reversed(cumulated) if number >= first)
        yield next(streams[generator.choices(list(families), cum_weights=weights)[0]])
