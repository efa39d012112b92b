"""From text to tokens: beginning, text and target are tokenised together, and what is read out is found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from xatlas.errors import XatlasError
from xatlas.prompts.chat import ChatTemplate
from xatlas.prompts.tokens import TokenPrompt, TokenSuite
from xatlas.settings import TEMPLATE_DATE, BosHabit
from xatlas.suites import Prompt, Suite

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
