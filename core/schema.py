"""Dimensions, coordinates and attributes of datasets: labelling and checking them. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xatlas.errors import XatlasError

if TYPE_CHECKING:
    from xatlas.probe import Probe, Variable
    from xatlas.prompts import TokenSuite
    from xatlas.suites import Prompt

CONVENTIONS = "CF-1.11"

#: Coordinates that a dimension carries besides its own labels.
COMPANIONS: dict[str, tuple[str, ...]] = {
    "prompt": ("family", "template", "n_tokens", "appended"),
    "layer": ("depth", "operator_type"),
    "head": ("kv_group",),
}

#: Name → (long name, unit) of the coordinates that every probe shares.
COORDINATES: dict[str, tuple[str, str]] = {
    "prompt": ("prompt id", "1"),
    "family": ("family of the prompt", "1"),
    "template": ("template that the prompt was made from", "1"),
    "n_tokens": ("tokens that the model was run on, position 0 included", "token"),
    "appended": ("tokens of the target that were appended to the text", "token"),
    "layer": ("decoder layer, from 0", "1"),
    "depth": ("layer / (number of layers - 1)", "1"),
    "operator_type": ("kind of the layer's operator", "1"),
    "head": ("query head", "1"),
    "kv_group": ("key/value group that the query head reads", "1"),
    "component": ("part of the layer that was changed", "1"),
    "ablation": ("what the activations were replaced by", "1"),
    "scope": ("positions at which KL is read", "1"),
    "position": ("class of positions", "1"),
    "site": ("kind of site", "1"),
}

#: Attributes of a dataset that hold JSON: why values are NaN, prompts left out, numerical noise.
NOTES = ("absent", "dropped", "noise_floor")

#: Dimensions that may stand without labels of their own.
_UNLABELLED = frozenset({"kv_group"})


def prompt_coords(prompts: Iterable[Prompt], n_tokens: Sequence[int], appended: Sequence[int]) -> dict[str, Any]:
    """Return the coordinates of the ``prompt`` dimension.

    Parameters
    ----------
    prompts : iterable of Prompt
        Those measured, in order; a prompt without a template counts as its own.
    n_tokens, appended : sequence of int
        Tokens run per prompt, and how many of them belong to the target.
    """
    kept = list(prompts)
    return {
        "prompt": [prompt.id for prompt in kept],
        "family": ("prompt", [prompt.family for prompt in kept]),
        "template": ("prompt", [prompt.template or prompt.id for prompt in kept]),
        "n_tokens": ("prompt", np.asarray(n_tokens, dtype=np.int64)),
        "appended": ("prompt", np.asarray(appended, dtype=np.int64)),
    }


def suite_coords(tokens: TokenSuite) -> dict[str, Any]:
    """Return the coordinates of the ``prompt`` dimension for a suite as a model read it."""
    kept = tokens.prompts
    return prompt_coords([p.prompt for p in kept], [p.n_tokens for p in kept], [p.appended for p in kept])


def layer_coords(operator_types: Sequence[str]) -> dict[str, Any]:
    """Return the coordinates of the ``layer`` dimension; depth is 0 for a model of one layer."""
    layers = np.arange(len(operator_types))
    return {
        "layer": layers,
        "depth": ("layer", layers / max(len(operator_types) - 1, 1)),
        "operator_type": ("layer", list(operator_types)),
    }


def head_coords(n_heads: int, n_kv_heads: int) -> dict[str, Any]:
    """Return the coordinates of the ``head`` dimension; consecutive heads share a key/value group."""
    heads = np.arange(n_heads)
    return {"head": heads, "kv_group": ("head", heads // max(n_heads // max(n_kv_heads, 1), 1))}


def label(
    variables: Mapping[str, Variable],
    arrays: Mapping[str, Any],
    coords: Mapping[str, Any],
    *,
    absent: Mapping[str, str] | None = None,
    dropped: Mapping[str, str] | None = None,
    noise_floor: Mapping[str, float] | None = None,
) -> xr.Dataset:
    """Make a dataset of plain arrays: dimensions, units and names as the probe declares them.

    Parameters
    ----------
    variables : mapping of str to Variable
        The probe's declaration.
    arrays : mapping of str to array
        One array for each variable, dimensions in the declared order.
    coords : mapping
        As :class:`xarray.Dataset` takes them; see :func:`prompt_coords`, :func:`layer_coords` and
        :func:`head_coords`.
    absent : mapping of str to str, optional
        Why values are NaN: what is absent → reason.
    dropped : mapping of str to str, optional
        Prompt id → why it was left out.
    noise_floor : mapping of str to float, optional
        Variable → size of a difference that is mere rounding, in its unit.

    Raises
    ------
    XatlasError
        An array is missing, undeclared, or has another number of dimensions than declared.
    """
    if set(arrays) != set(variables):
        odd = sorted(set(arrays) ^ set(variables))
        raise XatlasError(f"declared and given variables differ: {', '.join(odd)}.")
    data = {}
    for name, variable in variables.items():
        values = np.asarray(arrays[name])
        if values.ndim != len(variable.dims):
            wanted = ", ".join(variable.dims)
            raise XatlasError(f"'{name}' has shape {values.shape} but is declared ({wanted}).")
        data[name] = (variable.dims, values, {"units": variable.units, "long_name": variable.long_name})
    try:
        dataset = xr.Dataset(data, coords=dict(coords))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise XatlasError(f"arrays and coordinates do not fit together: {reason}.") from error
    for called, coordinate in dataset.coords.items():
        long_name, units = COORDINATES.get(str(called), (str(called).replace("_", " "), "1"))
        coordinate.attrs.setdefault("long_name", long_name)
        coordinate.attrs.setdefault("units", units)
    notes = zip(NOTES, (absent, dropped, noise_floor), strict=True)
    dataset.attrs = {name: json.dumps(note or {}, sort_keys=True) for name, note in notes}
    dataset.attrs["Conventions"] = CONVENTIONS
    return dataset


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


def notes(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    """Return the JSON attribute ``absent``, ``dropped`` or ``noise_floor``; empty where there is none."""
    try:
        value = json.loads(dataset.attrs.get(name) or "{}")
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _storable(array: xr.DataArray) -> bool:
    """Tell whether netCDF keeps the array as it is: float16 and objects other than text fail there."""
    if array.dtype.kind == "O":
        return all(isinstance(item, str) for item in array.values.ravel())
    return array.dtype.kind in "iubU" or (array.dtype.kind == "f" and array.dtype.itemsize in (4, 8))


def _lists(*parts: tuple[str, list[str]]) -> list[str]:
    return [f"{title}: {', '.join(items)}" for title, items in parts if items]


def _off(probe: Probe | type[Probe], what: str) -> XatlasError:
    return XatlasError(f"probe '{probe.name}' returned a dataset off its contract: {what}.")
