"""The figure of MLP ratios: over the layers of each model, and what was found about layers and their types below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xatlas.comparisons.figures import curves, forest, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Ratios drawn at the edge when they lie beyond.
EDGES = (0.005, 200.0)
#: Rows of one model below the curves: claim, and what it is of.
_ROWS = {
    "mlp_over_operator": "MLP / operator",
    "types_mlp": "MLPs, {types}",
    "types_operator": "operators, {types}",
    "types_ratio": "ratio, {types}",
}


def draw(dataset: xr.Dataset, ax: Axes | None = None) -> Figure:
    """Draw MLP over operator along depth; below it the ratio over all layers, and by operator type."""
    entries = style.kinds(dataset)
    if "mlp_over_operator_control" in dataset:
        entries.append(("ratio of the controls, 95 % band", {"color": style.CONTROL, "marker": ".", "ms": 3, "lw": 1}))
    entries += forest.entries(dataset, "ratio") if ax is None else curves.twin_entries(dataset)
    rows: list[forest.Row] = []
    for model, colour in style.colours(map(str, dataset["model"].values)).items():
        rows.append((model, colour, ""))
        types = str(dataset["types"].sel(model=model).item())
        for name, label in _ROWS.items():
            found = style.finding(dataset, name, model)
            if found is not None:
                rows.append((label.format(types=types), colour, found))

    def ratios(axes: Axes) -> bool:
        axes.axvline(1, color=style.INK, lw=0.8)
        return forest.draw(axes, rows, "ratio, with its 95 % interval", edges=EDGES)

    said, below = style.said(dataset, "mlp_over_operator", "no MLPs"), (forest.height(rows), ratios)
    return style.by_model(dataset, ax, said, [(1.8, _curves)], entries, below=below)


def _curves(axes: Axes, one: xr.Dataset, colour: str) -> bool:
    axes.axhline(1, color=style.INK, lw=0.8)
    name, layers = "mlp_over_operator", one["layer"]
    clipped = curves.untrained(axes, layers, one, name, edges=EDGES)
    if f"{name}_control" in one:
        clipped |= curves.draw(axes, layers, one[f"{name}_control"], color=style.CONTROL, edges=EDGES, lw=1)
    clipped |= curves.draw(axes, layers, one[name], color=colour, typed=True, edges=EDGES, gid="ratio")
    style.log_axis(axes, about=(0.5, 2))
    style.layer_axis(axes, one.sizes["layer"])
    axes.set_xlabel("layer")
    style.label_y(axes, "MLP over operator, ratio")
    return clipped
