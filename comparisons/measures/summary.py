"""What the comparisons share: assembling datasets, and the words of tables and findings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.measures.readings import ABLATION, SCOPE, Reading
from xatlas.contracts.comparison import Comparison
from xatlas.stats import DRAWS, Floats

if TYPE_CHECKING:
    import xarray as xr

#: Where curves of models with different layer counts are compared.
DEPTHS = np.linspace(0, 1, 20)


def stack(arrays: Sequence[Floats]) -> Floats:
    """Return ``(model, layer, …)``: every array padded with NaN along all of its axes to the largest."""
    shape = np.max([array.shape for array in arrays], axis=0)
    stacked = np.full((len(arrays), *shape), np.nan)
    for row, array in zip(stacked, arrays, strict=True):
        row[tuple(slice(size) for size in array.shape)] = array
    return stacked


def assemble(
    comparison: Comparison,
    found: Sequence[Sequence[Reading]],
    variables: Mapping[str, tuple[Any, ...]],
    coords: Mapping[str, Any],
    absent: Mapping[str, str],
    measured: str = "",
) -> xr.Dataset:
    """Make the dataset of a comparison.

    Parameters
    ----------
    found : per model its readings, the main one first
    variables : name → (dims, values, units, long name)
    coords : further coordinates, as xarray takes them
    absent : what is NaN → why
    measured : what was done and read, where it is not the usual ablation

    Returns
    -------
    Dataset
        With coordinates ``model``, ``layer``, ``depth`` and ``operator_type (model, layer)``, and the
        attributes ``suite`` (a sentence: what the numbers rest on), ``absent`` and ``xatlas`` (JSON).
    """
    import xarray as xr

    mains = [readings[0] for readings in found]
    layers = max(main.dataset.sizes["layer"] for main in mains)
    types = np.full((len(mains), layers), "", dtype=object)
    for row, main in zip(types, mains, strict=True):
        row[: main.dataset.sizes["layer"]] = main.dataset["operator_type"].values
    depth = stack([np.asarray(main.dataset["depth"].values, dtype=float) for main in mains])
    shared = {
        "model": [main.model for main in mains],
        "layer": np.arange(layers),
        "depth": (("model", "layer"), depth, {"units": "1", "long_name": "layer / (number of layers - 1)"}),
        "operator_type": (("model", "layer"), types, {"units": "1", "long_name": "kind of operator"}),
    }
    data = {
        name: (dims, values, {"units": units, "long_name": long_name})
        for name, (dims, values, units, long_name) in variables.items()
    }
    about = {
        "comparison": {"name": comparison.name, "version": comparison.version, "draws": DRAWS},
        "inputs": {main.model: json.loads(main.dataset.attrs.get("xatlas", "{}")) for main in mains},
    }
    attrs = {
        "title": comparison.summary,
        "suite": footer(mains, measured),
        "absent": json.dumps(dict(absent), sort_keys=True),
        "xatlas": json.dumps(about, sort_keys=True),
        "Conventions": "CF-1.11",
    }
    return xr.Dataset(data, coords={**shared, **coords}, attrs=attrs)


def footer(mains: Sequence[Reading], measured: str = "") -> str:
    """Say what numbers rest on: suites, families, prompts, what was done and read, position 0."""
    groups: dict[tuple[str, int, str], list[int]] = {}
    for main in mains:
        key = (main.suite, len(main.clusters.families), main.bos)
        groups.setdefault(key, []).append(main.dataset.sizes["prompt"])
    parts = []
    for (suite, families, bos), sizes in groups.items():
        count = f"{sizes[0]}" if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
        of = "1 family" if families == 1 else f"{families} families"
        parts.append(f"suite {suite} ({of}, {count} prompts), bos {bos}")
    measured = measured or f"ablation {ABLATION}, KL at the {SCOPE} position"
    return f"{'; '.join(parts)}; {measured}; 95 % intervals over templates"


def with_interval(
    name: str, dims: tuple[str, ...], point: Any, ends: tuple[Any, Any], units: str, long_name: str
) -> dict[str, tuple[Any, ...]]:
    """Return ``name``, ``name_low`` and ``name_high`` as :func:`assemble` takes them."""
    return {
        name: (dims, point, units, long_name),
        f"{name}_low": (dims, ends[0], units, "lower end of its 95 % interval"),
        f"{name}_high": (dims, ends[1], units, "upper end of its 95 % interval"),
    }


def triple(dataset: xr.Dataset, name: str) -> tuple[float, float, float]:
    """Return (value, low, high) of a variable that has been narrowed down to one number."""
    value, low, high = (float(dataset[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return value, low, high


def chance(value: float) -> str:
    """Return a probability in two digits after the point; ``–`` for none."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def number(value: float) -> str:
    """Return a number in three digits, a whole one without any after the point; ``–`` for none."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 1000 or value == round(value):
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".")


def interval(value: float, low: float, high: float) -> str:
    """Return ``0.530 [0.400, 0.660]``; ``–`` for none."""
    if math.isnan(value):
        return "–"
    return f"{number(value)} [{number(low)}, {number(high)}]"


def sensitivity_rows(dataset: xr.Dataset) -> list[dict[str, str | float]]:
    """Return one row per number, model and setting: value and interval, or 'not run' and the command."""
    rows: list[dict[str, str | float]] = []
    for name in [str(name) for name in dataset.data_vars if str(name).startswith("sensitivity")]:
        if f"{name}_low" not in dataset:
            continue
        units, words = (dataset[name].attrs[key] for key in ("units", "long_name"))
        ends = [dataset[f"{name}{end}"].values for end in ("", "_low", "_high")]
        for i, model in enumerate(map(str, dataset["model"].values)):
            for j, setting in enumerate(map(str, dataset["setting"].values)):
                row: dict[str, str | float] = {"number": words, "model": model, "setting": setting}
                if dataset["sensitivity_status"].values[i, j] == "ok":
                    value, low, high = (float(each[i, j]) for each in ends)
                    row |= {"value": value, "low": low, "high": high, "units": units, "command": ""}
                else:
                    command = str(dataset["sensitivity_command"].values[i, j])
                    row |= {"value": "not run", "low": "", "high": "", "units": units, "command": command}
                rows.append(row)
    return rows


def sensitivity_note(dataset: xr.Dataset, model: int, same: Sequence[bool], prefix: str = "sensitivity") -> str:
    """Say in a table's cell how many of the measured settings agree with the main one, layer 0 in or out.

    Settings that gave no number don't count.
    """
    ran = dataset["sensitivity_status"].values[model] == "ok"
    told = ran & np.isfinite(dataset[prefix].values[model])
    whole = dataset["setting_layer0"].values == 1
    agree = np.asarray(same, dtype=bool)
    parts = [f"{(agree & told & whole)[1:].sum()} of {(told & whole)[1:].sum()} other settings agree"]
    parts.append(f"{(agree & told & ~whole).sum()} of {(told & ~whole).sum()} without layer 0")
    return ", ".join([*parts, *([f"{(~ran).sum()} not run"] if not ran.all() else [])])


def halves(values: Floats, start: int = 0) -> tuple[Floats, Floats]:
    """Return the means over the first and the second half of layers ``(…, layer)`` from ``start`` on."""
    layers = values[..., start:]
    half = layers.shape[-1] // 2
    if half == 0:
        return np.full(values.shape[:-1], np.nan), np.full(values.shape[:-1], np.nan)
    return layers[..., :half].mean(-1), layers[..., -half:].mean(-1)
