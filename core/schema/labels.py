"""Dimensions, coordinates and attributes: plain arrays become a dataset that says what it holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from xatlas.errors import XatlasError

if TYPE_CHECKING:
    from xatlas.probe import Variable
    from xatlas.prompts import TokenSuite
    from xatlas.suites import Prompt

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
