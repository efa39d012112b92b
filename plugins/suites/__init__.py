"""The built-in prompt suites: twelve families of short tasks, and two more that the miniatures never see in training.

`quick` is a part of `standard`; `train` and `transfer-train` come from the train split, whose wordings the test split
lacks.
"""

from __future__ import annotations

from xatlas import hookimpl
from xatlas.suites import Suite, SuiteSpec

from .numbers import ARITHMETIC, CONSTANT_FOLDING
from .programs import CODE_SEMANTICS, DEAD_CODE, VARIABLE_RENAMING
from .recall import COPYING, FACTUAL_RECALL, INSTRUCTION_FOLLOWING
from .strings import LETTER_DOUBLING, OPPOSITE_RECALL, STRING_DECODING
from .structure import CODE_SYNTAX, DELIMITER_TRACKING, JSON_SCHEMA
from .wording import Family, Split

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        ARITHMETIC,
        FACTUAL_RECALL,
        COPYING,
        DELIMITER_TRACKING,
        JSON_SCHEMA,
        CODE_SYNTAX,
        CODE_SEMANTICS,
        DEAD_CODE,
        VARIABLE_RENAMING,
        CONSTANT_FOLDING,
        STRING_DECODING,
        INSTRUCTION_FOLLOWING,
    )
}
TRANSFER: dict[str, Family] = {family.name: family for family in (OPPOSITE_RECALL, LETTER_DOUBLING)}
SEED = 0


def _suite(name: str, families: dict[str, Family], split: Split, n: int) -> SuiteSpec:
    def load() -> Suite:
        return Suite(name, tuple(p for family in families.values() for p in family.generate(split, n, SEED)))

    summary = f"{len(families)} families x {n} prompts of the {split} split"
    return SuiteSpec(name, summary, load, {"quick": "measure", "train": "reference"}.get(name))  # type: ignore[arg-type]


STANDARD = _suite("standard", FAMILIES, "test", 40)


@hookimpl
def xatlas_suites() -> list[SuiteSpec]:
    """The five built-in suites."""
    return [
        _suite("quick", FAMILIES, "test", 5),
        STANDARD,
        _suite("train", FAMILIES, "train", 50),
        _suite("transfer", TRANSFER, "test", 50),
        _suite("transfer-train", TRANSFER, "train", 50),
    ]
