"""Numbers with intervals, row by row, the models above one another in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import lettering, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = 7.5
_LINES: tuple[dict[str, Any], ...] = tuple({"color": style.CONTROL, "lw": 1, "ls": ls} for ls in ("--", ":"))


def draw(
    dataset: xr.Dataset,
    panels: Sequence[xr.DataArray],
    *,
    lines: Mapping[float, str] | None = None,
    notes: Mapping[str, str] | None = None,
    log: bool = False,
) -> Figure:
    """Draw arrays ``(model, row, bound)``, a panel each, with ``lines`` at some numbers; the axis is a share's or log.

    A panel's label is the array's ``long_name``; ``notes`` stand behind models' names.
    """
    models = list(map(str, dataset["model"].values))
    palette = style.colours(models)
    with style.context():
        names = [
            lettering.fitted(str(row).replace("_", " "), style.within(2.0), _NAMES) for row in panels[0]["row"].values
        ]
        per_row = max(0.24, 0.075 * len(models) + 0.06) + lettering.extra(names, _NAMES)
        made = style.figure(1.8 + 3.6 * len(panels), 1.1 + per_row * len(names), dataset.attrs["suite"])
        for axes, values in zip(style.panels(made, len(panels)), panels, strict=True):
            of_models(axes, values.transpose("row", "model", "bound").values, list(palette.values()), names)
            for at, look in zip(lines or (), _LINES, strict=False):
                axes.axvline(at, **look)
            if log:
                style.log_axis(axes, "x")
            else:
                axes.set_xlim(-0.02, 1.02)
            axes.set_xlabel(lettering.fitted(str(values.attrs["long_name"]), 3.4, _NAMES + 1))
        named = {model: f"{model}{(notes or {}).get(model, '')}" for model in models}
        entries: style.Entries = [
            (named[model], {"color": palette[model], "marker": "o", "ms": 3.2}) for model in models
        ]
        entries += [(f"{text} ({at:g})", look) for (at, text), look in zip((lines or {}).items(), _LINES, strict=False)]
        style.legend(made, entries)
    return made


def of_models(axes: Axes, values: np.ndarray, palette: Sequence[str], names: Sequence[str]) -> None:
    """Draw ``values (row, model, bound)``: value, low, high."""
    offsets = np.linspace(0.3, -0.3, len(palette)) if len(palette) > 1 else np.zeros(1)
    for row, own in enumerate(values):
        if row % 2:
            axes.axhspan(-row - 0.5, -row + 0.5, color="#F6F6F6", lw=0, zorder=0)
        for offset, colour, (value, low, high) in zip(offsets, palette, own, strict=True):
            axes.plot([low, high], [offset - row] * 2, color=colour, lw=1.2, solid_capstyle="butt")
            axes.plot([value], [offset - row], "o", color=colour, ms=3.2)
    axes.set_yticks([-row for row in range(len(names))], names, fontsize=_NAMES)
    axes.set_ylim(-len(names) + 0.5, 0.5)
    axes.grid(visible=False, axis="y")
