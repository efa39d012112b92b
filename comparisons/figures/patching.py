"""The figure of patching: the handover from subject to readout, and layer × position maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Recovery from which on information counts as being there.
HALF = 0.5
#: Site → title of its map.
_MAPS = {"resid_post": "stream", "operator_out": "operator", "mlp_out": "MLP"}
#: Rows of the maps, from the top.
_ROWS = ("first", "subject", "other", "last")
#: Widest map whose cells carry numbers.
_NUMBERED = 12


def draw(dataset: xr.Dataset) -> Figure:
    """Draw a column per model: the stream at subject and readout, then three maps of ``denoise`` recovery."""
    models = list(map(str, dataset["model"].values))
    palette = style.colours(models)
    with style.context():
        made = style.figure(max(8.2, 1.6 + 3.6 * len(models)), 7.2, dataset.attrs["suite"])
        titles = [style.fitted(_title(dataset.isel(model=i)), 2.8, 9.5, bold=True) for i in range(len(models))]
        style.grow(made, style.extra(titles, 9.5))
        grid = made.subplots(1 + len(_MAPS), len(models), height_ratios=[1.5, 1, 1, 1], squeeze=False)
        mesh: Any = None
        for i, model in enumerate(models):
            one = dataset.isel(model=i)
            _handover(grid[0, i], one, palette[model])
            grid[0, i].set_title(titles[i], color=palette[model])
            for row, (site, title) in enumerate(_MAPS.items(), start=1):
                mesh = _map(grid[row, i], one, site, title)
            grid[-1, i].set_xlabel("layer")
        grid[0, 0].set_ylabel("recovery")
        made.colorbar(mesh, ax=grid[1:, -1], label="recovery, clean into corrupt", shrink=0.8, extend="both")
        types = sorted(set(dataset["operator_type"].values.ravel().tolist()) - {""})
        points = [(f"{kind} layer", {"marker": style.marker(kind), "ls": "none", "ms": 4}) for kind in types]
        style.legend(made, [*_LINES, *points])
    return made


_DASHED = (0, (3, 1.5))
_LINES: list[tuple[str, dict[str, Any]]] = [
    ("stream at the readout", {}),
    ("at the subject", {"ls": _DASHED}),
    ("random change at the readout", {"color": style.CONTROL, "lw": 1}),
    ("half of the answer from here on", {"marker": "o", "ls": "none", "mfc": "none", "ms": 8}),
    ("half of the answer", {"color": "#BBBBBB", "lw": 0.8, "ls": ":"}),
    ("absent", {"marker": "s", "ls": "none", "color": "#D9D9D9", "ms": 7}),
    ("beyond the panel", {"marker": "^", "ls": "none", "mfc": "none", "ms": 5}),
]


def _count(one: xr.Dataset) -> int:
    return int((one["operator_type"].values != "").sum())


def _title(one: xr.Dataset) -> str:
    value, low, high = one["onset"].sel(mode="denoise").values
    if np.isnan(value):
        return f"{one['model'].item()}: never at the readout"
    ends = "" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return f"{one['model'].item()}: at the readout from depth {value:.2f}{ends}"


def _handover(axes: Axes, one: xr.Dataset, colour: str) -> None:
    n_layers = _count(one)
    layers = np.arange(n_layers)
    stream = one.sel(site="resid_post", mode="denoise")

    def curve(position: str, name: str, bound: str = "value") -> Any:
        return stream[name].sel(position=position, bound=bound).values[:n_layers]

    axes.axhline(HALF, color="#BBBBBB", lw=0.8, ls=":")
    for position, name, shade, dashes in (
        ("last", "recovery_control", style.CONTROL, "-"),
        ("subject", "recovery", colour, _DASHED),
        ("last", "recovery", colour, "-"),
    ):
        axes.fill_between(
            layers, curve(position, name, "low"), curve(position, name, "high"), color=shade, alpha=0.18, lw=0
        )
        axes.plot(
            layers,
            curve(position, name),
            color=shade,
            ls=dashes,
            lw=1 if shade == style.CONTROL else 1.6,
            marker=".",
            ms=3,
        )
    types = one["operator_type"].values[:n_layers].astype(str)
    for kind in sorted(set(types)):
        at = np.flatnonzero(types == kind)
        axes.plot(at, curve("last", "recovery")[at], style.marker(kind), color=colour, ms=4)
    onset = float(one["onset"].sel(mode="denoise", bound="value"))
    if not np.isnan(onset):
        layer = round(onset * (n_layers - 1))
        axes.plot([layer], [curve("last", "recovery")[layer]], "o", mfc="none", mec=style.INK, ms=9, gid="onset")
    axes.set_ylim(-0.1, 1.2)
    for name, shade in (("recovery_control", style.CONTROL), ("recovery", colour)):
        _clipped(axes, layers, curve("last", name), shade)
    _clipped(axes, layers, curve("subject", "recovery"), colour)
    axes.plot(layers[-1:], [1.0], "x", color=style.CONTROL, ms=5)
    place: dict[str, Any] = {"xytext": (4, 5), "textcoords": "offset points", "ha": "right"}
    axes.annotate("1 by construction", (n_layers - 1, 1), fontsize=6.5, color="#666666", **place)
    style.layer_axis(axes, n_layers)
    axes.set_xlim(-0.5, n_layers - 0.5)


def _clipped(axes: Axes, layers: Any, values: Any, colour: str) -> None:
    """Mark values beyond the panel at its edge."""
    for mark, beyond, edge in (("^", values > 1.2, 1.19), ("v", values < -0.1, -0.09)):
        axes.plot(layers[beyond], np.full(int(beyond.sum()), edge), mark, color=colour, mfc="none", ms=5)


def _map(axes: Axes, one: xr.Dataset, site: str, title: str) -> Any:
    n_layers = _count(one)
    chosen = one["recovery"].sel(site=site, mode="denoise", position=list(_ROWS), bound="value")
    cells = chosen.transpose("position", "layer").values[:, :n_layers]
    edges = np.arange(n_layers + 1) - 0.5, np.arange(len(_ROWS) + 1) - 0.5
    axes.set_facecolor("#D9D9D9")  # what is absent
    mesh = axes.pcolormesh(*edges, np.ma.masked_invalid(cells), cmap="viridis", vmin=0, vmax=1, gid=f"map-{site}")
    if n_layers <= _NUMBERED:
        for (row, layer), value in np.ndenumerate(cells):
            if abs(value) >= 0.005:
                shade = "black" if value > 0.6 else "white"
                axes.text(layer, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=shade)
    style.layer_axis(axes, n_layers)
    axes.set_xlim(-0.5, n_layers - 0.5)
    axes.set_ylim(len(_ROWS) - 0.5, -0.5)
    axes.set_yticks(range(len(_ROWS)), ["first", "subject", "other", "readout"])
    axes.grid(visible=False)
    axes.set_title(title, fontsize=8.5, fontweight="normal")
    return mesh
