"""Findings' numbers with intervals, one row each, beside their controls and untrained twins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import curves, lettering, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

#: Name, colour and finding of a row; a text where there is none, an empty one for a heading.
Row = tuple[str, str, "xr.Dataset | str"]
_CONTROL: dict[str, Any] = {"color": style.CONTROL, "lw": 1.2, "marker": "|", "ms": 6}
#: Font size of the names.
_SIZE = 7.5


def draw(
    axes: Axes,
    rows: Sequence[Row],
    label: str,
    *,
    edges: tuple[float, float] = (0.0, math.inf),
    shares: bool = False,
) -> bool:
    """Draw findings' numbers with intervals, controls and twins, one row each; return whether any is clipped.

    They are ratios, unless they are ``shares``.
    """
    clipped, names = False, _names(rows)
    for y, (_, colour, found) in enumerate(rows):
        if isinstance(found, str) or math.isnan(found["finding_number"].values[0]):
            text = found if isinstance(found, str) else str(found["finding_reason"].item())
            axes.text(0.0 if shares else 1.0, y, f"  {text}", va="center", fontsize=7, color="#666666")
            continue
        fill = colour if found["finding_verdict"].item() == "supported" else "white"
        gid = f"{found['finding_name'].item()}-{found['finding_model'].item()}"
        look = {"color": colour, "lw": 2.2, "marker": "o", "mfc": fill, "ms": 5.5, "gid": gid}
        clipped |= _interval(axes, y, found["finding_number"].values, edges, look, 5)
        beside = [found["finding_control"].values, *(found["twin"].values if "twin" in found else ())]
        for line, bounds in enumerate(beside):
            if not math.isnan(bounds[1]):  # else the line that all rows share is the control
                look, at = curves.TWIN if line else _CONTROL, y + 0.22 + 0.09 * line
                clipped |= _interval(axes, at, bounds, edges, look, 3)
    axes.set_ylim(len(rows) - 0.4, -0.5)
    axes.set_yticks(range(len(rows)), names, fontsize=_SIZE)
    for name, (_, colour, _) in zip(axes.get_yticklabels(), rows, strict=True):
        name.set_color(colour)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label)
    if shares:
        axes.set_xlim(0, 1.03)
    else:
        style.log_axis(axes, "x", about=(0.5, 2))
    return clipped


def of_models(dataset: xr.Dataset, claim: str, absent: str) -> list[Row]:
    """Return one row a model with what was found of a claim, or what is absent."""
    rows: list[Row] = []
    for model, colour in style.colours(map(str, dataset["model"].values)).items():
        found = style.finding(dataset, claim, model)
        rows.append((model, colour, absent if found is None else found))
    return rows


def _interval(axes: Axes, y: float, bounds: Any, edges: tuple[float, float], look: dict[str, Any], size: float) -> bool:
    """Draw one number and its interval; what lies beyond an edge is marked there alone. Return whether any does."""
    value, low, high = bounds
    line = look | {"marker": "", "solid_capstyle": "butt", "gid": None}
    axes.plot(np.clip([low, high], *edges), [y, y], **line)
    if edges[0] <= value <= edges[1]:
        axes.plot([value], [y], **look)
    beyond = [
        (edge, mark) for edge, out, mark in zip(edges, (low < edges[0], high > edges[1]), "<>", strict=True) if out
    ]
    for edge, mark in beyond:
        mark_of = {"marker": mark, "color": look["color"], "ms": size, "clip_on": False}
        axes.plot([edge], [y], **style.BEYOND | mark_of)
    return bool(beyond)


def height(rows: Sequence[Row]) -> float:
    """Return how high a panel with these rows is, in inches."""
    return 0.7 + sum(max(0.24, 0.16 * (1 + name.count("\n"))) for name in _names(rows))


def entries(dataset: xr.Dataset, what: str) -> style.Entries:
    """Return what explains the marks of such a panel."""
    found: style.Entries = [(f"{what}, supported", {"marker": "o", "ms": 5, "lw": 2.2})]
    found += [("not supported", {"marker": "o", "ms": 5, "lw": 2.2, "mfc": "white"}), ("control", _CONTROL)]
    return [*found, ("untrained twins", curves.TWIN)] if dataset.sizes.get("twin") else found


def _names(rows: Sequence[Row]) -> list[str]:
    return [lettering.fitted(name, style.within(1.9), _SIZE, lines=3) for name, _, _ in rows]
