"""From text to tokens: beginning, text and target are tokenised together, and what is read out is found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from xatlas.errors import XatlasError
from xatlas.files import sha256
from xatlas.prompts.chat import ChatTemplate
from xatlas.suites import Prompt, Suite
from xatlas.vocabulary import POSITION_CLASSES, TEMPLATE_DATE, BosHabit

#: Tokens that end documents in base models, and may end turns too in what was tuned from them.
_DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>", "[EOS]")
#: Tokens that end turns; others are recognised by standing in the chat template.
_TURN_ENDS = re.compile(r"im_end|eo[tm]_id|end_of_(turn|utterance|message)|turn\|>")


@dataclass(frozen=True)
class TokenPrompt:
    """One prompt as a model reads it."""

    prompt: Prompt
    ids: tuple[int, ...]  # tokens run: beginning, text, and the target without its last token
    n_text: int  # how many of them are the beginning and the text
    readout: int  # position whose next token is the first in which target and foil differ
    answer: int | None  # that next token in the target
    foil_answer: int | None  # and in the foil
    target_ids: tuple[int, ...]  # all tokens of the target
    subject: tuple[int, ...]  # positions of the tokens that overlap the marked span

    @property
    def n_tokens(self) -> int:
        """Tokens that are run, position 0 included."""
        return len(self.ids)

    @property
    def appended(self) -> int:
        """Tokens of the target that were run."""
        return len(self.ids) - self.n_text

    def target_at(self, position: int) -> int | None:
        """Return the target's token that follows a position, where one does."""
        index = position - (self.n_text - 1)
        return self.target_ids[index] if 0 <= index < len(self.target_ids) else None

    def positions(self, name: str) -> tuple[int, ...]:
        """Return the positions of class ``name``; the classes share none, ``last`` and ``first`` go before.

        ``rest`` is no class: it is all positions but the first.
        """
        if name == "rest":
            return tuple(range(1, len(self.ids)))
        if name not in POSITION_CLASSES:
            raise XatlasError(f"unknown position class '{name}'. Valid: all, {', '.join(POSITION_CLASSES)}.")
        if name == "first":
            return (0,)
        if name == "last":
            return (self.readout,)
        if name == "subject":
            return tuple(p for p in self.subject if p not in (0, self.readout))
        taken = {0, self.readout, *self.subject}
        # target tokens that are run before the readout stand behind the text
        return tuple(p for p in range(max(self.n_text, self.readout)) if p not in taken)


@dataclass(frozen=True)
class TokenSuite:
    """A suite as one model reads it: the prompts that could be tokenised, in the suite's order."""

    prompts: tuple[TokenPrompt, ...]
    dropped: dict[str, str] = field(default_factory=dict)  # prompt id → why it was left out

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def hash(self) -> str:
        """Hex sha256 of what is run and where it is read: every prompt's id, tokens and positions, in order."""
        lines = [
            [p.prompt.id, p.ids, p.n_text, p.readout, p.answer, p.foil_answer, p.target_ids, p.subject]
            for p in self.prompts
        ]
        return sha256(json.dumps(line).encode() + b"\n" for line in lines)


def buckets(lengths: Sequence[int], most: dict[int, int] | int) -> list[np.ndarray]:
    """Return the indices of prompts in groups of equal length, shortest first, at most ``most[length]`` in a group."""
    groups: list[np.ndarray] = []
    array = np.asarray(lengths)
    for length in np.unique(array):
        members = np.flatnonzero(array == length)
        size = most if isinstance(most, int) else most[int(length)]
        groups += [members[start : start + size] for start in range(0, len(members), size)]
    return groups


