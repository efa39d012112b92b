"""The figure of CKA: a layer × layer map for every model and every two, and the usual form on few tokens beside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import lettering, style
from xatlas.drawing import asked_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Font sizes of names, and of what stands in panels.
_NAMES, _SMALL = 8, 7
#: Narrowest panel that numbers are written into, in inches.
_NUMBERED = 0.85
_ABSENT = "#D9D9D9"
_BLOCK = "#E6550D"
_NULL: dict[str, Any] = {"marker": "x", "ls": "none", "ms": 4, "color": "#888888"}
_TESTED: dict[str, Any] = {"marker": "s", "ls": "none", "mfc": "none", "mec": _BLOCK, "mew": 1.5, "ms": 7}
_NONE: dict[str, Any] = {"marker": "s", "ls": "none", "color": _ABSENT, "ms": 7}


def draw(dataset: xr.Dataset) -> Figure:
    """Draw models against models: within on the diagonal, between below it, its number above; biased at the right."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    models = list(map(str, dataset["model"].values))
    palette, count = style.colours(models), len(models)
    with style.context():
        asked = asked_width.get()
        size = (asked - 1.7) / (count + 1) if asked else max(1.2, 2.9 - 0.3 * count)
        names = [lettering.fitted(f"layer of {model}", 0.75 * size, _NAMES, bold=True, lines=12) for model in models]
        width = max(6.4, (count + 1) * size + 2.0 + lettering.extra(names, _NAMES))
        made = style.figure(width, 1.3 + count * (size + 0.1), dataset.attrs["suite"])
        titles = [lettering.fitted(_title(dataset, model, size), size, _SMALL) for model in models]
        style.grow(
            made, lettering.extra(names, _NAMES) + sum(lettering.extra([title], _SMALL) + 0.1 for title in titles)
        )
        grid = made.subplots(count, count + 1, squeeze=False)
        for i, model in enumerate(models):
            _within(grid[i, i], dataset, model, size)
            own = _places(dataset, model, model)
            _map(grid[i, count], dataset["biased"].sel(model=model, **own), f"biased-{model}")
            grid[i, i].set_title(titles[i], fontsize=_SMALL, fontweight="normal")
            for j, other in enumerate(models[:i]):
                _between(grid[i, j], dataset, other, model, size)
                _number(grid[j, i], dataset, other, model, size)
        _edges(grid, dataset, models, names, palette, size)
        scale = ScalarMappable(Normalize(0, 1), "viridis")
        made.colorbar(scale, ax=grid, label="CKA", shrink=0.6, aspect=30)
        style.legend(made, _entries(list(grid.flat)))
    return made


def _entries(panels: Sequence[Axes]) -> list[tuple[str, dict[str, Any]]]:
    """Return the legend of what the panels show."""
    null = any(np.size(line.get_xdata()) for axes in panels for line in axes.lines)
    tested = any(axes.patches for axes in panels)
    absent = any(np.ma.is_masked(mesh.get_array()) for axes in panels for mesh in axes.collections)
    found = (
        (null, ("no more than 95 % of permuted prompts", _NULL)),
        (tested, ("block whose layers are tested", _TESTED)),
    )
    return [entry for there, entry in (*found, (absent, ("absent", _NONE))) if there]


def _title(dataset: xr.Dataset, model: str, size: float) -> str:
    """Say what was found within a model; no more than the mean where there is no room."""
    within, locked = (style.finding(dataset, name, model) for name in ("within", "locked"))
    value = np.nan if within is None else float(within["finding_number"].sel(bound="value"))
    said = "" if locked is None else str(locked["finding_verdict"].item())
    layers = _layers(dataset.sel(model=model))
    inside = layers[dataset["block"].sel(model=model, layer=layers).values > 0]
    if not np.isfinite(value) or size < _NUMBERED:
        return _two(value) if np.isfinite(value) else "nothing to compare"
    block = f"{inside[0]}–{inside[-1]}" if inside.size else "none"
    locked_in = {"supported": f"{block} locked in", "undecided": f"block {block} undecided"}
    return f"mean CKA {_two(value)}; {locked_in.get(said, 'no layers locked in')}"


def _two(value: float) -> str:
    """Return two decimals, and no minus before 0."""
    return f"{round(value, 2) + 0.0:.2f}"


def _layers(one: xr.Dataset) -> Any:
    """Return the layers that a model has here."""
    return one["layer"].values[np.isfinite(one["depth"].values)]


