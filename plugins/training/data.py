"""What is trained on: prompts with responses as tokens, read as the model reads them everywhere else."""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas import manager
from xatlas.errors import XatlasError, unknown
from xatlas.files import digest, sha256_of_file
from xatlas.loading.download import answered
from xatlas.suites import Prompt, Suite
from xatlas.text import first_line

if TYPE_CHECKING:
    from xatlas.model import HookedModel

#: Suites whose families can be trained on by name: what is trained on, and what is held out.
TRAIN, HELD_OUT = "transfer-train", "transfer"
#: Of a file's rows every so many is held out, with all its turns.
EVERY = 10
#: What a row of a file or hub data set holds.
FORMS = "prompt and completion; messages; or prompt, chosen and rejected"


def needed(name: str) -> Any:
    """Import a package of the extra ``train``, or say how to get it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which asks for more packages as it is imported
    try:
        return importlib.import_module(name)
    except ImportError:
        raise XatlasError(f"training needs {name}: pip install 'xatlas-lm[train]'") from None


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its response, and one that is worse, as tokens."""

    family: str
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    rejected: tuple[int, ...] = ()  # empty where there is none
    answer: str = ""  # what the check asks for


def answers(text: str, answer: str) -> bool:
    """Check a continuation: it begins with the answer, which ends there as a word."""
    text, answer = text.strip(), answer.strip()
    return bool(answer) and re.match(re.escape(answer) + r"(?!\w)", text) is not None


def split(model: HookedModel, data: str) -> tuple[list[Example], list[Example]]:
    """Return what is trained on and what is held out, of families by name, a JSONL file, or a data set on the hub.

    ``data`` is a family of the transfer suites, several of them separated by commas, or ``transfer`` for all. Refused
    are unknown families and files, rows that are off, and data that leave nothing to train on or to hold out.
    """
    path = Path(data)
    if path.suffix in (".jsonl", ".json") or path.is_file():
        return _halves(model, _rows(path), data)
    if "/" in data:
        return _halves(model, _from_hub(data), data)
    suites = _suites()
    known, plain = suites[0].families, data.removesuffix(_mark(suites))
    names = known if plain == "transfer" else plain.split(",")
    for name in names:
        if name not in known:
            raise unknown("family", name, [*known, "transfer"], "Or give a FILE.jsonl, or a hub data set OWNER/NAME.")
    taught, held = ([prompt for prompt in suite if prompt.family in names] for suite in suites)
    return of_prompts(model, taught), of_prompts(model, held)


def named_by_contents(data: str) -> str:
    """Return what names the data by what it holds: a file by its hash, families with that of their suites.

    Data of the hub are named with their commit. What this returns is taken by :func:`split` for the same data, but for
    files. A hub that doesn't say which commit it holds is an error.
    """
    path = Path(data)
    if path.is_file():
        return f"file:{sha256_of_file(path)[:12]}"
    if "/" in data:
        return _with_commit(data)
    mark = _mark(_suites())
    return data.removesuffix(mark) + mark


def _suites() -> list[Suite]:
    return [manager.pick("suite", name, manager.suites()).load() for name in (TRAIN, HELD_OUT)]


def _mark(suites: Iterable[Suite]) -> str:
    return f":{digest([suite.hash for suite in suites])[:12]}"


def of_prompts(model: HookedModel, prompts: Suite | Iterable[Prompt], *, end: bool = False) -> list[Example]:
    """Return prompts that have targets as examples; a foil is what is rejected. With ``end`` responses end documents.

    What can't be tokenised is left out, as everywhere.
    """
    assert model.reader is not None
    asked = [prompt for prompt in prompts if prompt.target is not None]
    foils = [replace(prompt, target=prompt.foil, foil=None) for prompt in asked if prompt.foil is not None]
    others = {read.prompt.id: read.target_ids for read in model.read(foils).prompts} if foils else {}
    last = (model.tokenizer.eos_token_id,) if end and model.tokenizer.eos_token_id is not None else ()
    found = []
    for read in model.read([replace(prompt, foil=None) for prompt in asked]).prompts if asked else ():
        response, rejected = (*read.target_ids, *last), others.get(read.prompt.id, ())
        rejected = (*rejected, *last) if rejected else ()
        found.append(Example(read.prompt.family, read.ids[: read.n_text], response, rejected, read.prompt.target or ""))
    return found


