"""The vocabulary: what each setting of a measurement may be; the first is what it is when nothing is said."""

from __future__ import annotations

import re
from datetime import date
from typing import Literal, get_args

from xatlas.errors import XatlasError, unknown

BosHabit = Literal["always", "native"]

#: Number formats of weights and activations.
DTYPES = ("float32", "bfloat16", "float16")
#: Attention implementations; only ``eager`` gives attention patterns.
ATTENTIONS = ("sdpa", "eager")
BOS_HABITS: tuple[str, ...] = get_args(BosHabit)
#: Devices, with one number for all that CUDA devices may have.
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")

#: Date that chat templates are rendered with when none is given: the same tokens on any day.
TEMPLATE_DATE = "2025-01-01"

_VALID = {"dtype": DTYPES, "attention implementation": ATTENTIONS, "BOS habit": BOS_HABITS, "device": DEVICES}


def check_setting(kind: str, name: str) -> None:
    """Refuse a value that a setting can't have; whether the machine has the device is not asked.

    Parameters
    ----------
    kind : {"dtype", "attention implementation", "BOS habit", "device"}
        Which setting, as errors call it.
    name : str
        The value.

    Raises
    ------
    XatlasError
        With the valid ones.
    """
    numbered = kind == "device" and re.fullmatch(r"cuda:\d+", name)
    if name not in _VALID[kind] and not numbered:
        raise unknown(kind, name, _VALID[kind])


def check_date(text: str) -> None:
    """Refuse what is no calendar date.

    Raises
    ------
    XatlasError
        With the form that is taken.
    """
    try:
        fits = date.fromisoformat(text).isoformat() == text
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise XatlasError(f"the template date {text!r} is no date: write it as YYYY-MM-DD, e.g. {TEMPLATE_DATE}.")
