"""Findings' numbers with intervals, one row each, beside their controls and untrained twins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

#: Name, colour and finding of a row; a text where there is none, an empty one for a heading.
Row = tuple[str, str, "xr.Dataset | str"]
_CONTROL: dict[str, Any] = {"color": style.CONTROL, "lw": 1.2, "marker": "|", "ms": 6}
TWIN: dict[str, Any] = {"color": "#B0B0B0", "lw": 0.8, "marker": ".", "ms": 3}
#: Font size of the names.
_SIZE = 7.5


def draw(axes: Axes, rows: Sequence[Row], *, edges: tuple[float, float] = (0.0, math.inf), none: float = 1.0) -> bool:
    """Draw findings' numbers with intervals, controls and twins, one row each; return whether any is clipped.

    A row is its name, its colour, and a finding; a text where there is none, an empty one for a heading.
    """
    clipped, names = False, _names([name for name, _, _ in rows])
    for y, (_, colour, found) in enumerate(rows):
        if isinstance(found, str) or math.isnan(found["finding_number"].values[0]):
            text = found if isinstance(found, str) else str(found["finding_reason"].item())
            axes.text(none, y, f"  {text}", va="center", fontsize=7, color="#666666")
            continue
        value, low, high = found["finding_number"].values
        ends = np.clip([low, high], *edges)
        axes.plot(ends, [y, y], color=colour, lw=2.2, solid_capstyle="butt")
        fill = colour if found["finding_verdict"].item() == "supported" else "white"
        gid = f"{found['finding_name'].item()}-{found['finding_model'].item()}"
        axes.plot(np.clip([value], *edges), [y], "o", color=colour, mfc=fill, ms=5.5, gid=gid)
        for end, out, mark in ((ends[0], low < edges[0], "<"), (ends[1], high > edges[1], ">")):
            if out:
                axes.plot([end], [y], **style.BEYOND | {"marker": mark, "color": colour, "clip_on": False})
                clipped = True
        beside = [found["finding_control"].values, *(found["twin"].values if "twin" in found else ())]
        for line, (middle, *sides) in enumerate(beside):
            if not math.isnan(sides[0]):  # else the line that all rows share is the control
                look, at = TWIN if line else _CONTROL, y + 0.22 + 0.09 * line
                axes.plot(np.clip(sides, *edges), [at, at], **look | {"marker": ""})
                axes.plot(np.clip([middle], *edges), [at], **look)
    axes.set_ylim(len(rows) - 0.4, -0.5)
    axes.set_yticks(range(len(rows)), names, fontsize=_SIZE)
    for label, (_, colour, _) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(colour)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return clipped


def height(names: Sequence[str]) -> float:
    """Return how high a panel with these rows is, in inches."""
    return 0.7 + sum(max(0.24, 0.16 * (1 + name.count("\n"))) for name in _names(names))


def entries(dataset: xr.Dataset, what: str) -> style.Entries:
    """Return what explains the marks of such a panel."""
    found: style.Entries = [(f"{what}, supported", {"marker": "o", "ms": 5, "lw": 2.2})]
    found += [("not supported", {"marker": "o", "ms": 5, "lw": 2.2, "mfc": "white"}), ("control", _CONTROL)]
    return [*found, ("untrained twins", TWIN)] if dataset.sizes.get("twin") else found


def _names(names: Sequence[str]) -> list[str]:
    return [style.fitted(name, style.within(1.9), _SIZE, lines=3) for name in names]
