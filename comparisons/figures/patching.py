"""The figure of patching: the handover from subject to readout, and layer × position maps of operators and MLPs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import curves, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Recovery from which on information counts as being there.
HALF = 0.5
#: Recovery at the edges of the panel.
_EDGES = (-0.1, 1.2)
#: Site → title of its map. The stream's curves stand above; a map of it would show the same again.
_MAPS = {"operator_out": "operator", "mlp_out": "MLP"}
#: Rows of the maps, from the top.
_ROWS = {"first": "position 0", "subject": "subject", "other": "other", "last": "readout"}
_LOOKS: dict[str, dict[str, Any]] = {
    "other": {"ls": (0, (1, 1)), "lw": 1.0},
    "first": {"ls": (0, (5, 1, 1, 1)), "lw": 1.0},
    "subject": {"ls": (0, (3, 1.5))},
}
_ONSET: dict[str, Any] = {"marker": "o", "ls": "none", "mfc": "none", "mec": style.INK, "ms": 9}
_SURE: dict[str, Any] = {"marker": "x", "ls": "none", "color": style.CONTROL, "ms": 6}
_ABSENT: dict[str, Any] = {"marker": "s", "ls": "none", "color": "#D9D9D9", "ms": 7}


def draw(dataset: xr.Dataset, ax: Axes | None = None) -> Figure:
    """Draw the stream at each position, then maps of ``denoise`` recovery, for each model."""
    entries = _entries(dataset)
    entries += [("absent", _ABSENT)] if ax is None else []

    def explain(panels: list[list[Axes]]) -> None:
        cells = dataset["recovery"].sel(site=list(_MAPS), mode="denoise", bound="value")
        outside = bool(((cells < 0) | (cells > 1)).any())
        maps = [axes for _, *own in panels for axes in own]
        for axes in maps[1::2]:
            axes.set_xlabel("layer")
        style.scale(maps, maps[-1].collections[0], "recovery", beyond="both" if outside else "neither")

    said = [_said(dataset, model) for model in map(str, dataset["model"].values)]
    parts: list[tuple[float, style.Panel]] = [(1.7, _handover), *((0.8, partial(_map, site=site)) for site in _MAPS)]
    return style.by_model(dataset, ax, said, parts, entries, after=explain)


def _entries(dataset: xr.Dataset) -> style.Entries:
    return [
        ("stream at the readout", {}),
        ("at the subject", _LOOKS["subject"]),
        ("at position 0", _LOOKS["first"]),
        ("at other tokens", _LOOKS["other"]),
        ("random change at the readout", {"color": style.CONTROL, "lw": 1}),
        ("half or more of the answer from here on", _ONSET | {"ms": 8}),
        ("1 by construction", _SURE),
        *style.kinds(dataset),
        *curves.twin_entries(dataset),
    ]


def _said(dataset: xr.Dataset, model: str) -> str:
    """Say from which depth on the answer is at the readout."""
    value, low, high = dataset["onset"].sel(mode="denoise", model=model).values
    if np.isnan(value):
        return "answer never at the readout"
    ends = "" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    found = style.finding(dataset, "onset", model)
    verdict = "" if found is None else found["finding_verdict"].item()
    mark = ":" if verdict == "supported" else "?"
    return f"answer at the readout from depth {value:.2f}{ends}{mark} {verdict}"


def _handover(axes: Axes, one: xr.Dataset, colour: str) -> bool:
    layers, stream = one["layer"].values, one.sel(site="resid_post", mode="denoise")
    recovery, last = stream["recovery"], stream.sel(position="last")
    axes.axhline(HALF, color="#BBBBBB", lw=0.8, ls=":")
    clipped = curves.untrained(axes, layers, last, "recovery", edges=_EDGES)
    clipped |= curves.draw(axes, layers, last["recovery_control"], color=style.CONTROL, edges=_EDGES, lw=1)
    for position, look in _LOOKS.items():
        values = recovery.sel(position=position)
        values = values if position == "subject" else values.sel(bound="value")
        clipped |= curves.draw(axes, layers, values, color=colour, edges=_EDGES, **look)
    clipped |= curves.draw(axes, layers, last["recovery"], color=colour, typed=True, edges=_EDGES, gid="readout")
    onset = float(one["onset"].sel(mode="denoise", bound="value"))
    if not np.isnan(onset):
        layer = round(onset * (len(layers) - 1))
        axes.plot([layer], [float(last["recovery"].sel(bound="value")[layer])], **_ONSET, gid="onset")
    axes.plot(layers[-1:], [1.0], **_SURE)
    axes.set_ylim(*_EDGES)
    style.layer_axis(axes, len(layers))
    axes.set_xlim(-0.5, len(layers) - 0.5)
    style.label_y(axes, "recovery")
    return clipped


def _map(axes: Axes, one: xr.Dataset, _: str, site: str) -> bool:
    chosen = one["recovery"].sel(site=site, mode="denoise", position=list(_ROWS), bound="value")
    cells = chosen.transpose("position", "layer").values
    edges = np.arange(cells.shape[1] + 1) - 0.5, np.arange(len(_ROWS) + 1) - 0.5
    axes.set_facecolor(_ABSENT["color"])
    axes.pcolormesh(*edges, np.ma.masked_invalid(cells), cmap="viridis", vmin=0, vmax=1, gid=f"map-{site}")
    style.layer_axis(axes, cells.shape[1])
    axes.set_xlim(-0.5, cells.shape[1] - 0.5)
    axes.set_ylim(len(_ROWS) - 0.5, -0.5)
    axes.set_yticks(range(len(_ROWS)), list(_ROWS.values()), fontsize=7)
    axes.grid(visible=False)
    axes.set_title(_MAPS[site], fontsize=8, fontweight="normal")
    return False
