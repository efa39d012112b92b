"""The miniatures: three models of one size, trained on the same tokens in the same order, shipped in this folder.

They are Hugging Face's own LFM2 (convolutions and attention), Qwen2 and Llama classes. `recipe.py` makes them; each
folder's CARD.md says what they can do.
"""

from __future__ import annotations

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
    """The three miniatures, as folders of this package."""
    return {
        alias: ModelSource(alias=alias, location=str(FOLDER / alias), kind="folder", summary=summary)
        for alias, summary in SUMMARIES.items()
    }
