"""What a probe returns, checked against what it declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xatlas.errors import XatlasError
from xatlas.schema.labels import notes

if TYPE_CHECKING:
    from xatlas.probe import Probe, Variable

#: Coordinates that a dimension carries besides its own labels.
COMPANIONS: dict[str, tuple[str, ...]] = {
    "prompt": ("family", "template", "n_tokens", "appended"),
    "layer": ("depth", "operator_type"),
    "head": ("kv_group",),
}

#: Dimensions that may stand without labels of their own.
_UNLABELLED = frozenset({"kv_group"})


def validate(dataset: Any, probe: Probe | type[Probe]) -> None:
    """Check a dataset against the contract of the probe that returned it.

    Parameters
    ----------
    dataset : Dataset
        What ``probe.measure`` returned.
    probe : Probe
        Declares the variables.

    Raises
    ------
    XatlasError
        Names the probe, the variable or coordinate and what is off.
    """
    if not isinstance(dataset, xr.Dataset):
        raise _off(probe, f"it returned {type(dataset).__name__}, not an xarray.Dataset")
    missing = sorted(set(probe.variables) - {str(name) for name in dataset.data_vars})
    extra = sorted({str(name) for name in dataset.data_vars} - set(probe.variables))
    if missing or extra:
        raise _off(probe, "; ".join(_lists(("missing variables", missing), ("undeclared variables", extra))))
    for declared, variable in probe.variables.items():
        _check_variable(dataset[declared], variable, probe)
    for dim in map(str, dataset.dims):
        _check_dimension(dataset, dim, probe)
    _check_attributes(dataset, probe)
    _check_nan(dataset, probe)


def _check_variable(array: xr.DataArray, variable: Variable, probe: Probe | type[Probe]) -> None:
    dims = tuple(map(str, array.dims))
    if dims != tuple(variable.dims):
        missing = [dim for dim in variable.dims if dim not in dims]
        extra = [dim for dim in dims if dim not in variable.dims]
        what = "; ".join(_lists(("missing", missing), ("not declared", extra))) or "the order is off"
        has, declared = ", ".join(dims), ", ".join(variable.dims)
        raise _off(probe, f"'{array.name}' has dimensions ({has}), declared ({declared}): {what}")
    if not _storable(array):
        hint = "use float32, float64, integers or text"
        raise _off(probe, f"'{array.name}' has dtype {array.dtype}; {hint}")
    units = array.attrs.get("units")
    if units != variable.units:
        raise _off(probe, f"'{array.name}' has units {units!r}, declared {variable.units!r}")
    if not array.attrs.get("long_name"):
        raise _off(probe, f"'{array.name}' has no long_name")


def _check_dimension(dataset: xr.Dataset, dim: str, probe: Probe | type[Probe]) -> None:
    if dim not in dataset.coords or dataset[dim].dims != (dim,):
        if dim not in _UNLABELLED:
            raise _off(probe, f"dimension '{dim}' has no coordinate of its own")
    elif not dataset.indexes[dim].is_unique:
        twice = dataset.indexes[dim][dataset.indexes[dim].duplicated()][0]
        raise _off(probe, f"dimension '{dim}' has the label {str(twice)!r} twice")
    for companion in COMPANIONS.get(dim, ()):
        if companion not in dataset.coords or dataset[companion].dims != (dim,):
            raise _off(probe, f"dimension '{dim}' lacks its coordinate '{companion}'")
    if dataset.sizes[dim] == 0 and dim == "prompt":
        raise _off(probe, "no prompt is left")


def _check_attributes(dataset: xr.Dataset, probe: Probe | type[Probe]) -> None:
    holders: list[tuple[str, Mapping[Any, Any]]] = [("the dataset", dataset.attrs)]
    holders += [(f"'{name}'", array.attrs) for name, array in dataset.variables.items()]
    for owner, attributes in holders:
        for name, value in attributes.items():
            if isinstance(value, bool | np.bool_) or not isinstance(value, str | int | float | np.number | np.ndarray):
                kind = type(value).__name__
                hint = "netCDF takes text and numbers (use JSON)"
                raise _off(probe, f"attribute '{name}' of {owner} is {kind}; {hint}")
    for name, array in dataset.coords.items():
        if not _storable(array):
            raise _off(probe, f"coordinate '{name}' has dtype {array.dtype}; use numbers or text")


def _check_nan(dataset: xr.Dataset, probe: Probe | type[Probe]) -> None:
    reasons = notes(dataset, "absent") or notes(dataset, "dropped")
    for name, array in dataset.data_vars.items():
        if array.dtype.kind == "f" and not reasons and bool(np.isnan(array.values).any()):
            raise _off(probe, f"'{name}' holds NaN without a reason; give one in 'absent' or 'dropped'")


def _storable(array: xr.DataArray) -> bool:
    """Tell whether netCDF keeps the array as it is: float16 and objects other than text fail there."""
    if array.dtype.kind == "O":
        return all(isinstance(item, str) for item in array.values.ravel())
    return array.dtype.kind in "iubU" or (array.dtype.kind == "f" and array.dtype.itemsize in (4, 8))


def _lists(*parts: tuple[str, list[str]]) -> list[str]:
    return [f"{title}: {', '.join(items)}" for title, items in parts if items]


def _off(probe: Probe | type[Probe], what: str) -> XatlasError:
    return XatlasError(f"probe '{probe.name}' returned a dataset off its contract: {what}.")
