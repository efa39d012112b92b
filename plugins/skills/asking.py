"""Asking a model: how a test becomes the text that it reads, and what it answers, kept test by test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from xatlas.errors import XatlasError
from xatlas.files import sha256

if TYPE_CHECKING:
    from xatlas.contracts.probe import Inputs
    from xatlas.model import HookedModel
    from xatlas.model.generation import Continuation
    from xatlas.plugins.skills.tests import Test

#: Whether tests are put through the model's chat template: if it has one, or both with it and without.
Chat = Literal["auto", "on", "off", "both"]
Turns = Sequence[Mapping[str, str]]

_TEMPLATE, _PLAIN, _RAW = "template", "plain", "raw"
_NAMES = {"user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Asked:
    """One question as a model reads it."""

    id: str
    text: str  # as run, template included
    ids: tuple[int, ...]
    most: int  # tokens that may follow
    chat: str  # template, or plain


@dataclass(frozen=True)
class Answer:
    """What a model wrote."""

    text: str
    tokens: int
    stop_reason: str  # end, length; context where the question was too long to be asked
    ties: int = 0  # steps at which the two likeliest tokens tie


def chat_modes(model: HookedModel, chat: Chat) -> list[str]:
    """Return whether to ask with the template, without, or both."""
    has = bool(getattr(model.tokenizer, "chat_template", None))
    if chat in ("on", "both") and not has:
        raise XatlasError(f"the model '{model.slug}' has no chat template: leave chat = {chat} out.")
    return {"auto": [_TEMPLATE if has else _PLAIN], "on": [_TEMPLATE], "off": [_PLAIN]}.get(chat, [_TEMPLATE, _PLAIN])


def plain(turns: Turns) -> str:
    """Return turns as a text that a model without a template goes on with."""
    lines = [f"{_NAMES[turn['role']]}: {turn['content']}" for turn in turns if turn["role"] != "system"]
    system = [turn["content"] + "\n" for turn in turns if turn["role"] == "system"]
    return "\n".join([*system, *lines, "Assistant:"])


def asked(model: HookedModel, questions: Iterable[tuple[str, Turns, int]], chat: str) -> list[Asked]:
    """Return questions, each an id, turns, and the most tokens of an answer, as the model reads them."""
    from xatlas.prompts.reader import ChatTemplate
    from xatlas.vocabulary import TEMPLATE_DATE

    reader, given = model.reader, list(questions)
    if reader is None:
        raise XatlasError("this model was made without a tokenizer: it can't be asked anything.")
    if chat == _TEMPLATE:
        texts = ChatTemplate(model.tokenizer, TEMPLATE_DATE).conversations([turns for _, turns, _ in given])
    else:
        texts = [plain(turns) for _, turns, _ in given]
    found = []
    for (name, _, most), text in zip(given, texts, strict=True):
        ids = model.tokenizer(text, add_special_tokens=chat == _PLAIN and reader.bos == "native")["input_ids"]
        if chat == _PLAIN and reader.first_token is not None:
            ids = [reader.first_token, *ids]
        found.append(Asked(name, text, tuple(ids), most, chat))
    return found


def continued(model: HookedModel, tests: Sequence[Test]) -> dict[str, Asked]:
    """Return texts that are gone on with as they are, up to as many tokens as their targets have; by id."""
    from xatlas.suites import Prompt

    read = model.read(Prompt(test.id, test.category, test.messages[0]["content"], str(test.target)) for test in tests)
    return {
        one.prompt.id: Asked(one.prompt.id, one.prompt.text, one.ids[: one.n_text], len(one.target_ids), _RAW)
        for one in read.prompts
    }


def answer_all(
    model: HookedModel, questions: Sequence[Asked], inputs: Inputs, label: str = "tests", part: str = ""
) -> list[Answer]:
    """Return what the model answers, greedily; each answer is kept as soon as its batch is done.

    ``part`` tells apart what is asked under different conditions.
    """
    import numpy as np

    from xatlas.model.generation import Continuation, continue_all

    reader = model.reader
    assert reader is not None
    keys = [sha256(f"{part}|{one.chat}|{one.id}|{one.most}|{one.text}".encode())[:20] for one in questions]
    found: dict[int, Answer] = {}
    left = []
    for index, (one, key) in enumerate(zip(questions, keys, strict=True)):
        kept = inputs.checkpoint.load(key)
        if kept is not None and "ties" in kept:
            tokens = tuple(map(int, kept["tokens"]))
            found[index] = _decoded(model, one, Continuation(tokens, str(kept["stop_reason"]), int(kept["ties"])))
        elif reader.context is not None and len(one.ids) + one.most > reader.context:
            found[index] = Answer("", 0, "context")
        else:
            left.append(index)
    inputs.progress(label, len(found), len(questions))

    def keep(rows: list[int], made: list[Continuation]) -> None:
        for row, each in zip(rows, made, strict=True):
            index = left[row]
            inputs.checkpoint.save(keys[index], {name: np.array(value) for name, value in asdict(each).items()})
            found[index] = _decoded(model, questions[index], each)
        inputs.progress(label, len(found), len(questions))

    continue_all(model, [questions[i].ids for i in left], [questions[i].most for i in left], kept=keep)
    return [found[index] for index in range(len(questions))]


def _decoded(model: HookedModel, one: Asked, made: Continuation) -> Answer:
    tokens = made.tokens
    text = model.tokenizer.decode(list(tokens), skip_special_tokens=True)
    if one.chat == _RAW:  # with the space in front that some tokenizers drop
        whole = model.tokenizer.decode([*one.ids, *tokens], skip_special_tokens=True)
        text = whole[len(model.tokenizer.decode(list(one.ids), skip_special_tokens=True)) :]
    if one.chat == _PLAIN and one.text.endswith("Assistant:"):  # without a template nothing else ends a turn
        text = text.split("\nUser:")[0]
    return Answer(storable(text), len(tokens), made.stop_reason, made.ties)


def storable(text: str) -> str:
    """Return a text that a result file can hold."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
