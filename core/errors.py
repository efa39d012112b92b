"""The one error a user ever reads, and the words it is made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class XatlasError(Exception):
    """A user's mistake or an unusable input, told in one clear line.

    The message says what was asked, what is valid and what to do; the command
    line prints it without a traceback.

    Parameters
    ----------
    message : str
        One line, no trailing newline.
    """


def unknown(kind: str, name: str, valid: Iterable[str], hint: str = "") -> XatlasError:
    """Build the error for a name that nobody registered.

    Parameters
    ----------
    kind : str
        What the name should have named, e.g. ``"probe"``.
    name : str
        What was asked for.
    valid : iterable of str
        The names that exist.
    hint : str, optional
        What to do, appended after the list.

    Returns
    -------
    XatlasError
        Not raised: the caller raises it.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"; did you mean '{near[0]}'?" if near else "."
    text = f"unknown {kind} '{name}'{guess} Valid: {', '.join(names) or 'none'}."
    return XatlasError(f"{text} {hint}".strip())
