"""What each setting of a measurement may be; the first is what it is when nothing is said. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, get_args

from xatlas.errors import unknown

BosHabit = Literal["always", "native"]

#: Number formats of weights and activations.
DTYPES = ("float32", "bfloat16", "float16")
#: Attention implementations; only ``eager`` gives attention patterns.
ATTENTIONS = ("sdpa", "eager")
BOS_HABITS: tuple[str, ...] = get_args(BosHabit)
#: Devices, with one number for all that CUDA devices may have.
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")


def check_dtype(name: str) -> None:
    """Refuse a number format that is not one of :data:`DTYPES`.

    Raises
    ------
    XatlasError
        With the valid ones.
    """
    _check("dtype", name, DTYPES)


def check_attention(name: str) -> None:
    """Refuse an attention implementation that is not one of :data:`ATTENTIONS`.

    Raises
    ------
    XatlasError
        With the valid ones.
    """
    _check("attention implementation", name, ATTENTIONS)


def check_bos(name: str) -> None:
    """Refuse a BOS habit that is not one of :data:`BOS_HABITS`.

    Raises
    ------
    XatlasError
        With the valid ones.
    """
    _check("BOS habit", name, BOS_HABITS)


def check_device(name: str) -> None:
    """Refuse what names no device; whether the machine has it is not asked.

    Raises
    ------
    XatlasError
        With the valid ones.
    """
    if not re.fullmatch(r"cuda:\d+", name):
        _check("device", name, DEVICES)


def _check(kind: str, name: str, valid: Iterable[str]) -> None:
    if name not in valid:
        raise unknown(kind, name, valid)
