"""What every probe must keep to: what it declares, and what it returns for a small model."""

from __future__ import annotations

import functools
import inspect
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import numpy as np

from xatlas import manager
from xatlas.contracts.probe import Checkpoint, Inputs, NoCheckpoint, Probe, Requirement, Variable
from xatlas.errors import XatlasError, unknown
from xatlas.guard import calling
from xatlas.results.store import FolderCheckpoint
from xatlas.run.runner import measure_directly
from xatlas.testing import answered_suite, model_with, small_reference
from xatlas.vocabulary import SITE_KINDS

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.model import HookedModel


#: Numerical agreement in float32: nats, and relative.
ABSOLUTE, RELATIVE = 1e-4, 1e-5
_NAME = re.compile(r"[a-z][a-z0-9_]*")

P = ParamSpec("P")


def checked(check: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Let a check tell whatever a plugin raises, ``sys.exit`` too, as a violation in one line."""

    @functools.wraps(check)
    def wrapper(plugin: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
        with calling(plugin if isinstance(plugin, type) else type(plugin)):
            check(plugin, *args, **kwargs)

    return wrapper


def check_abstract(cls: type[Any]) -> None:
    """Refuse a class that lacks methods of its contract.

    Raises
    ------
    XatlasError
        Names the methods.
    """
    left = sorted(getattr(cls, "__abstractmethods__", ()))
    if inspect.isabstract(cls):
        raise XatlasError(f"{cls.__name__} lacks {', '.join(left)}.")


def check_name(cls: Any, kind: str) -> None:
    """Refuse a name that can't be typed as one word, or a version that is no whole number from 1.

    Raises
    ------
    XatlasError
        Shows what was found, and what it takes.
    """
    name, version = getattr(cls, "name", None), getattr(cls, "version", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise XatlasError(f"{cls.__name__}.name is {name!r}: a {kind}'s name is lower-case words joined by '_'.")
    if not isinstance(version, int) or version < 1:
        raise XatlasError(f"{cls.__name__}.version is {version!r}: a whole number from 1, raised when numbers change.")


def check_requirement(needed: Any, who: str) -> None:
    """Refuse a required probe that does not exist or does not take the parameters.

    Raises
    ------
    XatlasError
        Names who requires it, and what is off.
    """
    if not isinstance(needed, Requirement):
        raise XatlasError(f"{who} requires {needed!r}: it must be a Requirement.")
    try:
        manager.pick("probe", needed.probe, manager.probes())(**needed.parameters)
    except XatlasError as error:
        raise XatlasError(f"{who} requires what can't be measured: {error}") from None


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
        As :func:`xatlas.run.runner.measure_directly`.
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
