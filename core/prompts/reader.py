"""From text to tokens: beginning, text and target are tokenised together, and what is read out is found."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from xatlas.errors import XatlasError
from xatlas.prompts.chat import ChatTemplate
from xatlas.suites import Prompt, Suite
from xatlas.vocabulary import TEMPLATE_DATE, BosHabit

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


#: Tokens that end documents in base models, and may end turns too in what was tuned from them.
_DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>", "[EOS]")
#: Tokens that end turns; others are told by standing in the chat template.
_TURN_ENDS = re.compile(r"im_end|eo[tm]_id|end_of_(turn|utterance|message)|turn\|>")


class Reader:
    """Turns prompts into tokens the way one model reads them.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        A fast tokenizer (spans need offsets).
    bos : {"always", "native"}
        ``always`` prepends the tokenizer's beginning token, else the model's, else its end-of-document token,
        so that position 0 is the same kind of thing in every model; ``native`` leaves the tokenizer's habit.
    chat_template : bool
        Wrap the text as a user's turn.
    template_date : str
        Date that the chat template is rendered with, ``YYYY-MM-DD``: the same tokens on any day.
    context : int or None
        Longest input the model takes.
    begin_token : int or None
        The model's beginning token.
    end_token : int, sequence of int or None
        The model's end tokens; those that end a turn never stand at position 0.
    vocabulary : int or None
        How many tokens the model knows.

    Raises
    ------
    XatlasError
        The tokenizer has no chat template, or no token to put at position 0, and it is asked for; or it
        does not say where its tokens stand in the text.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        bos: BosHabit = "always",
        chat_template: bool = False,
        template_date: str = TEMPLATE_DATE,
        context: int | None = None,
        begin_token: int | None = None,
        end_token: int | Sequence[int] | None = None,
        vocabulary: int | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise XatlasError(f"{type(tokenizer).__name__} does not say where tokens stand: add a tokenizer.json.")
        self.tokenizer = tokenizer
        self.bos = bos
        self.template_date = template_date
        self.chat = ChatTemplate(tokenizer, template_date) if chat_template else None
        self.context = context
        self.vocabulary = len(tokenizer) if vocabulary is None else vocabulary
        ends = [end_token] if isinstance(end_token, int) else list(end_token or ())
        self.first_token = self._first_token(begin_token, ends) if bos == "always" else None

    def _first_token(self, begin: int | None, ends: Sequence[int]) -> int:
        """Return what stands at position 0: base and instruct models of one family get the same token."""
        tokenizer = self.tokenizer
        template = str(tokenizer.chat_template or "")
        named = [tokenizer.added_tokens_encoder.get(name) for name in _DOCUMENT_ENDS]
        for candidate in (tokenizer.bos_token_id, begin, *ends, tokenizer.eos_token_id, *named):
            fits = isinstance(candidate, int) and 0 <= candidate < self.vocabulary
            text = tokenizer.convert_ids_to_tokens(candidate) if fits else None
            if text is None:
                continue
            exempt = text in _DOCUMENT_ENDS or candidate == begin
            if candidate == tokenizer.bos_token_id or not (
                _TURN_ENDS.search(text) or (text in template and not exempt)
            ):
                return int(candidate)
        raise XatlasError(
            "the tokenizer has neither a beginning nor an end token of documents to put at position 0: "
            "use --bos native."
        )

    def suite(self, suite: Suite | Iterable[Prompt]) -> TokenSuite:
        """Tokenise every prompt.

        One is dropped, with a reason, where its text's own tokens do not stay as they are once target or foil
        follows, where no token of the target can be read out, where the chat template changes the text, and
        where the model has no room for it or no such token.

        Returns
        -------
        TokenSuite
            What is left, in the suite's order, and the reasons.

        Raises
        ------
        XatlasError
            No prompt is left, or the chat template can't be rendered.
        """
        suite = list(suite)
        if self.chat is not None:
            texts = [text for prompt in suite for text in (prompt.text, prompt.corrupt_text)]
            self.chat.prepare(text for text in texts if text is not None)
        kept: list[TokenPrompt] = []
        dropped: dict[str, str] = {}
        for prompt in suite:
            result = self.prompt(prompt)
            if isinstance(result, str):
                dropped[prompt.id] = result
            else:
                kept.append(result)
        if not kept:
            first = next(iter(dropped.items()), ("", "the suite is empty"))
            raise XatlasError(f"no prompt can be used: all {len(dropped)} are dropped, e.g. {first[0]}: {first[1]}.")
        return TokenSuite(tuple(kept), dropped)

    def prompt(self, prompt: Prompt) -> TokenPrompt | str:
        """Return the tokenised prompt, or the reason for dropping it.

        Raises
        ------
        XatlasError
            The chat template can't be rendered.
        """
        text, subject = prompt.text, prompt.subject
        if self.chat is not None:
            wrapped = self.chat.wrap(text)
            if isinstance(wrapped, str):
                return wrapped
            if subject is not None and wrapped.shift is None:
                return "the chat template writes the text more than once: the subject has no one place"
            text, subject = wrapped.text, subject and wrapped.place(subject)
        ids, offsets = self._encode(text)
        target_ids: tuple[int, ...] = ()
        foil_ids: tuple[int, ...] = ()
        if prompt.target is not None:
            continued = self._continuation(text, prompt.target, ids)
            if continued is None:
                return "the text's tokens change when the target follows"
            if not continued:
                return "the target has no token"
            target_ids = continued
        if prompt.foil is not None:
            continued = self._continuation(text, prompt.foil, ids)
            if continued is None:
                return "the text's tokens change when the foil follows"
            foil_ids = continued
        split = self._split(target_ids, foil_ids)
        if isinstance(split, str):
            return split
        run = (*ids, *target_ids[:-1])
        if self.context is not None and len(run) > self.context:
            return f"it has {len(run)} tokens, the model's context is {self.context}: shorten it"
        strange = max((*run, *target_ids, *foil_ids), default=0)
        if strange >= self.vocabulary:
            known = self.tokenizer.convert_ids_to_tokens(strange)
            return f"the model has {self.vocabulary} tokens, none for {known!r} ({strange})"
        if not run:
            return "the text has no token"
        return TokenPrompt(
            prompt=prompt,
            ids=run,
            n_text=len(ids),
            readout=len(ids) - 1 + split,
            answer=target_ids[split] if target_ids else None,
            foil_answer=foil_ids[split] if foil_ids else None,
            target_ids=target_ids,
            subject=_overlap(offsets, subject),
        )

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return tokens and character spans, the beginning token in front."""
        own_habit = self.bos == "native" and self.chat is None
        encoded = self.tokenizer(text, add_special_tokens=own_habit, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        if own_habit and ids and ids[-1] == self.tokenizer.eos_token_id and offsets[-1][0] == offsets[-1][1]:
            ids, offsets = ids[:-1], offsets[:-1]
        template_begins = self.chat is not None and ids[:1] == [self.first_token]
        if self.first_token is not None and not template_begins:
            return [self.first_token, *ids], [(0, 0), *offsets]
        return ids, offsets

    def _continuation(self, text: str, more: str, ids: list[int]) -> tuple[int, ...] | None:
        """Return the tokens that ``more`` adds, or None where it changes the text's own tokens."""
        joint, _ = self._encode(text + more)
        return tuple(joint[len(ids) :]) if joint[: len(ids)] == ids else None

    def _split(self, target: Sequence[int], foil: Sequence[int]) -> int | str:
        """Return which target token is read out, or the reason why none can be."""
        if not target:
            return 0
        if not foil:
            blank = [not self.tokenizer.decode([token]).strip() for token in target]
            return blank.index(False) if False in blank else "the target is only whitespace"
        for index, (ours, theirs) in enumerate(zip(target, foil, strict=False)):
            if ours != theirs:
                return index
        return "target and foil share all tokens that can be compared"


def _overlap(offsets: Sequence[tuple[int, int]], span: tuple[int, int] | None) -> tuple[int, ...]:
    return tuple(i for i, (a, b) in enumerate(offsets) if span and a < span[1] and b > span[0])
