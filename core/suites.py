"""Prompts and suites: reading, checking, hashing. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from xatlas.errors import XatlasError

_TEXT_FIELDS = ("target", "foil", "corrupt_text", "template")
_KNOWN = ("id", "family", "text", "subject", *_TEXT_FIELDS)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a suite.

    Parameters
    ----------
    id : str
        Unique within the suite.
    family : str
        Kind of task.
    text : str
        What the model reads; never ends in a space.
    target, foil : str, optional
        The right continuation and its corrupt twin's.
    corrupt_text : str, optional
        The twin: of the same shape as ``text``, its right continuation is ``foil``.
    subject : tuple of int, optional
        ``(start, end)`` characters of ``text`` in which text and twin differ.
    template : str, optional
        Wording from which the prompt was made; prompts of one template are not independent.
    extra : mapping
        Fields beyond these, kept as they are.
    """

    id: str
    family: str
    text: str
    target: str | None = None
    foil: str | None = None
    corrupt_text: str | None = None
    subject: tuple[int, int] | None = None
    template: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the prompt as one JSON record, absent fields left out."""
        known = {name: getattr(self, name) for name in _KNOWN}
        known["subject"] = None if self.subject is None else list(self.subject)
        return {name: value for name, value in known.items() if value is not None} | dict(self.extra)


@dataclass(frozen=True)
class Suite:
    """A named, ordered set of prompts.

    Parameters
    ----------
    name : str
        How the suite is called.
    prompts : tuple of Prompt
        At least one; ids are unique.

    Raises
    ------
    XatlasError
        Without prompts, or with an id given twice.
    """

    name: str
    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise XatlasError(f"suite '{self.name}' is empty: give at least one prompt.")
        seen: set[str] = set()
        for prompt in self.prompts:
            if prompt.id in seen:
                raise XatlasError(f"suite '{self.name}' has the id '{prompt.id}' twice: ids must be unique.")
            seen.add(prompt.id)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    @cached_property
    def hash(self) -> str:
        """Hex sha256 of the prompts' canonical JSON lines; the name does not enter."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(json.dumps(prompt.record(), sort_keys=True, ensure_ascii=False).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    @cached_property
    def families(self) -> tuple[str, ...]:
        """Families in order of first appearance."""
        return tuple(dict.fromkeys(prompt.family for prompt in self.prompts))


@dataclass(frozen=True, slots=True)
class SuiteSpec:
    """A suite that can be asked for by name; nothing is generated before ``load`` is called.

    Parameters
    ----------
    name, summary : str
        What to call it, and one sentence on what it is.
    load : callable
        Returns the suite.
    default_for : {"measure", "reference"}, optional
        Used when no suite, or no reference for mean ablation, is named.
    """

    name: str
    summary: str
    load: Callable[[], Suite]
    default_for: Literal["measure", "reference"] | None = None


def read_suite(path: str | Path) -> Suite:
    """Read a suite from JSON lines.

    Parameters
    ----------
    path : path
        A file with one JSON object per line: ``id``, ``family``, ``text`` and the optional fields of
        :class:`Prompt`. Empty lines are passed over.

    Returns
    -------
    Suite
        Named after the file.

    Raises
    ------
    XatlasError
        The file can't be read, a line is off (its number is said), or no prompt is left.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise XatlasError(f"cannot read the suite {path}: {error}.") from None
    prompts: list[Prompt] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt = _parse(line, f"{path}, line {number}")
        if prompt.id in first_line:
            raise XatlasError(
                f"{path}, line {number}: the id '{prompt.id}' stands already in line {first_line[prompt.id]}."
            )
        first_line[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise XatlasError(f"{path} holds no prompt: write one JSON object per line with id, family and text.")
    return Suite(path.stem, tuple(prompts))


def write_suite(suite: Suite, path: str | Path) -> None:
    """Write ``suite`` to ``path`` as JSON lines that :func:`read_suite` reads back unchanged."""
    lines = (json.dumps(prompt.record(), ensure_ascii=False) for prompt in suite)
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _parse(line: str, where: str) -> Prompt:
    """Make one prompt of one line, or say what is wrong with it."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise XatlasError(f"{where}: not JSON ({error.msg} at column {error.colno}).") from None
    if not isinstance(record, dict):
        raise XatlasError(f"{where}: one JSON object per line is needed, not {type(record).__name__}.")
    for name in ("id", "family", "text"):
        if not isinstance(record.get(name), str) or not record[name]:
            raise XatlasError(f"{where}: '{name}' must be a text that is not empty.")
    for name in _TEXT_FIELDS:
        if record.get(name) is not None and (not isinstance(record[name], str) or not record[name]):
            raise XatlasError(f"{where}: '{name}' must be a text that is not empty, or left out.")
    if record["text"].endswith(" "):
        raise XatlasError(f"{where}: 'text' ends in a space; begin the target with it instead.")
    if record.get("foil") is not None and record.get("target") is None:
        raise XatlasError(f"{where}: a foil needs a target.")
    if record.get("foil") is not None and record["foil"] == record["target"]:
        raise XatlasError(f"{where}: target and foil are the same.")
    subject = _subject(record.get("subject"), len(record["text"]), where)
    extra = {name: value for name, value in record.items() if name not in _KNOWN}
    given: dict[str, Any] = {name: record.get(name) for name in ("id", "family", "text", *_TEXT_FIELDS)}
    return Prompt(**given, subject=subject, extra=extra)


def _subject(value: Any, length: int, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    whole = isinstance(value, list) and len(value) == 2 and all(type(item) is int for item in value)
    if not whole or not 0 <= value[0] < value[1] <= length:
        raise XatlasError(f"{where}: 'subject' must be [start, end] with 0 <= start < end <= {length}.")
    return (value[0], value[1])
