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
    models = list(map(str, dataset["model"].values))
    said, palette = style.said(dataset, "mlp_over_operator", models, "no MLPs"), style.colours(models)
    entries: style.Entries = [*style.kinds(dataset)]
    if "mlp_over_operator_control" in dataset:
        entries.append(("ratio of the controls, 95 % band", {"color": style.CONTROL, "marker": ".", "ms": 3, "lw": 1}))
    if ax is not None:
        return style.alone(ax, dataset, _curves, said[0], [*entries, *curves.twin_entries(dataset)])
    rows: list[forest.Row] = []
    for model in models:
        rows.append((model, palette[model], ""))
        types = str(dataset["types"].sel(model=model).item())
        for name, label in _ROWS.items():
            found = style.finding(dataset, name, model)
            if found is not None:
                rows.append((label.format(types=types), palette[model], found))
    with style.context():
        made, panels, below = style.blocks(dataset, models, said, (1.8,), forest.height([row[0] for row in rows]))
        assert below is not None
        beyond = False
        for model, (axes,) in zip(models, panels, strict=True):
            beyond |= _curves(axes, dataset.sel(model=model), palette[model])
        below.axvline(1, color=style.INK, lw=0.8)
        beyond |= forest.draw(below, rows, edges=EDGES)
        style.log_axis(below, "x", about=(0.5, 2))
        below.set_xlabel("ratio, with its 95 % interval")
        entries += [*forest.entries(dataset, "ratio"), *([("beyond the panel", style.BEYOND)] if beyond else [])]
        style.legend(made, entries)
    return made


def _curves(axes: Axes, one: xr.Dataset, colour: str) -> bool:
    one = style.layers(one)
    axes.axhline(1, color=style.INK, lw=0.8)
    beyond = curves.untrained(axes, one["layer"], one, "mlp_over_operator", edges=EDGES)
    if "mlp_over_operator_control" in one:
        control = one["mlp_over_operator_control"].transpose("bound", "layer").values
        beyond |= curves.draw(axes, one["layer"], control, style.CONTROL, edges=EDGES, lw=1)
    ratio, types = one["mlp_over_operator"].transpose("bound", "layer").values, one["operator_type"].values.astype(str)
    beyond |= curves.draw(axes, one["layer"], ratio, colour, types=types, edges=EDGES, gid="ratio")
    style.log_axis(axes, about=(0.5, 2))
    style.layer_axis(axes, one.sizes["layer"])
    axes.set_xlabel("layer")
    style.label_y(axes, "MLP over operator, ratio")
    return beyond
