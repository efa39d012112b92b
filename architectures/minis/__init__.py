"""The miniatures: three models of one size, trained on the same tokens in the same order, shipped in this folder.

They are Hugging Face's own LFM2 (convolutions and attention), Qwen2 and Llama classes. `recipe.py` makes them; each
folder's CARD.md says what they can do. `lfm2-mini` is training seed 0 of its kind; the folder `lfm2-mini-1` is
`lfm2-mini:1`.
"""

from __future__ import annotations

import re
from pathlib import Path

from xatlas import hookimpl
from xatlas.loading.download import ModelSource

FOLDER = Path(__file__).resolve().parent
SUMMARIES = {
    "lfm2-mini": "miniature LFM2 (convolutions and attention), trained on the built-in families",
    "qwen-mini": "miniature Qwen2, trained on the same tokens",
    "smollm2-mini": "miniature Llama, trained on the same tokens",
}


@hookimpl
def xatlas_models() -> dict[str, ModelSource]:
    """The three miniatures, as folders of this package, and what other training seeds of them lie here."""
    found = {alias: ModelSource(alias, str(FOLDER / alias), "folder", what) for alias, what in SUMMARIES.items()}
    for folder in sorted(FOLDER.glob("*-mini-*")):
        if seed := re.fullmatch(r"(\w+-mini)-([1-9]\d*)", folder.name):
            alias, summary = f"{seed[1]}:{seed[2]}", f"training seed {seed[2]} of {seed[1]}"
            found[alias] = ModelSource(alias, str(folder), "folder", summary)
    return found
