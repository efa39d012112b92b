"""The figure of patching: the handover from subject to readout, and layer × position maps of operators and MLPs."""

from __future__ import annotations

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
    models = list(map(str, dataset["model"].values))
    said = [_said(dataset, model) for model in models]
    entries = _entries(dataset)
    if ax is not None:
        return style.alone(ax, dataset, _handover, said[0], entries)
    palette = style.colours(models)
    with style.context():
        made, panels, _ = style.blocks(dataset, models, said, (1.7, 0.8, 0.8))
        clipped = False
        for model, (top, *maps) in zip(models, panels, strict=True):
            clipped |= _handover(top, dataset.sel(model=model), palette[model])
            for axes, (site, title) in zip(maps, _MAPS.items(), strict=True):
                mesh = _map(axes, dataset.sel(model=model), site, title)
            axes.set_xlabel("layer")
        every = [axes for _, *maps in panels for axes in maps]
        cells = dataset["recovery"].sel(site=list(_MAPS), mode="denoise", bound="value")
        outside = bool(((cells < 0) | (cells > 1)).any())
        style.scale(every, mesh, "recovery", beyond="both" if outside else "neither")
        entries += [("absent", _ABSENT), *([("beyond the panel", style.BEYOND)] if clipped else [])]
        style.legend(made, entries)
    return made


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
    one = style.layers(one)
    layers, types = one["layer"].values, one["operator_type"].values.astype(str)
    stream = one.sel(site="resid_post", mode="denoise").transpose(..., "bound", "layer")
    axes.axhline(HALF, color="#BBBBBB", lw=0.8, ls=":")
    control = stream["recovery_control"].sel(position="last").values
    clipped = curves.untrained(axes, layers, stream.sel(position="last"), "recovery", edges=_EDGES)
    clipped |= curves.draw(axes, layers, control, style.CONTROL, edges=_EDGES, lw=1)
    for position, look in _LOOKS.items():
        values = stream["recovery"].sel(position=position).values
        values = values if position == "subject" else values[0]
        clipped |= curves.draw(axes, layers, values, colour, edges=_EDGES, **look)
    last = stream["recovery"].sel(position="last").values
    clipped |= curves.draw(axes, layers, last, colour, types=types, edges=_EDGES, gid="readout")
    onset = float(one["onset"].sel(mode="denoise", bound="value"))
    if not np.isnan(onset):
        layer = round(onset * (len(layers) - 1))
        axes.plot([layer], [last[0, layer]], **_ONSET, gid="onset")
    axes.plot(layers[-1:], [1.0], **_SURE)
    axes.set_ylim(*_EDGES)
    style.layer_axis(axes, len(layers))
    axes.set_xlim(-0.5, len(layers) - 0.5)
    style.label_y(axes, "recovery")
    return clipped


def _map(axes: Axes, one: xr.Dataset, site: str, title: str) -> Any:
    one = style.layers(one)
    chosen = one["recovery"].sel(site=site, mode="denoise", position=list(_ROWS), bound="value")
    cells = chosen.transpose("position", "layer").values
    edges = np.arange(cells.shape[1] + 1) - 0.5, np.arange(len(_ROWS) + 1) - 0.5
    axes.set_facecolor(_ABSENT["color"])
    mesh = axes.pcolormesh(*edges, np.ma.masked_invalid(cells), cmap="viridis", vmin=0, vmax=1, gid=f"map-{site}")
    style.layer_axis(axes, cells.shape[1])
    axes.set_xlim(-0.5, cells.shape[1] - 0.5)
    axes.set_ylim(len(_ROWS) - 0.5, -0.5)
    axes.set_yticks(range(len(_ROWS)), list(_ROWS.values()), fontsize=7)
    axes.grid(visible=False)
    axes.set_title(title, fontsize=8, fontweight="normal")
    return mesh
