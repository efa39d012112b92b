"""The vocabulary: every list of names that measurements are described with, each once.

A list is a ``Literal``, for signatures and parameters, and a tuple of its names; of settings, the first is the default.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Literal, get_args

from xatlas.errors import XatlasError, unknown

#: Number formats of weights and activations.
Dtype = Literal["float32", "bfloat16", "float16"]
#: Attention implementations; only ``eager`` gives attention patterns, so that these are read in a pass of their own.
Attention = Literal["sdpa", "eager"]
#: What stands at position 0: always a beginning token, or what the tokenizer does of itself.
BosHabit = Literal["always", "native"]
#: Classes of positions that share none; ``last`` is the readout.
PositionClass = Literal["first", "subject", "last", "other"]
#: Where an intervention is made: at one class of positions, at all but position 0, or at all.
Positions = Literal[PositionClass, "rest", "all"]
#: Where KL is read: at the readout, or the mean over the text.
Scope = Literal["last", "all"]
#: Ways to ablate whatever a layer writes.
AblationKind = Literal["zero", "mean", "resample"]
#: Ways to ablate a factor of a product: at one it is bypassed.
FactorAblationKind = Literal[AblationKind, "one"]
#: Which run is patched with values of which: the corrupted with the clean's, or the other way.
PatchMode = Literal["denoise", "noise"]

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
BOS_HABITS: tuple[BosHabit, ...] = get_args(BosHabit)
POSITION_CLASSES: tuple[PositionClass, ...] = get_args(PositionClass)
SCOPES: tuple[Scope, ...] = get_args(Scope)
#: The kind that findings rest on: the only one that has controls.
CONTROLLED: AblationKind = "mean"
#: Kinds that layers are ablated by unless others are named: those that comparisons show.
STANDARD_ABLATIONS: tuple[AblationKind, ...] = ("zero", "mean", "resample")
PATCH_MODES: tuple[PatchMode, ...] = get_args(PatchMode)
#: What models may be compared with besides each other: what they are before training.
NULLS = ("untrained",)
#: Bytes of one number.
DTYPE_BYTES: dict[str, int] = {name: int(name.removeprefix("b").removeprefix("float")) // 8 for name in DTYPES}
#: Devices; any number may stand behind ``cuda:``.
DEVICES = ("auto", "cpu", "cuda", "cuda:0", "mps")

#: Site kinds in the order in which a layer's forward passes them, with their dimensions.
#: An adapter may add kinds of its own; these are the shared ones.
SITE_KINDS: dict[str, tuple[str, ...]] = {
    "resid_pre": ("batch", "pos", "d_model"),
    "conv_gate": ("batch", "pos", "d_model"),
    "conv_carrier": ("batch", "pos", "d_model"),
    "conv_signal": ("batch", "pos", "d_model"),
    "attention_pattern": ("batch", "n_heads", "query", "key"),
    "heads": ("batch", "pos", "n_heads", "d_head"),
    "operator_out": ("batch", "pos", "d_model"),
    "resid_mid": ("batch", "pos", "d_model"),
    "router": ("batch", "pos", "n_experts"),
    "mlp_out": ("batch", "pos", "d_model"),
    "resid_post": ("batch", "pos", "d_model"),
}
#: Kinds that can be read but never edited.
READ_ONLY: frozenset[str] = frozenset({"attention_pattern", "router"})
#: Kinds whose value is added to (or is) the stream leaving the layer: a change there is a change of
#: ``resid_post`` by the same difference, whatever else the layer computes.
WRITES: frozenset[str] = frozenset({"mlp_out", "resid_post"})
#: Component of a layer → the site kind that holds what it adds to the stream.
COMPONENT_SITES: dict[str, str] = {"operator": "operator_out", "mlp": "mlp_out"}

#: Date that chat templates are rendered with when none is given: the same tokens on any day.
TEMPLATE_DATE = "2025-01-01"

_VALID = {
    "dtype": DTYPES,
    "attention implementation": ATTENTIONS,
    "BOS habit": BOS_HABITS,
    "device": DEVICES,
    "null": NULLS,
}


def forward_order(kind: str) -> int:
    """Return when a layer's forward passes a site kind; kinds that an adapter adds come last."""
    return list(SITE_KINDS).index(kind) if kind in SITE_KINDS else len(SITE_KINDS)


def check_setting(kind: str, name: str) -> None:
    """Refuse a value that a setting (a key of ``_VALID``) can't have; whether the machine has a device is not asked."""
    numbered = kind == "device" and re.fullmatch(r"cuda:\d+", name)
    if name not in _VALID[kind] and not numbered:
        raise unknown(kind, name, _VALID[kind])


def check_date(text: str) -> None:
    """Refuse what is no calendar date of the form ``YYYY-MM-DD``."""
    try:
        fits = date.fromisoformat(text).isoformat() == text
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise XatlasError(f"the template date {text!r} is no date: write it as YYYY-MM-DD, e.g. {TEMPLATE_DATE}.")
