"""What every call of transformers' ``from_pretrained`` needs: quiet, no network, no invented weights."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xatlas.errors import XatlasError


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence bars and warnings of transformers and forbid it the network, for the time of a block.

    Everything is in a local folder by now, but loading may still look for optional files or tags on the
    hub, and tries for up to 46 s when there is no network.
    """
    from huggingface_hub import constants
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    offline = constants.HF_HUB_OFFLINE
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    constants.HF_HUB_OFFLINE = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def refuse_gaps(report: Mapping[str, Any], place: Path) -> None:
    """Refuse a model that was not wholly read: transformers fills gaps with random numbers and goes on.

    Parameters
    ----------
    report : mapping
        The second result of ``from_pretrained(..., output_loading_info=True)``.
    place : Path
        Where the weights lie, for the message.

    Raises
    ------
    XatlasError
        Weights are missing or of another shape.
    """
    wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind])
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise XatlasError(
            f"the weights in {place} do not fit the model's config: {wrong[0]}{more} missing or of another shape."
        )


def first_line(error: Exception) -> str:
    """Return what an error of another library says, cut to one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."
