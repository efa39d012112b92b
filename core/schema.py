"""What a result must hold: dimensions, labels, reasons for what is absent; and the validation of datasets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain
from operator import or_
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xatlas.errors import XatlasError
from xatlas.text import printable

if TYPE_CHECKING:
    from xatlas.contracts.probe import Probe, Variable
    from xatlas.model import HookedModel
    from xatlas.prompts.reader import TokenSuite
    from xatlas.suites import Suite

CONVENTIONS = "CF-1.11"

#: Name → (long name, unit) of the coordinates that every probe shares.
COORDINATES: dict[str, tuple[str, str]] = {
    "prompt": ("prompt id", "1"),
    "family": ("family of the prompt", "1"),
    "template": ("template that the prompt was made from", "1"),
    "n_tokens": ("tokens that the model was run on, position 0 included", "token"),
    "appended": ("tokens of the target that were appended to the text", "token"),
    "text": ("text of the prompt", "1"),
    "target": ("right continuation; empty where the prompt has none", "1"),
    "layer": ("decoder layer, from 0", "1"),
    "depth": ("layer / (number of layers - 1)", "1"),
    "operator_type": ("kind of the layer's operator", "1"),
    "head": ("query head", "1"),
    "kv_group": ("key/value group that the query head reads", "1"),
    "component": ("part of the layer that was changed", "1"),
    "ablation": ("what the activations were replaced by", "1"),
    "scope": ("positions at which KL is read", "1"),
    "position": ("class of positions", "1"),
    "where": ("positions that were changed: the first alone, or all others", "1"),
    "draw": ("draw of the random direction", "1"),
    "site": ("kind of site", "1"),
}

#: Coordinates that a dimension carries besides its own labels.
COMPANIONS: dict[str, tuple[str, ...]] = {
    "prompt": ("family", "template", "n_tokens", "appended"),
    "layer": ("depth", "operator_type"),
    "head": ("kv_group",),
}

#: Dimensions that may stand without labels of their own.
_UNLABELLED = frozenset({"kv_group"})

#: Attributes of a dataset that hold JSON: why values are NaN, prompts left out, numerical noise.
NOTES = ("absent", "dropped", "noise_floor")


def suite_coords(tokens: TokenSuite) -> dict[str, Any]:
    """Return the coordinates of the ``prompt`` dimension for a suite as a model read it.

    A prompt without a template counts as its own; ``n_tokens`` were run, ``appended`` of which belong to the target.
    """
    read, prompts = tokens.prompts, [each.prompt for each in tokens.prompts]
    return {
        "prompt": [prompt.id for prompt in prompts],
        "family": ("prompt", [prompt.family for prompt in prompts]),
        "template": ("prompt", [prompt.template or prompt.id for prompt in prompts]),
        "n_tokens": ("prompt", np.array([each.n_tokens for each in read], dtype=np.int64)),
        "appended": ("prompt", np.array([each.appended for each in read], dtype=np.int64)),
        "text": ("prompt", [printable(prompt.text) for prompt in prompts]),
        "target": ("prompt", [printable(prompt.target or "") for prompt in prompts]),
    }


def layer_coords(operator_types: Sequence[str]) -> dict[str, Any]:
    """Return the coordinates of the ``layer`` dimension; depth is 0 for a model of one layer."""
    layers = np.arange(len(operator_types))
    return {
        "layer": layers,
        "depth": ("layer", layers / max(len(operator_types) - 1, 1)),
        "operator_type": ("layer", list(operator_types)),
    }


def label(
    variables: Mapping[str, Variable],
    arrays: Mapping[str, Any],
    coords: Mapping[str, Any],
    *,
    absent: Mapping[str, str] | None = None,
    dropped: Mapping[str, str] | None = None,
    noise_floor: Mapping[str, float] | None = None,
) -> xr.Dataset:
    """Make a dataset of arrays: dimensions, units and names as the probe declares them.

    Parameters
    ----------
    variables, arrays : mapping
        What the probe declares, and by the same names DataArrays with these dimensions in any order, or plain arrays
        in the declared order.
    coords : mapping
        As :class:`xarray.Dataset` takes them; see :func:`suite_coords` and :func:`layer_coords`.
    absent : mapping of str to str, optional
        Why values are NaN: what is absent, as :func:`xatlas.schema.validate` says and :func:`cells` writes it → reason.
    dropped : mapping of str to str, optional
        Prompt id → why it was left out.
    noise_floor : mapping of str to float, optional
        Variable → size of a difference that is mere rounding, in its unit.

    Raises
    ------
    XatlasError
        An array is missing, undeclared, or has other dimensions than declared.
    """
    if set(arrays) != set(variables):
        odd = sorted(set(arrays) ^ set(variables))
        raise XatlasError(f"declared and given variables differ: {', '.join(odd)}.")
    data = {}
    for name, variable in variables.items():
        given, dims = arrays[name], list(variable.dims)
        try:
            array = given if isinstance(given, xr.DataArray) else xr.DataArray(np.asarray(given), dims=dims)
            values = array.transpose(*dims).values
        except ValueError:
            has = f"dimensions {given.dims}" if isinstance(given, xr.DataArray) else f"shape {np.shape(given)}"
            raise XatlasError(f"'{name}' has {has} but is declared ({', '.join(dims)}).") from None
        data[name] = (dims, values, {"units": variable.units, "long_name": variable.long_name})
    try:
        dataset = xr.Dataset(data, coords=dict(coords))
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise XatlasError(f"arrays and coordinates do not fit together: {reason}.") from error
    for called, coordinate in dataset.coords.items():
        long_name, units = COORDINATES.get(str(called), (str(called).replace("_", " "), "1"))
        coordinate.attrs.setdefault("long_name", long_name)
        coordinate.attrs.setdefault("units", units)
    for name, note in zip(NOTES, (absent, dropped, noise_floor), strict=True):
        dataset.attrs[name] = json.dumps(note or {}, sort_keys=True)
    dataset.attrs["Conventions"] = CONVENTIONS
    return dataset


def cells(**labels: Iterable[object]) -> str:
    """Return a key of ``absent`` for the cells that have one of the labels in each dimension named.

    ``cells(layer=[0, 2], head=[3])`` is ``"layer=0,2 & head=3"``.
    """
    return " & ".join(f"{name}={','.join(map(str, given))}" for name, given in labels.items())


def notes(dataset: xr.Dataset, name: str) -> dict[str, Any]:
    """Return what a JSON attribute holds, as ``absent``, ``dropped`` or ``noise_floor``; empty where there is none."""
    try:
        value = json.loads(dataset.attrs.get(name) or "{}")
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


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
    dataset, probe : Dataset, Probe
        What ``probe.measure`` returned, and what declares its variables.
    model, suite : HookedModel, Suite, optional
        What was measured, and on what: layers, heads, operator types, prompts, families and templates are theirs.

    Raises
    ------
    XatlasError
        Names the probe, the variable or coordinate and what is off.
    """
    on_suite = getattr(probe, "measures_on", "suite") == "suite"
    checks = (
        _variable_problems(dataset, probe.variables),
        _dimension_problems(dataset),
        _value_problems(dataset),
        _reason_problems(dataset),
        _prompt_problems(dataset, suite) if suite is not None and on_suite else (),
        _model_problems(dataset, model) if model is not None else (),
    )
    for problem in chain.from_iterable(checks):  # none is looked for behind the first
        raise XatlasError(f"probe '{probe.name}' returned a dataset off its contract: {problem}.")


