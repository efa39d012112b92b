"""A text as the user's turn of a chat template: rendered within bounds, and where in it the text stands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from xatlas.errors import XatlasError
from xatlas.vocabulary import check_date

#: Bounds of one rendering: processor seconds, characters beyond the text's, bytes of memory.
_SECONDS, _CHARACTERS, _MEMORY = 2, 200_000, 1 << 30


class Wrapped(NamedTuple):
    """A rendered text: ``shift`` is how far the prompt's characters moved, None where it stands several times."""

    text: str
    shift: int | None
    start: int
    end: int

    def place(self, span: tuple[int, int]) -> tuple[int, int] | None:
        """Return where characters of the prompt stand; None where the template trimmed all of them off."""
        shift = self.shift or 0
        start, end = max(span[0] + shift, self.start), min(span[1] + shift, self.end)
        return (start, end) if start < end else None


class ChatTemplate:
    """A tokenizer's chat template at a fixed date.

    Templates come with checkpoints: they are rendered by a process of its own, which may be ended, and whose
    clock, time zone and random numbers are always the same.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        With a chat template.
    date : str
        What the template takes for today, ``YYYY-MM-DD``.

    Raises
    ------
    XatlasError
        The tokenizer has no chat template, or several of which none is the default; or the date is no date.
    """

    def __init__(self, tokenizer: Any, date: str) -> None:
        check_date(date)
        if not getattr(tokenizer, "chat_template", None):
            raise XatlasError("this model's tokenizer has no chat template: leave --chat-template out.")
        try:
            self.source: str = tokenizer.get_chat_template()
        except ValueError:
            raise XatlasError(
                "none of the tokenizer's chat templates is the default: leave --chat-template out."
            ) from None
        self.variables = dict(tokenizer.special_tokens_map)
        self.date = date
        self._rendered: dict[str, Wrapped | str] = {}

    def wrap(self, text: str) -> Wrapped | str:
        """Return the text as the user's turn, or why the template can't take it.

        Raises
        ------
        XatlasError
            As :meth:`prepare`.
        """
        self.prepare([text])
        return self._rendered[text]

    def prepare(self, texts: Iterable[str]) -> None:
        """Render texts that were not rendered before, all in one process.

        Raises
        ------
        XatlasError
            The template is no template, takes too long or too much memory.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._rendered]
        if not new:
            return
        taken = set(self.source).union(*new)
        opening, closing = [mark for mark in map(chr, range(0xF0000, 0xFFFFE)) if mark not in taken][:2]  # private use
        marked = [f"{opening}{text.strip()}{closing}" for text in new]
        answers = self._render([*new, *marked])
        for i, text in enumerate(new):
            self._rendered[text] = _placed(text, answers[i], answers[len(new) + i], marked[i])

    def _render(self, contents: Sequence[str]) -> list[dict[str, str]]:
        """Return ``{"text": rendered}`` or ``{"fault": why}`` of each content."""
        request = {
            "template": self.source,
            "variables": self.variables,
            "date": self.date,
            "contents": contents,
            "paths": [
                str(Path(str(spec.origin)).parents[1]) for spec in map(find_spec, ("jinja2", "markupsafe")) if spec
            ],
            "seconds": _SECONDS,
            "characters": _CHARACTERS,
            "memory": _MEMORY,
        }
        too_long = XatlasError(
            f"the chat template is not done with one text after {_SECONDS} s: leave --chat-template out."
        )
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
            raise XatlasError(f"the chat template cannot be rendered ({reason[:300]}): leave --chat-template out.")
        answers: Any = json.loads(done.stdout)
        if isinstance(answers, dict):
            raise XatlasError(
                f"the chat template cannot be read ({answers['fault'][:300]}): leave --chat-template out."
            )
        return list(answers)


def _placed(text: str, plain: dict[str, str], with_marks: dict[str, str], marked: str) -> Wrapped | str:
    """Find a text by the marks about it; its outer whitespace may be trimmed, all else has to stand as it is."""
    fault = plain.get("fault") or with_marks.get("fault")
    if fault:
        return f"the chat template fails ({fault})"
    pieces = with_marks["text"].split(marked)
    for kept in (text, text.strip(), text.lstrip(), text.rstrip()):
        if len(pieces) > 1 and kept.join(pieces) == plain["text"]:
            start, lead = len(pieces[0]), text.find(kept)
            return Wrapped(plain["text"], start - lead if len(pieces) == 2 else None, start, start + len(kept))
    return "the chat template changes the text"
