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
    """Return the reader for a model: its context, vocabulary and beginning and end tokens are read here.

    Raises
    ------
    XatlasError
        As :class:`xatlas.prompts.Reader`.
    """
    config = model.config.get_text_config()
    configs = [source for source in (config, getattr(model, "generation_config", None)) if source is not None]
    ends: list[Any] = [getattr(source, "eos_token_id", None) for source in configs]
    begins = [getattr(source, "bos_token_id", None) for source in configs]
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    context = getattr(config, "max_position_embeddings", None)
    vocabulary = min(len(module.weight) for module in embeddings if module is not None)
    return Reader(
        tokenizer,
        bos=bos,
        chat_template=chat_template,
        template_date=template_date,
        context=context if isinstance(context, int) and context > 0 else None,
        begin_token=next((token for token in begins if isinstance(token, int) and 0 <= token < vocabulary), None),
        end_token=[token for given in ends for token in (given if isinstance(given, list) else [given])],
        vocabulary=vocabulary,
    )
