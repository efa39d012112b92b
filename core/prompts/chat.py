"""A text as the user's turn of a chat template: rendered within limits, and where in it the text stands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from xatlas.errors import XatlasError
from xatlas.vocabulary import check_date

#: Limits of one rendering: processor seconds, characters beyond the text's, bytes of memory.
_SECONDS, _CHARACTERS, _MEMORY = 2, 200_000, 1 << 30


class Wrapped(NamedTuple):
    """A rendered text, and the characters of it that are the prompt's."""

    text: str
    start: int
    end: int
    shift: int | None  # how far the prompt's characters moved; None where the template writes them several times

    def place(self, span: tuple[int, int]) -> tuple[int, int] | None:
        """Return where characters of the prompt stand; None where the template trimmed all of them off."""
        shift = self.shift or 0
        start, end = max(span[0] + shift, self.start), min(span[1] + shift, self.end)
        return (start, end) if start < end else None


class ChatTemplate:
    """A tokenizer's chat template at a fixed date.

    Templates come with checkpoints: they are rendered by a process of its own, which may be ended, and whose
    clock, time zone and random numbers are always the same.
    """

    def __init__(self, tokenizer: Any, date: str) -> None:
        check_date(date)
        if not getattr(tokenizer, "chat_template", None):
            raise _unusable("this model's tokenizer has no chat template")
        try:
            self.source: str = tokenizer.get_chat_template()
        except ValueError:
            raise _unusable("none of the tokenizer's chat templates is the default") from None
        self.variables = dict(tokenizer.special_tokens_map)
        self.date = date
        self._rendered: dict[str, Wrapped | str] = {}

    def wrap(self, text: str) -> Wrapped | str:
        """Return the text as the user's turn, or why the template can't take it."""
        self.prepare([text])
        return self._rendered[text]

    def prepare(self, texts: Iterable[str]) -> None:
        """Render texts that were not rendered before, all in one process: as they are, and between two marks."""
        new = [text for text in dict.fromkeys(texts) if text not in self._rendered]
        if not new:
            return
        taken = set(self.source).union(*new)
        opening, closing = [mark for mark in map(chr, range(0xF0000, 0xFFFFE)) if mark not in taken][:2]  # private use
        marked = [f"{opening}{text.strip()}{closing}" for text in new]
        answers = self._render([*new, *marked])
        for text, mark, plain, with_marks in zip(new, marked, answers, answers[len(new) :], strict=False):
            self._rendered[text] = _placed(text, plain, with_marks, mark)

    def _render(self, contents: list[str]) -> list[dict[str, str]]:
        """Return ``{"text": rendered}`` or ``{"fault": why}`` of each content."""
        libraries = [find_spec(name) for name in ("jinja2", "markupsafe")]
        request = {
            "template": self.source,
            "variables": self.variables,
            "date": self.date,
            "contents": contents,
            "paths": [str(Path(str(spec.origin)).parents[1]) for spec in libraries if spec],
            "seconds": _SECONDS,
            "characters": _CHARACTERS,
            "memory": _MEMORY,
        }
        too_long = _unusable(f"the chat template is not done with one text after {_SECONDS} s")
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(Path(__file__).with_name("render.py"))],
                input=json.dumps(request, default=str).encode(),
                capture_output=True,
                env={**os.environ, "TZ": "UTC"},
                timeout=30 + 0.02 * len(contents),
            )
        except subprocess.TimeoutExpired:
            raise too_long from None
        if done.returncode == -getattr(signal, "SIGPROF", 0) != 0:
            raise too_long
        if done.returncode:
            reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["it was ended"])[-1]
            raise _unusable(f"the chat template cannot be rendered ({reason[:300]})")
        answers: Any = json.loads(done.stdout)
        if isinstance(answers, dict):
            raise _unusable(f"the chat template cannot be read ({answers['fault'][:300]})")
        return list(answers)


def _unusable(why: str) -> XatlasError:
    return XatlasError(f"{why}: leave --chat-template out.")


def _placed(text: str, plain: dict[str, str], with_marks: dict[str, str], marked: str) -> Wrapped | str:
    """Find a text by the marks about it; its outer whitespace may be trimmed, all else has to stand as it is."""
    if fault := plain.get("fault") or with_marks.get("fault"):
        return f"the chat template fails ({fault})"
    before, *others = with_marks["text"].split(marked)
    for kept in (text, text.strip(), text.lstrip(), text.rstrip()):
        if others and kept.join([before, *others]) == plain["text"]:
            start = len(before)
            shift = start - text.find(kept) if len(others) == 1 else None
            return Wrapped(plain["text"], start, start + len(kept), shift)
    return "the chat template changes the text"
