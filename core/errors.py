"""The one error a user ever reads, and the words it is made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class XatlasError(Exception):
    """A user's mistake or an unusable input, told in one clear line.

    The message says what was asked, what is valid and what to do; the command line prints it without a traceback.
    """


def unknown(kind: str, name: str, valid: Iterable[str], hint: str = "") -> XatlasError:
    """Return, not raise, the error for a name that nobody registered: it suggests the nearest one, and lists them."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"; did you mean '{near[0]}'?" if near else "."
    text = f"unknown {kind} '{name}'{guess} Valid: {', '.join(names) or 'none'}."
    return XatlasError(f"{text} {hint}".strip())
