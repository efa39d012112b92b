"""From text to tokens: beginning, text and target are tokenised together, and what is read out is found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from xatlas.errors import XatlasError
from xatlas.prompts.tokens import TokenPrompt, TokenSuite
from xatlas.settings import TEMPLATE_DATE, BosHabit
from xatlas.suites import Prompt, Suite


class Reader:
    """Turns prompts into tokens the way one model reads them.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        A fast tokenizer (spans need offsets).
    bos : {"always", "native"}
        ``always`` prepends the tokenizer's beginning token, or else the model's end-of-document token, so
        that position 0 is the same kind of thing in every model; ``native`` leaves the tokenizer's habit.
    chat_template : bool
        Wrap the text as a user's turn.
    template_date : str
        Date that the chat template is rendered with, ``YYYY-MM-DD``: the same tokens on any day.
    context : int or None
        Longest input the model takes.
    end_token : int or None
        The model's end-of-document token.

    Raises
    ------
    XatlasError
        The tokenizer has no chat template, or no token to put at position 0, and it is asked for.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        bos: BosHabit = "always",
        chat_template: bool = False,
        template_date: str = TEMPLATE_DATE,
        context: int | None = None,
        end_token: int | None = None,
    ) -> None:
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise XatlasError("this model's tokenizer has no chat template: leave --chat-template out.")
        self.tokenizer = tokenizer
        self.bos = bos
        self.chat_template = chat_template
        self.template_date = template_date
        self.context = context
        self.first_token = self._first_token(end_token) if bos == "always" else None

    def _first_token(self, end_token: int | None) -> int:
        for candidate in (self.tokenizer.bos_token_id, end_token, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        raise XatlasError(
            "the tokenizer has neither a beginning nor an end token to put at position 0: use --bos native."
        )

    def suite(self, suite: Suite | Iterable[Prompt]) -> TokenSuite:
        """Tokenise every prompt.

        One is dropped, with a reason, where its text's own tokens do not stay as they are once target or foil
        follows, or where no token of the target can be read out.

        Returns
        -------
        TokenSuite
            What is left, in the suite's order, and the reasons.

        Raises
        ------
        XatlasError
            A prompt is longer than the context, or no prompt is left.
        """
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
            It is longer than the context.
        """
        text, shift = self._wrap(prompt.text)
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
            raise XatlasError(
                f"prompt '{prompt.id}' has {len(run)} tokens, the model's context is {self.context}: shorten it."
            )
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
            subject=_overlap(offsets, prompt.subject, shift),
        )

    def _wrap(self, text: str) -> tuple[str, int]:
        """Return the text as it is run, and how far the prompt's characters moved in it."""
        if not self.chat_template:
            return text, 0
        turns = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        beginning = self.tokenizer.bos_token
        if self.bos == "always" and beginning and rendered.startswith(beginning):
            rendered = rendered[len(beginning) :]
        return rendered, rendered.find(text)

    def _encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return tokens and character spans, the beginning token in front."""
        own_habit = self.bos == "native" and not self.chat_template
        encoded = self.tokenizer(text, add_special_tokens=own_habit, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        if own_habit and ids and ids[-1] == self.tokenizer.eos_token_id and offsets[-1][0] == offsets[-1][1]:
            ids, offsets = ids[:-1], offsets[:-1]
        if self.first_token is not None:
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


def _overlap(offsets: Sequence[tuple[int, int]], span: tuple[int, int] | None, shift: int) -> tuple[int, ...]:
    if span is None or shift < 0:
        return ()
    start, end = span[0] + shift, span[1] + shift
    return tuple(i for i, (a, b) in enumerate(offsets) if a < end and b > start)
