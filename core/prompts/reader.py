"""From text to tokens: a chat template about the text, tokens of text and target together, and what is read out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xatlas.errors import XatlasError
from xatlas.files import sha256
from xatlas.suites import Prompt, Suite
from xatlas.text import printable
from xatlas.vocabulary import POSITION_CLASSES, TEMPLATE_DATE, BosHabit, check_date

#: Tokens that end documents in base models, and may end turns too in what was tuned from them.
_DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>", "[EOS]")
#: Tokens that end turns; others are recognised by standing in the chat template.
_TURN_ENDS = re.compile(r"im_end|eo[tm]_id|end_of_(turn|utterance|message)|turn\|>")
#: Limits of one rendering: processor seconds, characters beyond the text's, bytes of memory.
_SECONDS, _CHARACTERS, _MEMORY = 2, 200_000, 1 << 30


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
    n_bytes: int = 0  # bytes of the text in UTF-8, without those of a token of it at position 0, which nothing predicts

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


def buckets(lengths: Sequence[int], most: Callable[[int], int]) -> list[np.ndarray]:
    """Return the indices of prompts in groups of equal length, shortest first, of one or ``most(length)`` each."""
    groups: list[np.ndarray] = []
    array = np.asarray(lengths)
    for length in np.unique(array):
        members = np.flatnonzero(array == length)
        size = max(1, most(int(length)))
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
            n_bytes=len(text.encode()) - self._bytes_of_first(text, ids, offsets),
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

    def text_of(self, token: int) -> str:
        """Return a token's text, its space in front included; its name where it is no text of its own."""
        name = self.tokenizer.convert_ids_to_tokens(token)
        text: str = self.tokenizer.decode([token])
        if isinstance(name, str) and name.startswith("▁") and not text.startswith(" "):
            text = f" {text}"
        return printable(name or f"<{token}>" if not text or "\ufffd" in text else text)

    def _bytes_of_first(self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> int:
        """Return how many bytes of the text the token at position 0 stands for."""
        if not ids or offsets[0][1] == 0:  # a beginning token, which stands for none
            return 0
        before = len(text[: offsets[0][1]].encode())
        if len(ids) == 1 or offsets[1][0] >= offsets[0][1]:
            return before
        # The next token goes on within the same character: tokens of single bytes, or a letter for each byte.
        token = self.tokenizer.convert_ids_to_tokens(ids[0])
        return min(1 if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else len(token), before)

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


# -- chat templates ---------------------------------------------------------------------------------


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

    def conversations(self, given: Iterable[Sequence[Mapping[str, str]]]) -> list[str]:
        """Return turns, each with a role and a content, as texts; where there is no system's turn, the user says it."""
        asked = [[dict(turn) for turn in turns] for turns in given]
        answers = self._render(asked)
        for index in [i for i, one in enumerate(answers) if "fault" in one and asked[i][0]["role"] == "system"]:
            system, first, *rest = asked[index]
            joined = {"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}
            answers[index] = self._render([[joined, *rest]])[0]
        fault = next((one["fault"] for one in answers if "fault" in one), None)
        if fault is not None:
            raise _unusable(f"the chat template fails ({fault})")
        return [one["text"] for one in answers]

    def _render(self, contents: Sequence[str | list[dict[str, str]]]) -> list[dict[str, str]]:
        """Return ``{"text": rendered}`` or ``{"fault": why}`` of each content, the user's turn or several."""
        request = {
            "template": self.source,
            "variables": self.variables,
            "date": self.date,
            "contents": list(contents),
            "paths": [path for path in sys.path if path],
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
                # numpy's threads, one for each core, would take what memory a template may have
                env={**os.environ, "TZ": "UTC", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
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
