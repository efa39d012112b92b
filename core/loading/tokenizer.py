"""The tokenizer that tokenizer.json holds: for some classes transformers takes its vocabulary and rebuilds the rest."""

from __future__ import annotations

import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("xatlas")

#: What decides how a text becomes tokens, and what errors call it.
_PARTS = {
    "normalizer": "normalizer",
    "pre_tokenizer": "pre-tokenizer",
    "model": "model",
    "added_tokens": "added tokens",
    "post_processor": "post-processor",
    "decoder": "decoder",
}


def as_stored(found: PreTrainedTokenizerBase, file: Path | None) -> PreTrainedTokenizerBase:
    """Return ``found``, or the tokenizer in ``file`` where transformers built another one; a line says so.

    Whole tokenizers are compared, not tokens of some texts: equal parts give equal tokens of every text, and
    the file's own tokenizer is right where parts differ. It gets the same special tokens and chat template;
    truncation and padding that the file asks for are left out, as by transformers.

    Parameters
    ----------
    found : PreTrainedTokenizerBase
        What transformers made of the folder.
    file : Path or None
        The folder's ``tokenizer.json``; where there is none, ``found`` is all there is.
    """
    if file is None:
        return found

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer.from_file(str(file))
    own.no_truncation()
    own.no_padding()
    backend = getattr(found, "backend_tokenizer", None)
    ours, theirs = _parts(own), {} if backend is None else _parts(backend)
    other = [called for part, called in _PARTS.items() if ours.get(part) != theirs.get(part)]
    if not other:
        return found
    log.warning(
        "transformers %s builds %s with another %s than %s: the file's own tokenizer is used.",
        version("transformers"),
        type(found).__name__,
        " and ".join([", ".join(other[:-1])] * (len(other) > 1) + other[-1:]),
        file,
    )
    # as the file declares them: transformers would add its own flags; those that the file lacks have no embedding
    declared = {token.content: token for token in own.get_added_tokens_decoder().values()}
    special = {
        name: declared.get(token, token)
        for name, token in found.special_tokens_map.items()
        if isinstance(token, str) and own.token_to_id(token) is not None
    }
    kept = ("name_or_path", "model_max_length", "model_input_names", "padding_side", "chat_template")
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=own, **{name: getattr(found, name) for name in kept}, **special
    )
    return made


def _parts(tokenizer: Any) -> dict[str, Any]:
    """Return the parts of a tokenizer in one form: absent and empty affixes are the same, so are special tokens."""
    parts: dict[str, Any] = json.loads(tokenizer.to_str())
    parts["model"] = {name: value for name, value in parts["model"].items() if value not in (None, "")}
    parts["added_tokens"] = [{**token, "special": None} for token in parts["added_tokens"]]
    return parts
