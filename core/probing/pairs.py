"""Prompts and their corrupt twins: pairs of equal length whose values can be patched into each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.prompts.reader import TokenPrompt, TokenSuite, buckets

if TYPE_CHECKING:
    from xatlas.model import HookedModel
    from xatlas.suites import Prompt, Suite


#: Smallest demand on what clean and corrupt run prefer, in logits: recovery divides by their difference.
LEAST_DEMAND = 0.01
#: Prompts whose logits are held at once.
_AT_ONCE = 32


@dataclass(frozen=True)
class Pair:
    """A prompt and its corrupt twin, token by token alike but for what differs.

    Parameters
    ----------
    clean, corrupt : TokenPrompt
        Run up to the readout position; ``answer`` and ``foil_answer`` of both are the clean prompt's.
    """

    clean: TokenPrompt
    corrupt: TokenPrompt


@dataclass(frozen=True)
class Pairs:
    """The pairs of a suite that one model can be patched on.

    Parameters
    ----------
    pairs : tuple of Pair
        In the suite's order.
    clean, corrupt : ndarray
        Target's minus foil's logit at the readout in either run ``(prompt,)``.
    dropped : dict of str to str
        Prompt id → why it was left out.
    """

    pairs: tuple[Pair, ...]
    clean: np.ndarray
    corrupt: np.ndarray
    dropped: dict[str, str]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def distance(self) -> np.ndarray:
        """How far clean and corrupt logit difference lie apart ``(prompt,)``."""
        apart: np.ndarray = self.clean - self.corrupt
        return apart

    @property
    def tokens(self) -> TokenSuite:
        """The clean prompts, for labels."""
        return TokenSuite(tuple(pair.clean for pair in self.pairs), self.dropped)

    def take(self, count: int) -> Pairs:
        """Return about ``count`` pairs, spread evenly over the suite; all of them where there are fewer."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))
        return Pairs(tuple(self.pairs[i] for i in chosen), self.clean[chosen], self.corrupt[chosen], self.dropped)

    def without_tokens(self, positions: Sequence[str]) -> np.ndarray:
        """Return where a pair has no token of a position class ``(prompt, position)``."""
        return without_tokens([pair.clean for pair in self.pairs], positions)


def without_tokens(prompts: Sequence[TokenPrompt], positions: Sequence[str]) -> np.ndarray:
    """Return where a prompt has no token of a position class ``(prompt, position)``; ``all`` has always one."""
    empty = [[name != "all" and not prompt.positions(name) for name in positions] for prompt in prompts]
    return np.array(empty, dtype=bool).reshape(len(prompts), len(positions))


def read_pairs(model: HookedModel, suite: Suite, least: float) -> Pairs:
    """Tokenise prompts and twins, and keep the pairs on which patching says something.

    Parameters
    ----------
    model : HookedModel
        The model.
    suite : Suite
        Prompts; those without a foil or a twin are dropped and counted.
    least : float
        In the clean run target must lead the foil by so many logits, in the corrupt run foil the target.

    Raises
    ------
    XatlasError
        No prompt has both a foil and a twin, ``least`` is too small, or no pair is left (with the reasons).
    """
    if not least >= LEAST_DEMAND:
        raise XatlasError(
            f"least = {least:g} does not fit: it takes at least {LEAST_DEMAND:g} logits, for recovery divides by "
            "what clean and corrupt run differ in."
        )
    usable = [prompt for prompt in suite if prompt.foil is not None and prompt.corrupt_text is not None]
    if not usable:
        raise _no_twins(suite)
    dropped = {prompt.id: "no foil or no corrupt twin" for prompt in suite} if len(usable) < len(suite) else {}
    for prompt in usable:
        dropped.pop(prompt.id, None)
    tokens = model.read(usable)
    dropped |= tokens.dropped
    found: list[Pair] = []
    for clean in tokens.prompts:
        paired = _pair(model, clean)
        if isinstance(paired, str):
            dropped[clean.prompt.id] = paired
        else:
            found.append(paired)
    clean_runs = logit_differences(model, [pair.clean for pair in found])
    corrupt_runs = logit_differences(model, [pair.corrupt for pair in found])
    kept = []
    for i, pair in enumerate(found):
        reason = _weak(clean_runs[i], corrupt_runs[i], least, model.overflow)
        if reason:
            dropped[pair.clean.prompt.id] = reason
        else:
            kept.append(i)
    if not kept:
        raise _none_left(dropped)
    return Pairs(tuple(found[i] for i in kept), clean_runs[kept], corrupt_runs[kept], dropped)


