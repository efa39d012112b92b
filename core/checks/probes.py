"""What every probe must keep to: what it declares, and what it returns for a small model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas import manager
from xatlas.checks.declared import ABSOLUTE, RELATIVE, check_abstract, check_name, check_requirement, checked
from xatlas.checks.specimen import answered_suite, model_with, small_reference
from xatlas.errors import XatlasError, unknown
from xatlas.probe import Checkpoint, Inputs, NoCheckpoint, Probe, Variable
from xatlas.run.direct import measure_directly
from xatlas.sites import SITE_KINDS
from xatlas.store.checkpoint import FolderCheckpoint

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.model import HookedModel


@checked
def check_probe(probe_class: type[Probe], model: HookedModel | None = None) -> None:
    """Check a probe: what it declares, and what it returns for a small model and suite.

    It must return what it declared, with reasons for NaN; leave model, tokenizer and torch as they were, weights too
    unless it mutates; and return the same numbers for the same seed, with a checkpoint, and when it is resumed from
    one that holds a part of a run.

    Parameters
    ----------
    probe_class : type of Probe
        The probe.
    model : HookedModel, optional
        What it is tried on; by default a small random model of a registered architecture that has the sites.

    Raises
    ------
    XatlasError
        At the first violation, in one line.
    """
    _check_declared_probe(probe_class)
    probe = probe_class()
    for needed in probe.requires:
        check_requirement(needed, f"probe '{probe.name}'")
    model = model or model_with(probe.sites)
    dataset = measure_small(probe, model)
    if probe.replicate is not None and all(probe.replicate not in v.dims for v in probe.variables.values()):
        raise XatlasError(
            f"probe '{probe.name}' has no variable with the dimension '{probe.replicate}': keep values per "
            "replicate, or declare replicate = None."
        )
    if probe.replicate == "prompt" and not probe.mutates:
        _check_repeated(probe_class, model, dataset)


class _Watched(FolderCheckpoint):
    """Remembers what was saved, in order, and what was found; loses what it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.saved: list[str] = []
        self.found: list[str] = []
        self.lost: list[str] = []

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        arrays = None if key in self.lost else super().load(key)
        self.found += [] if arrays is None else [key]
        return arrays

    def save(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        super().save(key, arrays)
        self.saved.append(key)


def _check_repeated(probe_class: type[Probe], model: HookedModel, first: xr.Dataset) -> None:
    """Measure again with an empty checkpoint, and once more as a killed run goes on: with half of its parts."""

    def check(checkpoint: Checkpoint, told: str) -> None:
        again = measure_small(probe_class(), model, checkpoint)
        for name in probe_class.variables:
            if not _same(first[name].values, again[name].values):
                raise XatlasError(f"probe '{probe_class.name}' gives other numbers for '{name}' {told}.")

    with tempfile.TemporaryDirectory() as folder:
        kept = _Watched(Path(folder))
        try:
            check(kept, "with the same seed")
        except XatlasError:
            if not kept.found:
                raise
            check(NoCheckpoint(), "with the same seed")
            told = f"with a checkpoint: two of its parts have one key ({kept.found[0]})"
            raise XatlasError(f"probe '{probe_class.name}' gives other numbers {told}.") from None
        kept.lost = kept.saved[1::2]
        if kept.saved:
            check(kept, "when it is resumed from a checkpoint: its parts depend on what was done before them")


def _same(one: Any, other: Any) -> bool:
    if one.dtype.kind == "f":
        return bool(np.allclose(one, other, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True))
    return bool((one == other).all())


def measure_small(probe: Probe, model: HookedModel, checkpoint: Checkpoint | None = None) -> xr.Dataset:
    """Return what a probe gives for the small suite, with its requirements measured first.

    Raises
    ------
    XatlasError
        As :func:`xatlas.run.direct.measure_directly`.
    """
    inputs = Inputs(reference=small_reference(), checkpoint=checkpoint or NoCheckpoint())
    return measure_directly(probe, model, answered_suite(model), inputs)


def _check_declared_probe(cls: type[Probe]) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Probe)):
        raise XatlasError(f"check_probe takes a subclass of Probe, not {cls!r}.")
    check_abstract(cls)
    check_name(cls, "probe")
    told = (cls.__doc__ or "").lower()
    for word in ("unit", "control", "source"):
        if word not in told:
            raise XatlasError(
                f"the docstring of probe '{cls.name}' does not say its {word}: it gives definition, unit, control "
                "and source, for xatlas explain prints it."
            )
    declared = getattr(cls, "variables", None)
    if not isinstance(declared, Mapping) or not declared:
        raise XatlasError(f"probe '{cls.name}' declares no variables.")
    for name, variable in declared.items():
        if not isinstance(variable, Variable) or not variable.units or not variable.long_name:
            raise XatlasError(f"variable '{name}' of probe '{cls.name}' must be Variable(dims, units, long_name).")
        if len(set(variable.dims)) != len(variable.dims):
            raise XatlasError(f"variable '{name}' of probe '{cls.name}' has a dimension twice: {variable.dims}.")
    kinds = {*SITE_KINDS, *(kind for adapter in manager.adapters().values() for kind in adapter.extra_kinds)}
    for kind in cls.sites:
        if kind not in kinds:
            raise unknown(f"site kind of probe '{cls.name}'", kind, kinds)
    try:
        json.dumps(cls().canonical_parameters())
    except TypeError as error:
        raise XatlasError(f"the default parameters of probe '{cls.name}' don't fit their types: {error}.") from None
