"""Prompts and suites: reading, checking, hashing. Imports no torch."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from xatlas.errors import XatlasError
from xatlas.files import sha256

_REQUIRED = ("id", "family", "text")
_OPTIONAL = ("target", "foil", "corrupt_text", "template")
_KNOWN = (*_REQUIRED, "subject", *_OPTIONAL)
#: Most characters of what labels a prompt: it stands in tables and in every result.
_LONGEST_LABEL = 1_000
#: Deepest nesting of fields beyond the known ones: far from where JSON is too deep to be written again.
_DEEPEST = 100
#: Largest suite that is read.
_MOST_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a suite; what can't be stored and read back as it is, or does not fit together, is refused.

    Raises
    ------
    XatlasError
        A field can't be stored or read back as it is, or does not fit the others.
    """

    id: str  # unique within the suite
    family: str  # kind of task
    text: str  # what the model reads; in a file it never ends in a space
    target: str | None = None  # the right continuation
    foil: str | None = None  # the right continuation of the corrupted twin
    corrupt_text: str | None = None  # the twin, of the same shape as text
    subject: tuple[int, int] | None = None  # (start, end) characters of text in which text and twin differ
    template: str | None = None  # wording it was made from; prompts of one template are not independent
    extra: Mapping[str, Any] = field(default_factory=dict)  # fields beyond these: what JSON can hold

    def __post_init__(self) -> None:
        fault = self._text_fault() or self._fault()
        if fault:
            raise XatlasError(f"prompt {str(self.id)[:60]!r}: {fault}.")

    def _text_fault(self) -> str:
        for name in (*_REQUIRED, *_OPTIONAL):
            value, optional = getattr(self, name), name in _OPTIONAL
            if value is None and optional:
                continue
            if not isinstance(value, str) or not value:
                return f"'{name}' must be a text that is not empty" + ", or left out" * optional
            if name in ("id", "family", "template") and len(value) > _LONGEST_LABEL:
                return f"'{name}' has {len(value)} characters, at most {_LONGEST_LABEL} are taken"
            if unfit := _unfit(value):
                return f"'{name}' holds {unfit}"
        return ""

    def _fault(self) -> str:
        if self.foil is not None and self.target is None:
            return "a foil needs a target"
        if self.foil is not None and self.foil == self.target:
            return "target and foil are the same"
        span, length = self.subject, len(self.text)
        if span is not None:
            whole = isinstance(span, tuple | list) and len(span) == 2 and all(type(item) is int for item in span)
            if not whole or not 0 <= span[0] < span[1] <= length:
                return f"'subject' must be [start, end] with 0 <= start < end <= {length}"
        if taken := [name for name in self.extra if name in _KNOWN]:
            return f"'{taken[0]}' is no field beyond the known ones"
        try:
            json.dumps(dict(self.extra), sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
            deep = _depth(self.extra) > _DEEPEST
        except RecursionError:
            deep = True
        except (TypeError, ValueError) as error:  # no JSON, no number, or half of a character
            return f"a field beyond the known ones can't be kept ({error})"
        return f"its fields are nested more than {_DEEPEST} deep" if deep else ""

    def record(self) -> dict[str, Any]:
        """Return the prompt as one JSON record, absent fields left out."""
        known = {name: getattr(self, name) for name in _KNOWN}
        known["subject"] = None if self.subject is None else list(self.subject)
        return {name: value for name, value in known.items() if value is not None} | dict(self.extra)


@dataclass(frozen=True)
class Suite:
    """A named, ordered set of prompts: at least one, each with an id of its own.

    Raises
    ------
    XatlasError
        Without prompts, or with an id given twice.
    """

    name: str
    prompts: tuple[Prompt, ...]
    whole: Suite | None = field(default=None, repr=False, compare=False)  # of which this one is the first templates
    file: str = field(default="", compare=False, repr=False)  # that it was read from

    def __post_init__(self) -> None:
        unfit = _unfit(self.name) or f"more than {_LONGEST_LABEL} characters" * (len(self.name) > _LONGEST_LABEL)
        if unfit:
            raise XatlasError(f"the suite's name {self.name[:60]!r} holds {unfit}.")
        if not self.prompts:
            raise XatlasError(f"suite '{self.name}' is empty: give at least one prompt.")
        name, count = Counter(prompt.id for prompt in self.prompts).most_common(1)[0]
        if count > 1:
            raise XatlasError(f"suite '{self.name}' has the id '{name}' twice: ids must be unique.")

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    @cached_property
    def hash(self) -> str:
        """Hex sha256 of the prompts' canonical JSON lines; the name does not enter."""
        lines = (json.dumps(prompt.record(), sort_keys=True, ensure_ascii=False) for prompt in self.prompts)
        return sha256(f"{line}\n".encode() for line in lines)

    @cached_property
    def most_templates(self) -> int:
        """How many templates the family of the most has; a prompt without one counts as its own."""
        return max(template_turns(self)) + 1

    def first_templates(self, n: int) -> Suite:
        """Return ``NAME[n]``, the prompts of each family's first ``n`` templates; the suite itself where that is all.

        Raises
        ------
        XatlasError
            ``n`` is less than 1, or more than any family has templates.
        """
        if not 1 <= n <= self.most_templates:
            most = f"families of '{self.name}' have up to {self.most_templates} templates"
            raise XatlasError(f"suite '{self.name}[{n}]': {most}; give a whole number from 1 to {self.most_templates}.")
        kept = tuple(prompt for prompt, turn in zip(self, template_turns(self), strict=True) if turn < n)
        return self if len(kept) == len(self) else Suite(f"{self.name}[{n}]", kept, whole=self)

    @cached_property
    def families(self) -> tuple[str, ...]:
        """Families in order of first appearance."""
        return tuple(dict.fromkeys(prompt.family for prompt in self.prompts))


def template_turns(prompts: Iterable[Prompt]) -> list[int]:
    """Return which of its family's templates, from 0, each prompt is of; one without a template counts as its own."""
    known: dict[str, dict[str, int]] = {}
    turns = []
    for prompt in prompts:
        of_family = known.setdefault(prompt.family, {})
        turns.append(of_family.setdefault(prompt.template or f"\0{prompt.id}", len(of_family)))
    return turns


@dataclass(frozen=True, slots=True)
class SuiteSpec:
    """A suite that can be asked for by name; nothing is generated before ``load`` is called."""

    name: str
    summary: str  # one sentence on what it is
    load: Callable[[], Suite]
    default_for: Literal["measure", "reference"] | None = None  # used when no suite, or no reference, is named


def read_suite(path: str | Path) -> Suite:
    """Read a suite, named after its file, from JSON lines.

    Parameters
    ----------
    path : path
        A file with one JSON object per line: ``id``, ``family``, ``text`` and the optional fields of
        :class:`Prompt`. Empty lines are passed over.

    Raises
    ------
    XatlasError
        The file can't be read, a line is off (its number is said), or no prompt is left.
    """
    path = Path(path)
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe or a device might never end
            raise ValueError("it is no file")
        if about.st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # other separators may stand inside a JSON text
    except (OSError, ValueError) as error:
        raise XatlasError(f"cannot read the suite {path}: {error}.") from None
    prompts: list[Prompt] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip(" \t\r"):
            where = f"{path}, line {number}"
            prompt = _parse(line, where)
            if (first := first_line.setdefault(prompt.id, number)) != number:
                raise XatlasError(f"{where}: the id '{prompt.id}' stands already in line {first}.")
            prompts.append(prompt)
    if not prompts:
        raise XatlasError(f"{path} holds no prompt: write one JSON object per line with id, family and text.")
    return Suite(os.fsencode(path.stem).decode("utf-8", "replace"), tuple(prompts), file=str(path))


def write_suite(suite: Suite, path: str | Path) -> None:
    """Write ``suite`` to ``path`` as JSON lines that :func:`read_suite` reads back unchanged."""
    lines = (json.dumps(prompt.record(), ensure_ascii=False) for prompt in suite)
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _parse(line: str, where: str) -> Prompt:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, count in Counter(name for name, _ in pairs).most_common(1):
            if count > 1:
                raise XatlasError(f"{where}: the field {name[:60]!r} stands twice.")
        return dict(pairs)

    try:
        record = json.loads(line, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise XatlasError(f"{where}: not JSON ({error.msg} at column {error.colno}).") from None
    except RecursionError:
        raise XatlasError(f"{where}: its fields are nested more than {_DEEPEST} deep.") from None
    except ValueError:  # the limit that Python sets on digits
        raise XatlasError(f"{where}: a number has too many digits.") from None
    if not isinstance(record, dict):
        raise XatlasError(f"{where}: one JSON object per line is needed, not {type(record).__name__}.")
    given = {name: record.pop(name, None) for name in _KNOWN}
    if isinstance(given["subject"], list):
        given["subject"] = tuple(given["subject"])
    try:
        prompt = Prompt(**given, extra=record)
    except XatlasError as error:
        raise XatlasError(f"{where}: {error}") from None
    # the target's first token would be another one than after the word
    for name in ("text", "corrupt_text"):
        if (getattr(prompt, name) or "").endswith(" "):
            raise XatlasError(f"{where}: '{name}' ends in a space; begin the target with it instead.")
    return prompt


def _unfit(text: str) -> str:
    """Name what no result file can hold: it ends texts at NUL, and half a character is not UTF-8."""
    if "\0" in text:
        return "a NUL character"
    return "half of a surrogate pair" if any("\ud800" <= character <= "\udfff" for character in text) else ""


def _depth(value: Any) -> int:
    if isinstance(value, Mapping):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, (list, tuple)) else 0
