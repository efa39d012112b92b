"""What a result must hold: dimensions, labels, reasons for what is absent; and the validation of datasets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xatlas.errors import XatlasError

if TYPE_CHECKING:
    from xatlas.contracts.probe import Probe, Variable
    from xatlas.model import HookedModel
    from xatlas.prompts.reader import TokenSuite
    from xatlas.suites import Prompt, Suite


CONVENTIONS = "CF-1.11"

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
        Why values are NaN: what is absent, as :func:`xatlas.schema.validate` says and :func:`cells` writes it → reason.
    dropped : mapping of str to str, optional
        Prompt id → why it was left out.
    noise_floor : mapping of str to float, optional
        Variable → size of a difference that is mere rounding, in its unit.

    Returns
    -------
    Dataset
        As :func:`xatlas.schema.validate` wants it, unless the coordinates lack something.

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
    kept = zip(NOTES, (absent, dropped, noise_floor), strict=True)
    dataset.attrs = {name: json.dumps(note or {}, sort_keys=True) for name, note in kept}
    dataset.attrs["Conventions"] = CONVENTIONS
    return dataset


def cells(**labels: Iterable[object]) -> str:
    """Return a key of ``absent`` for the cells that have one of the labels in each dimension named.

    ``cells(layer=[0, 2], head=[3])`` is ``"layer=0,2 & head=3"``.
    """
    return " & ".join(f"{name}={','.join(map(str, given))}" for name, given in labels.items())


def notes(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    """Return the JSON attribute ``absent``, ``dropped`` or ``noise_floor``; empty where there is none."""
    try:
        value = json.loads(dataset.attrs.get(name) or "{}")
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


#: Coordinates that a dimension carries besides its own labels.
COMPANIONS: dict[str, tuple[str, ...]] = {
    "prompt": ("family", "template", "n_tokens", "appended"),
    "layer": ("depth", "operator_type"),
    "head": ("kv_group",),
}

#: Dimensions that may stand without labels of their own.
_UNLABELLED = frozenset({"kv_group"})


def validate(
    dataset: Any, probe: Probe | type[Probe], model: HookedModel | None = None, suite: Suite | None = None
) -> None:
    """Check a dataset against the contract of the probe that returned it.

    No value is infinite. NaN has a reason that fits: it stands at a prompt named in ``dropped``, or where a key of
    ``absent`` says. Such a key names a variable or a dimension, and then all of it; labels of one, as
    ``component mlp`` or just ``mlp``; or labels of several, as ``layer 0,2 & head 3``, and then the cells that
    have one of each.

    Parameters
    ----------
    dataset : Dataset
        What ``probe.measure`` returned.
    probe : Probe
        Declares the variables.
    model : HookedModel, optional
        What was measured: labels of layers, operator types and heads must be its own.
    suite : Suite, optional
        What was measured on: prompts, families and templates must be its own.

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
    _check_numbers(dataset, probe)
    if suite is not None and getattr(probe, "measures_on", "suite") == "suite":
        _check_prompts(dataset, suite, probe)
    if model is not None:
        _check_model(dataset, model, probe)


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


def _check_numbers(dataset: xr.Dataset, probe: Probe | type[Probe]) -> None:
    for name, array in dataset.variables.items():
        if array.dtype.kind == "f" and np.isinf(array.values).any():
            raise _off(probe, f"'{name}' holds infinite values; what can't be measured is NaN with a reason")
        if array.dtype.kind == "f" and name in dataset.coords and np.isnan(array.values).any():
            raise _off(probe, f"coordinate '{name}' holds NaN")
    for dim in ("layer", "head"):
        if dim in dataset.indexes and (dataset[dim].dtype.kind not in "iu" or dataset[dim].values.min(initial=0) < 0):
            raise _off(probe, f"labels of '{dim}' must be whole numbers from 0")
    reasons, dropped = notes(dataset, "absent"), list(notes(dataset, "dropped"))
    for name, values in dataset.data_vars.items():
        bare = values.isnull() if values.dtype.kind == "f" else xr.DataArray(False)
        if bare.any() and "prompt" in values.dims:
            bare = bare & ~values["prompt"].isin(dropped)
        for key in reasons if bare.any() else ():
            bare = bare & ~_named(key, values, dataset)
        if bare.any():
            cell = dict(zip(bare.dims, np.argwhere(bare.values)[0], strict=True))
            where = ", ".join(f"{dim} {_labels(values, str(dim))[at]}" for dim, at in cell.items())
            raise _off(
                probe,
                f"'{name}' holds NaN without a reason that names it, at {where or 'its only value'}; give one in "
                "'absent' under a variable, a dimension or labels, or in 'dropped' under the prompt",
            )