def _variable_problems(dataset: Any, variables: Mapping[str, Variable]) -> Iterator[str]:
    if not isinstance(dataset, xr.Dataset):
        yield f"it returned {type(dataset).__name__}, not an xarray.Dataset"
    missing, extra = sorted({*variables} - {*dataset.data_vars}), sorted({*map(str, dataset.data_vars)} - {*variables})
    if missing or extra:
        yield _listed(("missing variables", missing), ("undeclared variables", extra))
    for name, variable in variables.items():
        array = dataset[name]
        dims, units = tuple(map(str, array.dims)), array.attrs.get("units")
        if dims != tuple(variable.dims):
            missing = [dim for dim in variable.dims if dim not in dims]
            extra = [dim for dim in dims if dim not in variable.dims]
            what = _listed(("missing", missing), ("not declared", extra)) or "the order is off"
            yield f"'{name}' has dimensions ({', '.join(dims)}), declared ({', '.join(variable.dims)}): {what}"
        if not _storable(array):
            yield f"'{name}' has dtype {array.dtype}; use float32, float64, integers or text"
        if units != variable.units:
            yield f"'{name}' has units {units!r}, declared {variable.units!r}"
        if not array.attrs.get("long_name"):
            yield f"'{name}' has no long_name"


def _dimension_problems(dataset: xr.Dataset) -> Iterator[str]:
    for dim in map(str, dataset.dims):
        if dim not in dataset.indexes:
            if dim not in _UNLABELLED:
                yield f"dimension '{dim}' has no coordinate of its own"
        elif not dataset.indexes[dim].is_unique:
            twice = dataset.indexes[dim][dataset.indexes[dim].duplicated()][0]
            yield f"dimension '{dim}' has the label {str(twice)!r} twice"
        for companion in COMPANIONS.get(dim, ()):
            if companion not in dataset.coords or dataset[companion].dims != (dim,):
                yield f"dimension '{dim}' lacks its coordinate '{companion}'"
    if dataset.sizes.get("prompt") == 0:
        yield "no prompt is left"


