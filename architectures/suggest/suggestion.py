"""A first adapter for a class that has none: read off the module tree and one traced forward of a tiny random model."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

from xatlas.architectures.suggest.places import traced
from xatlas.architectures.suggest.writer import Writer
from xatlas.checks.adapters import check_model
from xatlas.contracts.adapter import Adapter
from xatlas.errors import XatlasError
from xatlas.model import HookedModel
from xatlas.testing import model_class, running_models
from xatlas.text import first_line, one_line


class Suggestion(NamedTuple):
    """An adapter file, what the check says of it, and what it could not tell."""

    source: str
    questions: list[str]
    verdict: str  # empty: the check passes


def suggest(architecture: str, config: Mapping[str, Any] | None = None) -> Suggestion:
    """Suggest an adapter for a class of transformers.

    The layer list is where each output is the next one's input; what a layer writes are the modules whose outputs, each
    times a factor, sum to what the layer adds. What is not certain stands in the file as a question.

    Parameters
    ----------
    architecture : str
        Class in transformers, e.g. ``"GPT2LMHeadModel"``.
    config : mapping, optional
        Fields of a checkpoint's config: switches, words and types of layers decide which variant is looked at.

    Raises
    ------
    XatlasError
        transformers has no such class, no small model of it can be made, or its forward is no list of layers.
    """
    cls = model_class(architecture)
    try:
        hf = next(running_models(architecture, **_switches(cls, config or {})))
        if hf.get_output_embeddings() is None:
            advice = "name the class that ends in ForCausalLM or LMHeadModel."
            raise XatlasError(f"{architecture} gives no logits: {advice}")
        writer = Writer(hf, architecture, traced(hf, 0), traced(hf, 1))
        source = writer.file()
    except XatlasError:
        raise
    except Exception as error:
        fault = f"its places can't be read off a forward of a tiny model ({first_line(error).rstrip('.')})"
        raise XatlasError(f"{architecture}: {fault}: write the adapter by hand, as docs/adapters.md shows.") from error
    return Suggestion(source, writer.questions, _judged(source, hf))


def _switches(cls: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a checkpoint's config that decide which variant of a class it is."""
    given: dict[str, Any] = {name: value for name, value in config.items() if isinstance(value, bool | str)}
    known = vars(cls.config_class()).keys() - {"model_type", "transformers_version", "torch_dtype", "dtype"}
    switches = {name: value for name, value in given.items() if name in known and not name.startswith("_")}
    if types := list(dict.fromkeys(config.get("layer_types") or ())):
        switches["layer_types"] = list(itertools.islice(itertools.cycle(types), max(4, len(types))))
        switches["num_hidden_layers"] = len(switches["layer_types"])
    return switches


def _judged(source: str, hf: Any) -> str:
    """Return what the check says of the adapter in a file; nothing where it passes."""
    found: dict[str, Any] = {"__name__": "suggested"}
    try:
        exec(compile(source, "suggested", "exec"), found)
        classes = [each for each in found.values() if isinstance(each, type) and issubclass(each, Adapter)]
        cls = next(each for each in classes if each.__module__ == "suggested")
        check_model(HookedModel(hf, None, adapter=cls(hf)))
    except XatlasError as error:
        return one_line(str(error))
    except Exception as error:  # what is wrong may be the file itself
        why, frames = first_line(error).rstrip("."), traceback.extract_tb(error.__traceback__)
        methods = [frame.name for frame in frames if frame.filename == "suggested"]
        if methods:
            return f"what {methods[-1]} gives was not found ({why}): write {methods[-1]} by hand."
        advice = "look its hook_points, cache_argument and row_arguments through by hand"
        return f"with the places that were found the model can't be run ({why}): {advice}."
    return ""