def _named(key: str, values: xr.DataArray, dataset: xr.Dataset) -> xr.DataArray:
    """Return which cells of a variable a key of ``absent`` names."""
    names = [*map(str, values.dims), *(str(name) for name, each in values.coords.items() if each.ndim == 1)]
    labels = {name: _labels(values, name) for name in names}
    first, *rest = re.split(r"[=\s]+", key, maxsplit=1)
    whole = [key] if any(key in held for held in labels.values()) else []
    whole = [first, *rest] if rest and rest[0] in labels.get(first, ()) else whole
    named, current = False, ""
    chosen: dict[tuple[str, ...], set[str]] = {}
    for word in whole or re.split(r"[=&|,\s]+", key):
        label = any(word in held for held in labels.values())
        spelt = (word,) if label else (word, word.removesuffix("s"))
        name = next((each for each in spelt if each in dataset.dims or each in labels), "")
        if name and name not in labels:
            return xr.DataArray(False)  # another variable's dimension
        if name:
            named, current = True, name
            continue
        if word in dataset.data_vars and word != values.name:
            return xr.DataArray(False)
        holders = tuple(each for each in names if word in labels[each] and not word.lstrip("-").isdigit())
        holders = (current,) if word in labels.get(current, ()) else holders
        if holders:
            chosen.setdefault(holders, set()).add(word)
        named = named or bool(holders) or word == values.name
    cells = xr.DataArray(named)
    for holders, wanted in chosen.items():
        found = xr.DataArray(False)
        for each in holders:
            dim = each if each in values.dims else str(values[each].dims[0])
            found = found | xr.DataArray([label in wanted for label in labels[each]], dims=dim)
        cells = cells & found
    return cells


def _labels(values: xr.DataArray, name: str) -> list[str]:
    """Return a coordinate's labels as text; places for a dimension without any."""
    own = name in values.coords and (name not in values.dims or values[name].dims == (name,))
    return [str(each) for each in (values[name].values if own else range(values.sizes[name]))]


def _check_prompts(dataset: xr.Dataset, suite: Suite, probe: Probe | type[Probe]) -> None:
    known = {prompt.id: prompt for prompt in suite}
    stray = [name for name in notes(dataset, "dropped") if name not in known]
    if "prompt" in dataset.dims:
        stray += [str(name) for name in dataset["prompt"].values if str(name) not in known]
    if stray:
        raise _off(probe, f"prompt '{stray[0]}' is none of the suite '{suite.name}'")
    for name in dataset["prompt"].values if "prompt" in dataset.dims else ():
        prompt, cell = known[str(name)], dataset.sel(prompt=name)
        for what, right in (("family", prompt.family), ("template", prompt.template or prompt.id)):
            if str(cell[what].values) != right:
                raise _off(probe, f"the {what} of prompt '{name}' is '{right}', not '{cell[what].values}'")


def _check_model(dataset: xr.Dataset, model: HookedModel, probe: Probe | type[Probe]) -> None:
    n, types = model.n_layers, model.operator_types
    rows = (
        zip(*(dataset[name].values for name in ("layer", "depth", "operator_type")), strict=True)
        if "layer" in dataset.dims
        else ()
    )
    for layer, depth, kind in rows:
        if layer >= n:
            raise _off(probe, f"layer {layer} is none of the model's, 0 to {n - 1}")
        if abs(depth - layer / max(n - 1, 1)) > 1e-6:
            raise _off(probe, f"the depth of layer {layer} of {n} is {layer / max(n - 1, 1):.6g}, not {depth:.6g}")
        if kind != types[layer]:
            raise _off(probe, f"the operator of layer {layer} is '{types[layer]}', not '{kind}'")
    layouts = [layout for layout in model.head_layouts if layout is not None]
    if "head" not in dataset.dims or not layouts:
        return
    for head, group in zip(dataset["head"].values, dataset["kv_group"].values, strict=True):
        groups = {layout.kv_group(int(head)) for layout in layouts if head < layout.n_heads}
        if not groups:
            raise _off(probe, f"head {head} is none of the model's, 0 to {max(each.n_heads for each in layouts) - 1}")
        if group not in groups and not (group == -1 and len({each.n_heads // each.n_kv_heads for each in layouts}) > 1):
            raise _off(probe, f"the key/value group of head {head} is {min(groups)}, not {group}")


def _storable(array: xr.DataArray) -> bool:
    """Tell whether netCDF keeps the array as it is: float16 and objects other than text fail there."""
    if array.dtype.kind == "O":
        return all(isinstance(item, str) for item in array.values.ravel())
    return array.dtype.kind in "iubU" or (array.dtype.kind == "f" and array.dtype.itemsize in (4, 8))


def _lists(*parts: tuple[str, list[str]]) -> list[str]:
    return [f"{title}: {', '.join(items)}" for title, items in parts if items]


def _off(probe: Probe | type[Probe], what: str) -> XatlasError:
    return XatlasError(f"probe '{probe.name}' returned a dataset off its contract: {what}.")