def _value_problems(dataset: xr.Dataset) -> Iterator[str]:
    owners = {"the dataset": dataset.attrs} | {f"'{name}'": array.attrs for name, array in dataset.variables.items()}
    for owner, attributes in owners.items():
        for name, value in attributes.items():
            if isinstance(value, bool | np.bool_) or not isinstance(value, str | int | float | np.number | np.ndarray):
                kind = type(value).__name__
                yield f"attribute '{name}' of {owner} is {kind}; netCDF takes text and numbers (use JSON)"
    for name, array in dataset.coords.items():
        if not _storable(array):
            yield f"coordinate '{name}' has dtype {array.dtype}; use numbers or text"

    for name, array in dataset.variables.items():
        if array.dtype.kind == "f" and np.isinf(array.values).any():
            yield f"'{name}' holds infinite values; what can't be measured is NaN with a reason"
        if array.dtype.kind == "f" and name in dataset.coords and np.isnan(array.values).any():
            yield f"coordinate '{name}' holds NaN"
    for dim in ("layer", "head"):
        if dim in dataset.indexes and (dataset[dim].dtype.kind not in "iu" or dataset[dim].values.min(initial=0) < 0):
            yield f"labels of '{dim}' must be whole numbers from 0"


def _reason_problems(dataset: xr.Dataset) -> Iterator[str]:
    reasons, dropped = notes(dataset, "absent"), list(notes(dataset, "dropped"))
    for name, values in dataset.data_vars.items():
        bare = values.isnull() if values.dtype.kind == "f" else xr.DataArray(False)
        if bare.any() and "prompt" in values.dims:
            bare = bare & ~values["prompt"].isin(dropped)
        for key in reasons if bare.any() else ():
            bare = bare & ~_named(key, values, dataset)
        if bare.any():
            cell = zip(bare.dims, np.argwhere(bare.values)[0], strict=True)
            where = ", ".join(f"{dim} {_labels(values, str(dim)).values[at]}" for dim, at in cell)
            yield (
                f"'{name}' holds NaN without a reason that names it, at {where or 'its only value'}; give one in "
                "'absent' under a variable, a dimension or labels, or in 'dropped' under the prompt"
            )