def _halves(model: HookedModel, rows: Iterable[Mapping[str, Any]], data: str) -> tuple[list[Example], list[Example]]:
    read = (_examples(model, row, f"{data}, row {number}") for number, row in enumerate(rows))
    found = [examples for examples in read if examples]
    if len(found) < 2:
        raise XatlasError(f"{data} holds {len(found)} rows that can be read: give at least two.")
    held = found[EVERY - 1 :: EVERY] or found[-1:]
    taught = [each for number, each in enumerate(found) if number % EVERY != EVERY - 1]
    taught = taught if len(found) >= EVERY else taught[:-1]
    return list(chain.from_iterable(taught)), list(chain.from_iterable(held))


def _examples(model: HookedModel, row: Mapping[str, Any], where: str) -> list[Example]:
    """Return the examples of a row: one, or one for each turn of the assistant."""
    messages, prompt = row.get("messages"), row.get("prompt")
    try:
        if isinstance(messages, list):
            turns = [place for place, each in enumerate(messages) if each["role"] == "assistant" and place]
            return [_turn(model, messages[:place], messages[place]) for place in turns]
        good, bad = row.get("completion", row.get("chosen")), row.get("rejected")
        if isinstance(prompt, list) and isinstance(good, list):
            rejected = _turn(model, prompt, bad[0]).response if isinstance(bad, list) else ()
            return [replace(_turn(model, prompt, good[0]), rejected=rejected)]
        made = Prompt(id="row", family="data", text=str(prompt or ""), target=good, foil=bad)
    except (KeyError, IndexError, TypeError, XatlasError) as error:
        raise XatlasError(f"{where} does not fit ({first_line(error)}) A row holds {FORMS}.") from None
    if good is None:
        raise XatlasError(f"{where} does not fit: a row holds {FORMS}.")
    try:
        return of_prompts(model, [made], end=True)
    except XatlasError:  # it can't be tokenised, or is too long
        return []


def _turn(model: HookedModel, before: Sequence[Any], reply: Mapping[str, str]) -> Example:
    """Return a reply as the response to the messages before it, as the model's chat template writes both."""
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise XatlasError("messages need a chat template, which this model's tokenizer lacks")
    prompt = tokenizer.apply_chat_template(before, add_generation_prompt=True, tokenize=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*before, reply], tokenize=True, return_dict=False)
    if whole[: len(prompt)] != prompt:
        raise XatlasError("the chat template writes a conversation anew when a reply follows")
    return Example("data", tuple(prompt), tuple(whole[len(prompt) :]), (), str(reply["content"]))


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise XatlasError(f"cannot read {path} ({error}); a row of a JSONL file holds {FORMS}.") from None
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise XatlasError(f"{path}, line {number}: one JSON object per line is needed: {FORMS}.")
        rows.append(row)
    return rows


def _from_hub(name: str) -> Any:
    load = needed("datasets").load_dataset
    plain, _, commit = _with_commit(name).partition("@")
    with _one_line(name):
        return load(plain, split="train", revision=commit or None)


@cache
def _with_commit(name: str) -> str:
    """Return ``OWNER/NAME@COMMIT``, the hub's newest unless it is named; without a network as it is named."""
    from huggingface_hub import HfApi, constants

    if "@" in name or constants.HF_HUB_OFFLINE:
        return name
    with _one_line(name):
        # asked first: datasets itself tries for half a minute, and says so line by line
        return f"{name}@{answered(lambda: HfApi().dataset_info(name).sha, 'data set')}"


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the hub, or the network, has against it
        why = str(error if isinstance(error, XatlasError) else first_line(error)).rstrip(".")
        raise XatlasError(f"the data set '{name}' could not be loaded: {why}. Or give a FILE.jsonl.") from error
