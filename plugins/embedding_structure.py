"""Structure of the token embeddings: norms, effective rank, and how alike tokens of one kind are."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

from xatlas import Inputs, Probe, Suite, Variable, XatlasError, hookimpl

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from xatlas import HookedModel

#: ``word``: letters that begin a word; ``piece``: letters that go on; ``bytes``: tokens that are no text by themselves;
#: ``unused``: rows that the tokenizer has no token for.
CATEGORIES = ("word", "piece", "digit", "punctuation", "space", "other", "bytes", "special", "unused")
#: Rows of the embedding that are looked at at a time.
_ROWS = 8192


class EmbeddingStructure(Probe):
    """Norms of token embeddings, their effective rank, and cosines within and between categories of tokens.

    Definition: ``norm`` is the L2 norm of each token's row as the weights have it. ``effective_rank`` is the
    exponential of the entropy of the singular values, as shares of their sum. ``cosine_within`` is the mean cosine of
    two different tokens of a category, ``cosine_between`` that of one of them and one of another category: over all
    pairs of rows that are not zero. Categories are told from the text of single tokens: a beginning of a word (a space
    and letters), letters without a space, digits, punctuation and symbols, white space, mixtures, parts of characters,
    special tokens, rows without a token.

    Unit: ``norm`` in units of the embedding; the others without.

    Control: ``cosine_between`` is that of ``cosine_within``; an untrained twin has neither.

    Source: Roy and Vetterli 2007 (effective rank); Ethayarajh 1909.00512 (cosines of all tokens are not 0).
    """

    name = "embedding_structure"
    version = 1
    measures_on = "model"
    replicate = None
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "norm": Variable(("token",), "1", "L2 norm of the token's embedding"),
        "effective_rank": Variable((), "1", "exponential of the entropy of the singular values"),
        "cosine_within": Variable(("category",), "1", "mean cosine of two tokens of the category"),
        "cosine_between": Variable(("category",), "1", "mean cosine of a token of the category and one of another"),
    }

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``norm (token)``, ``effective_rank ()``, ``cosine_within`` and ``cosine_between (category)``."""
        import numpy as np

        from xatlas.schema import cells, label

        if model.tokenizer is None:
            raise XatlasError("this model was made without a tokenizer: its tokens have no text to tell categories by.")
        weight = model.adapter.module(model.adapter.embedding_path).weight
        kinds = np.array([CATEGORIES.index(kind) for kind in categories(model.tokenizer, len(weight))])
        norm, second = np.zeros(len(weight)), np.zeros((weight.shape[1],) * 2)
        sums, counts = np.zeros((len(CATEGORIES), weight.shape[1])), np.zeros(len(CATEGORIES))
        for start in range(0, len(weight), _ROWS):
            block = slice(start, start + _ROWS)
            rows = weight[block].detach().float().cpu().double().numpy()
            second += rows.T @ rows
            norm[block] = size = np.sqrt(np.square(rows).sum(1))
            member = (kinds[block] == np.arange(len(CATEGORIES))[:, None]) * (size > 0.0)  # (category, token)
            sums += member @ (rows / np.where(size > 0, size, 1)[:, None])
            counts += member.sum(1)
        within, between = cosines(sums, counts)
        absent = {}
        for few in ((counts < 2), (counts == 0) | (counts == counts.sum())):
            if few.any():
                named = [kind for kind, bare in zip(CATEGORIES, few, strict=True) if bare]
                absent[cells(category=named)] = "the category has no two tokens, or is the only one"
        coords: dict[str, Any] = {
            "token": np.arange(len(weight)),
            "token_category": ("token", [CATEGORIES[kind] for kind in kinds]),
            "category": list(CATEGORIES),
        }
        arrays = {
            "norm": norm,
            "effective_rank": effective_rank(second),
            "cosine_within": within,
            "cosine_between": between,
        }
        return label(self.variables, arrays, coords, absent=absent)


def cosines(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean cosines within and between from sums of unit vectors ``(category, d_model)`` and their numbers."""
    import numpy as np

    others, rest = sums.sum(0) - sums, counts.sum() - counts
    within = np.square(sums).sum(1) - counts  # of ordered pairs
    between = (sums * others).sum(1)
    pairs = ((within, counts * (counts - 1)), (between, counts * rest))
    first, second = (np.divide(a, n, out=np.full(len(a), np.nan), where=n > 0) for a, n in pairs)
    return first, second


def effective_rank(second: np.ndarray) -> float:
    """Return the effective rank of a matrix from its second moments ``(d_model, d_model)``."""
    import numpy as np

    singular = np.sqrt(np.clip(np.linalg.eigvalsh(second), 0, None))
    share = singular[singular > 0] / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def categories(tokenizer: Any, rows: int) -> list[str]:
    """Return the category of each row of the embedding."""
    names = tokenizer.convert_ids_to_tokens(list(range(min(rows, len(tokenizer)))))
    names += [None] * (rows - len(names))
    special = set(tokenizer.all_special_ids)
    special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    texts = tokenizer.batch_decode([[token] for token, name in enumerate(names) if name is not None])
    left = iter(texts)
    return [
        "unused" if name is None else _category(name, next(left), token in special) for token, name in enumerate(names)
    ]


def _category(name: str, text: str, special: bool) -> str:
    """Return the category of a token by its name in the vocabulary and its text."""
    if special:
        return "special"
    if "\ufffd" in text:
        return "bytes"
    bare = text.strip()
    if not bare:
        return "space"
    kinds = {unicodedata.category(character)[0] for character in bare}  # L: letter, M: mark, N: number, …
    if kinds <= {"L", "M"}:
        begins = name.startswith(("\u0120", "\u2581")) or text[0].isspace()  # how tokenizers write a space
        return "word" if begins else "piece"
    return "digit" if kinds == {"N"} else "punctuation" if kinds <= {"P", "S"} else "other"


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [EmbeddingStructure]