def _named(key: str, values: xr.DataArray, dataset: xr.Dataset) -> xr.DataArray:
    """Return which cells of a variable a key of ``absent`` names: a list of names, labels, and words that say nothing.

    A label is one of the coordinate named before it; else, if it is no number, one of whatever coordinate has it.
    """
    texts = ("text", "target")  # what prompts say is no label
    held = (str(name) for name, each in values.coords.items() if each.ndim == 1 and name not in texts)
    own = [*map(str, values.dims), *held]
    labels = {name: _labels(values, name) for name in own}
    others = {*map(str, dataset.dims), *map(str, dataset.data_vars)} - {*own, str(values.name)}
    words = re.split(r"[=\s]+", key, maxsplit=1)
    if any(key in each for each in labels.values()):
        words = [key]
    elif words[-1] not in labels.get(words[0], ()):  # else one label, which may hold what separates words
        words = re.split(r"[=&|,\s]+", key)
    current, named = "", False
    chosen: dict[tuple[str, ...], list[str]] = {}
    for word in words:
        holders = tuple(name for name in own if word in labels[name])
        if not holders and word.removesuffix("s") in {*own, *others}:  # layers
            word = word.removesuffix("s")
        if word in others:
            return xr.DataArray(False)
        if word in own:
            current = word
        elif current in holders:
            chosen.setdefault((current,), []).append(word)
        elif holders and not word.lstrip("-").isdigit():
            chosen.setdefault(holders, []).append(word)
        named = named or word in (*own, values.name)
    found = xr.DataArray(named or bool(chosen))
    for holders, wanted in chosen.items():
        found = found & reduce(or_, (labels[name].isin(wanted) for name in holders))
    return found


def _labels(values: xr.DataArray, name: str) -> xr.DataArray:
    """Return a coordinate's labels as text; places for a dimension without any."""
    own = name in values.coords and (name not in values.dims or values[name].dims == (name,))
    return (values[name] if own else xr.DataArray(range(values.sizes[name]), dims=name)).astype(str)


def _prompt_problems(dataset: xr.Dataset, suite: Suite) -> Iterator[str]:
    known = {prompt.id: prompt for prompt in suite}
    measured = [str(name) for name in dataset["prompt"].values] if "prompt" in dataset.dims else []
    for name in (*notes(dataset, "dropped"), *measured):
        if name not in known:
            yield f"prompt '{name}' is none of the suite '{suite.name}'"
    for row, name in enumerate(measured):
        right = {"family": known[name].family, "template": known[name].template or name}
        for what in right:
            found = str(dataset[what].values[row])
            if found != right[what]:
                yield f"the {what} of prompt '{name}' is '{right[what]}', not '{found}'"


def _model_problems(dataset: xr.Dataset, model: HookedModel) -> Iterator[str]:
    n, types = model.n_layers, model.operator_types
    names = ("layer", "depth", "operator_type")
    for layer, depth, kind in zip(*(dataset[name].values for name in names if "layer" in dataset.dims), strict=True):
        if layer >= n:
            yield f"layer {layer} is none of the model's, 0 to {n - 1}"
        if abs(depth - layer / max(n - 1, 1)) > 1e-6:
            yield f"the depth of layer {layer} of {n} is {layer / max(n - 1, 1):.6g}, not {depth:.6g}"
        if kind != types[layer]:
            yield f"the operator of layer {layer} is '{types[layer]}', not '{kind}'"
    layouts = [layout for layout in model.head_layouts if layout is not None]
    uneven = len({each.n_heads // each.n_kv_heads for each in layouts}) > 1
    for head in dataset["head"].values if "head" in dataset.dims and layouts else ():
        group = dataset["kv_group"].sel(head=head).item()
        groups = {layout.kv_group(int(head)) for layout in layouts if head < layout.n_heads}
        if not groups:
            yield f"head {head} is none of the model's, 0 to {max(each.n_heads for each in layouts) - 1}"
        if group not in groups and not (group == -1 and uneven):
            yield f"the key/value group of head {head} is {min(groups)}, not {group}"


def _storable(array: xr.DataArray) -> bool:
    """Whether netCDF keeps the array as it is: float16 and objects other than text fail there."""
    if array.dtype.kind == "O":
        return all(isinstance(item, str) for item in array.values.ravel())
    return array.dtype.kind in "iubU" or (array.dtype.kind == "f" and array.dtype.itemsize in (4, 8))


def _listed(*parts: tuple[str, list[str]]) -> str:
    return "; ".join(f"{title}: {', '.join(items)}" for title, items in parts if items)
