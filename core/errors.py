"""The one error a user ever reads, and the words it is made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

#: In names of models that are trained to fill in what is masked.
_DIFFUSION = ("diffusion", "llada", "dream")


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


def no_adapter(architecture: str, known: Iterable[str], config: Mapping[str, Any]) -> XatlasError:
    """Return the error for a model of a class that no adapter fits, by what kind of model its config says it is."""
    kind = f"{architecture} {config.get('model_type', '')}".lower()
    if config.get("is_encoder_decoder") or "seq2seq" in kind:
        what = "is an encoder-decoder: its decoder also reads another text, which these measures know nothing of"
        return XatlasError(f"{architecture} {what}; choose a decoder.")
    if any(word in kind for word in _DIFFUSION):
        what = (
            "is a diffusion model: it fills in masked tokens in any order, so that no position is read out after others"
        )
        return XatlasError(f"{architecture} {what}; choose a decoder.")
    stems = {name.partition("For")[0].lower(): name for name in known}
    near = difflib.get_close_matches(architecture.partition("For")[0].lower(), stems, n=1, cutoff=0.8)
    guess = f" The nearest is {stems[near[0]]}." if near else ""
    advice = "'xatlas architectures' lists those that have one; docs/adapters.md shows how to write one."
    return XatlasError(f"no adapter names the hook points of {architecture}.{guess} {advice}")