def _map(axes: Axes, cells: xr.DataArray, gid: str, null: xr.DataArray | None = None, size: float = 1.0) -> None:
    """Draw cells ``(layer, layer_other)``, layer to the right; mark those in the null."""
    values = cells.transpose("layer_other", "layer").values
    axes.set_facecolor(_ABSENT)
    axes.grid(visible=False)
    edges = [np.arange(n + 1) - 0.5 for n in values.shape[::-1]]
    axes.pcolormesh(*edges, np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=1, gid=gid)
    if null is not None:
        rows, columns = np.nonzero(values <= null.transpose("layer_other", "layer").values)
        room = 72 * size / values.shape[1]  # points a cell
        axes.plot(columns, rows, "x", color="#BBBBBB", ms=min(3.0, 0.4 * room), mew=min(0.7, 0.1 * room), ls="none")
    axes.set(xticks=[], yticks=[])


def _places(dataset: xr.Dataset, first: str, second: str) -> dict[str, Any]:
    """Return the layers of two models by dimension."""
    return {"layer": _layers(dataset.sel(model=first)), "layer_other": _layers(dataset.sel(model=second))}


def _within(axes: Axes, dataset: xr.Dataset, model: str, size: float) -> None:
    from matplotlib.patches import Rectangle

    one = dataset.sel(model=model, **_places(dataset, model, model))
    cka = one["cka"].sel(variant="trimmed")
    _map(axes, cka, f"within-{model}", one["cka_null_q95"].sel(variant="trimmed"), size)
    inside = np.flatnonzero(one["block"].values > 0)
    if inside.size and np.isfinite(cka.values).any():
        corner, length = inside[0] - 0.5, len(inside)
        axes.add_patch(Rectangle((corner, corner), length, length, fill=False, ec=_BLOCK, lw=1.5, gid="block"))


def _between(axes: Axes, dataset: xr.Dataset, first: str, second: str, size: float) -> None:
    """Draw a pair's map: the first model's layers to the right, the second's upwards."""
    pair = f"{first}|{second}"
    if "pair" in dataset.dims and pair in dataset["pair"].values:
        one = dataset.sel(pair=pair, **_places(dataset, first, second))
        _map(axes, one["between"], f"between-{pair}", one["between_null_q95"], size)
    else:
        axes.set(facecolor=_ABSENT, xticks=[], yticks=[])


def _number(axes: Axes, dataset: xr.Dataset, first: str, second: str, size: float) -> None:
    """Write a pair's number, what chance gives, and what untrained twins have."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    named = (dataset["finding_name"] == "between") & (dataset["finding_model"] == first)
    at = np.flatnonzero((named & (dataset["finding_model_other"] == second)).values)
    if not at.size or size < _NUMBERED:
        return
    one = dataset.isel(finding=int(at[0]))
    value, low, high = one["finding_number"].values
    lines = (
        ["nothing to compare"]
        if np.isnan(value)
        else [f"CKA at equal depth {_two(value)}", f"[{_two(low)}, {_two(high)}]"]
    )
    chance, twins = float(one["finding_control"].sel(bound="value")), one["twin"].sel(bound="value").values
    lines += [f"chance {_two(chance)}"] if np.isfinite(chance) else []
    lines += [f"untrained {_two(float(np.nanmean(twins)))}"] if np.isfinite(twins).any() else []
    text = "\n".join(lettering.fitted(line, size, _SMALL) for line in lines)
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=_SMALL, transform=axes.transAxes)


def _edges(grid: Any, dataset: xr.Dataset, models: list[str], names: list[str], palette: Any, size: float) -> None:
    """Name models and layers at the left and below, and say what stands at the right."""
    for i, (model, name) in enumerate(zip(models, names, strict=True)):
        layers = _layers(dataset.sel(model=model))
        step = next(step for step in (1, 2, 3, 4, 5, 8, 10, 20, 50) if len(layers) / step <= max(2, size / 0.3))
        at = np.arange(0, len(layers), step)
        grid[i, 0].set_yticks(at, layers[at], fontsize=_SMALL)
        grid[-1, i].set_xticks(at, layers[at], fontsize=_SMALL)
        grid[i, 0].set_ylabel(name, color=palette[model], fontsize=_NAMES, fontweight="bold")
        grid[-1, i].set_xlabel(name, color=palette[model], fontsize=_NAMES, fontweight="bold")
    said = lettering.fitted("biased, 27 tokens" + ": as often published" * (size > 1), size, _NAMES)
    grid[-1, -1].set_xlabel(said, fontsize=_NAMES)
