"""What a loaded model is read with: the adapter that its class name asks for, and a reader of prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xatlas.errors import unknown
from xatlas.manager import adapters
from xatlas.prompts import Reader
from xatlas.settings import TEMPLATE_DATE, BosHabit

if TYPE_CHECKING:
    from xatlas.adapter import Adapter


def adapter_for(model: Any) -> Adapter:
    """Return an adapter instance for a loaded model.

    Raises
    ------
    XatlasError
        No plugin brings an adapter for the model's class.
    """
    name = type(model).__name__
    known = adapters()
    if name not in known:
        raise unknown("architecture", name, known, "Write an adapter for it: see docs/adapters.md, it fits a screen.")
    return known[name](model)


def make_reader(
    model: Any, tokenizer: Any, bos: BosHabit, chat_template: bool, template_date: str = TEMPLATE_DATE
) -> Reader:
    """Return the reader for a model: its context length and end-of-document token are read here.

    Raises
    ------
    XatlasError
        As :class:`xatlas.prompts.Reader`.
    """
    given = getattr(model.config, "eos_token_id", None)
    ends = given if isinstance(given, list) else [given]
    end: int | None = ends[0] if ends else None
    context = getattr(model.config, "max_position_embeddings", None)
    return Reader(
        tokenizer,
        bos=bos,
        chat_template=chat_template,
        template_date=template_date,
        context=context,
        end_token=end,
    )