def twin_of(prompt: Prompt) -> Prompt:
    """Return a prompt's corrupt twin as a prompt of its own: its target is the foil, and the other way round."""
    text, corrupt, span = prompt.text, prompt.corrupt_text, prompt.subject
    assert corrupt is not None
    if span is not None:
        end = span[1] + len(corrupt) - len(text)
        span = (span[0], end) if end > span[0] else None
    return replace(
        prompt, text=corrupt, corrupt_text=text, target=prompt.foil, foil=prompt.target, subject=span, extra={}
    )


def _pair(model: HookedModel, clean: TokenPrompt) -> Pair | str:
    """Return a tokenised prompt with its twin, or why they can't be patched into each other."""
    assert model.reader is not None
    twin = model.reader.prompt(twin_of(clean.prompt))
    if isinstance(twin, str):
        return f"the twin can't be read: {twin}"
    if clean.n_text != twin.n_text:
        return "text and twin differ in token length"
    end = clean.readout + 1
    if twin.readout != clean.readout or clean.ids[clean.n_text : end] != twin.ids[twin.n_text : end]:
        return "target and foil part at another token after the twin"
    if (twin.answer, twin.foil_answer) != (clean.foil_answer, clean.answer):
        return "target and foil are other tokens after the twin"
    if clean.ids[:end] == twin.ids[:end]:
        return "text and twin are the same tokens"
    if clean.positions("subject") != twin.positions("subject"):
        return "the subject lies at other tokens in the twin"
    corrupt = replace(clean, ids=twin.ids[:end], subject=twin.subject)
    return Pair(replace(clean, ids=clean.ids[:end]), corrupt)


@torch.inference_mode()
def logit_differences(model: HookedModel, prompts: Sequence[TokenPrompt]) -> np.ndarray:
    """Return target's minus foil's logit at the readout ``(prompt,)`` of prompts that end there."""
    result = np.full(len(prompts), np.nan)
    last = Site(model.n_layers - 1, "resid_post")
    for group in buckets([len(prompt.ids) for prompt in prompts], _AT_ONCE):
        some = [prompts[i] for i in group]
        final = model.capture(model.tokens(some), [last])[last]
        logits = model.logits(final[:, -1])  # (prompt, vocabulary)
        rows = range(len(some))
        target = logits[rows, [prompt.answer for prompt in some]]
        foil = logits[rows, [prompt.foil_answer for prompt in some]]
        result[group] = (target - foil).double().cpu().numpy()
    return result


def _weak(clean: float, corrupt: float, least: float, overflow: str) -> str:
    """Return why two logit differences are of no use, empty when they are."""
    if not np.isfinite([clean, corrupt]).all():
        return f"logits were not finite{overflow}"
    if clean < least:
        return f"the clean run does not prefer the target by {least:g} logits"
    return f"the corrupt run does not prefer the foil by {least:g} logits" if corrupt > -least else ""


def _no_twins(suite: Suite) -> XatlasError:
    def families(field: str) -> str:
        return ", ".join(dict.fromkeys(p.family for p in suite if getattr(p, field) is not None)) or "none"

    return XatlasError(
        f"suite '{suite.name}' has no prompt with both a foil and a corrupt twin, which patching needs. "
        f"Families with a foil: {families('foil')}; with a corrupt_text: {families('corrupt_text')}."
    )


def _none_left(dropped: Mapping[str, str]) -> XatlasError:
    reasons = "; ".join(f"{count} × {reason}" for reason, count in Counter(dropped.values()).most_common())
    return XatlasError(f"no pair can be patched, all {len(dropped)} are dropped: {reasons}.")