@dataclass(eq=False)
class Reader:
    """Turns prompts into tokens the way one model reads them."""

    tokenizer: Any  # a fast one: spans need offsets
    _: KW_ONLY
    # always: position 0 is the tokenizer's beginning token, else the model's, else its end-of-document token
    bos: BosHabit = "always"
    chat_template: bool = False  # wrap the text as a user's turn
    template_date: str = TEMPLATE_DATE  # what the template takes for today: the same tokens on any day
    context: int | None = None  # longest input that the model takes
    begin_token: int | None = None  # the model's
    end_token: int | Sequence[int] | None = None  # the model's; those that end a turn never stand at position 0
    vocabulary: int = 0  # how many tokens the model knows; 0: as many as the tokenizer

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            name = type(self.tokenizer).__name__
            raise XatlasError(f"{name} does not say where tokens stand: add a tokenizer.json.")
        self.chat = ChatTemplate(self.tokenizer, self.template_date) if self.chat_template else None
        self.vocabulary = self.vocabulary or len(self.tokenizer)
        self.first_token = self._first_token() if self.bos == "always" else None

    def _first_token(self) -> int:
        """Return what stands at position 0: base and instruct models of one family get the same token."""
        tokenizer, begin = self.tokenizer, self.begin_token
        ends = [self.end_token] if isinstance(self.end_token, int) else list(self.end_token or ())
        template = str(tokenizer.chat_template or "")
        named = [tokenizer.added_tokens_encoder.get(name) for name in _DOCUMENT_ENDS]
        for candidate in (tokenizer.bos_token_id, begin, *ends, tokenizer.eos_token_id, *named):
            fits = isinstance(candidate, int) and 0 <= candidate < self.vocabulary
            text = tokenizer.convert_ids_to_tokens(candidate) if fits else None
            if text is None:
                continue
            in_turns = text in template and text not in _DOCUMENT_ENDS and candidate != begin
            if candidate == tokenizer.bos_token_id or not (_TURN_ENDS.search(text) or in_turns):
                return int(candidate)
        what = "the tokenizer has neither a beginning nor an end token of documents to put at position 0"
        raise XatlasError(f"{what}: use --bos native.")

    def suite(self, suite: Suite | Iterable[Prompt]) -> TokenSuite:
        """Tokenise every prompt; one is dropped, with a reason, where :meth:`prompt` gives one, but not all of them."""
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
            first, why = next(iter(dropped.items()), ("", "the suite is empty"))
            raise XatlasError(f"no prompt can be used: all {len(dropped)} are dropped, e.g. {first}: {why}.")
        return TokenSuite(tuple(kept), dropped)

    def prompt(self, prompt: Prompt) -> TokenPrompt | str:
        """Return the tokenised prompt, or the reason for dropping it."""
        text, subject = prompt.text, prompt.subject
        if self.chat is not None:
            wrapped = self.chat.wrap(text)
            if isinstance(wrapped, str):
                return wrapped
            if subject is not None and wrapped.shift is None:
                return "the chat template writes the text more than once: the subject has no one place"
            text, subject = wrapped.text, subject and wrapped.place(subject)
        ids, offsets = self._encode(text)
        continuations: list[tuple[int, ...]] = []
        for name, more in (("target", prompt.target), ("foil", prompt.foil)):
            joint = ids if more is None else self._encode(text + more)[0]
            if joint[: len(ids)] != ids:
                return f"the text's tokens change when the {name} follows"
            continuations.append(tuple(joint[len(ids) :]))
        target_ids, foil_ids = continuations
        if prompt.target is not None and not target_ids:
            return "the target has no token"
        split = self._split(target_ids, foil_ids)
        if isinstance(split, str):
            return split
        run = (*ids, *target_ids[:-1])
        if self.context is not None and len(run) > self.context:
            return f"it has {len(run)} tokens, the model's context is {self.context}: shorten it"
        largest = max((*run, *target_ids, *foil_ids), default=0)
        if largest >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            return f"the model has {self.vocabulary} tokens, none for {token!r} ({largest})"
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
            subject=tuple(i for i, (a, b) in enumerate(offsets) if subject and a < subject[1] and b > subject[0]),
        )

    def tokens_at(self, prompt: Prompt, ends: Sequence[int]) -> list[int | None]:
        """Return the positions of the tokens that hold a prompt's characters before ``ends``; None where none does."""
        text, spans = prompt.text, [(end - 1, end) for end in ends]
        placed: list[tuple[int, int] | None] = list(spans)
        if self.chat is not None:
            wrapped = self.chat.wrap(text)
            if isinstance(wrapped, str) or wrapped.shift is None:
                return [None] * len(spans)
            text, placed = wrapped.text, [wrapped.place(span) for span in spans]
        offsets = list(enumerate(self._encode(text)[1]))
        held = [[i for i, (a, b) in offsets if span and a < span[1] and b > span[0]] for span in placed]
        return [positions[-1] if positions else None for positions in held]

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

    def _split(self, target: Sequence[int], foil: Sequence[int]) -> int | str:
        """Return which target token is read out, or the reason why none can be."""
        if not target:
            return 0
        if not foil:
            blank = [not self.tokenizer.decode([token]).strip() for token in target]
            return blank.index(False) if False in blank else "the target is only whitespace"
        differ = (i for i, (ours, theirs) in enumerate(zip(target, foil, strict=False)) if ours != theirs)
        return next(differ, "target and foil share all tokens that can be compared")
