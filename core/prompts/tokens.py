"""A prompt and a suite as tokens: the readout position, position classes, groups of equal length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from xatlas.errors import XatlasError
from xatlas.suites import Prompt

#: Classes of positions, for interventions and readings.
POSITION_CLASSES = ("first", "subject", "last", "other")


@dataclass(frozen=True)
class TokenPrompt:
    """One prompt as a model reads it.

    Parameters
    ----------
    prompt : Prompt
        What was tokenised.
    ids : tuple of int
        Tokens run: beginning, text, and the target without its last token.
    n_text : int
        How many of them are the beginning and the text.
    readout : int
        Position whose next token is the first that tells target and foil apart.
    answer, foil_answer : int or None
        That next token in the target and in the foil.
    target_ids : tuple of int
        All tokens of the target.
    subject : tuple of int
        Positions of the tokens that overlap the marked span.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    n_text: int
    readout: int
    answer: int | None
    foil_answer: int | None
    target_ids: tuple[int, ...]
    subject: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens that are run, position 0 included."""
        return len(self.ids)

    @property
    def appended(self) -> int:
        """Tokens of the target that were run."""
        return len(self.ids) - self.n_text

    def positions(self, name: str) -> tuple[int, ...]:
        """Return the positions of class ``name``; the classes share none, ``last`` and ``first`` go before.

        Raises
        ------
        XatlasError
            There is no such class.
        """
        if name == "first":
            return (0,)
        if name == "last":
            return (self.readout,)
        if name == "subject":
            return tuple(p for p in self.subject if p not in (0, self.readout))
        if name == "other":
            taken = {0, self.readout, *self.subject}
            # target tokens that are run before the readout stand behind the text
            return tuple(p for p in range(max(self.n_text, self.readout)) if p not in taken)
        raise XatlasError(f"unknown position class '{name}'. Valid: all, {', '.join(POSITION_CLASSES)}.")


@dataclass(frozen=True)
class TokenSuite:
    """A suite as one model reads it.

    Parameters
    ----------
    prompts : tuple of TokenPrompt
        Those that could be tokenised, in the suite's order.
    dropped : dict
        Prompt id → why it was left out.
    """

    prompts: tuple[TokenPrompt, ...]
    dropped: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def hash(self) -> str:
        """Hex sha256 of what is run and where it is read: every prompt's id, tokens and positions, in order."""
        digest = hashlib.sha256()
        for p in self.prompts:
            line = [p.prompt.id, p.ids, p.n_text, p.readout, p.answer, p.foil_answer, p.target_ids, p.subject]
            digest.update(json.dumps(line).encode() + b"\n")
        return digest.hexdigest()


def buckets(lengths: Sequence[int], most: dict[int, int] | int) -> list[np.ndarray]:
    """Group prompts of exactly equal length, at most ``most`` (or ``most[length]``) in a group.

    Parameters
    ----------
    lengths : sequence of int
        Token length of each prompt.
    most : int or dict of int to int
        Largest group.

    Returns
    -------
    list of ndarray of int
        Indices of the prompts, shortest first; no padding is ever needed.
    """
    groups: list[np.ndarray] = []
    array = np.asarray(lengths)
    for length in np.unique(array):
        members = np.flatnonzero(array == length)
        size = most if isinstance(most, int) else most[int(length)]
        groups += [members[start : start + size] for start in range(0, len(members), size)]
    return groups
