"""The figure of what fine-tuning costs: KL shift over held-out loss, and quotients at equal loss below."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xatlas.comparisons.figures import forest, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colour of each strategy's curve.
_COLOURS = {
    "all_linear": "#222222",
    "attention_only": "#0072B2",
    "mlp_only": "#D55E00",
    "conv_only": "#009E73",
    "atlas_guided": "#CC79A7",
    "atlas_full": "#7A4FA3",
    "random_layers": style.CONTROL,
}
#: Claims that stand below, as rows: how they are called, and the strategy whose colour they have.
_ROWS = {"random_over_guided": ("random / atlas_guided", "random_layers")} | {
    f"all_over_{name}": (f"all / {name.removesuffix('_only')}", name)
    for name in _COLOURS
    if name not in ("all_linear", "random_layers")
}
#: Smallest KL drawn.
_FLOOR = 1e-6


def draw(dataset: xr.Dataset) -> Figure:
    """Draw each model's curves, and the quotients of strategies that both have learnt as much."""
    rows: list[forest.Row] = []
    for model in map(str, dataset["model"].values):
        found = [(*row, style.finding(dataset, name, model)) for name, row in _ROWS.items()]
        rows += [(f"{model}\n{name}", _COLOURS[one], each) for name, one, each in found if each is not None]
    entries: style.Entries = [(name, {"color": colour, "marker": "."}) for name, colour in _COLOURS.items()]
    if rows:
        entries += [entry for entry in forest.entries(dataset, "quotient") if entry[0] != "control"]

    def quotients(axes: Axes) -> bool:
        axes.axvline(1, color=style.CONTROL, lw=1)
        forest.draw(axes, rows, "KL shift at equal held-out loss, quotient")
        return False  # nothing is beyond an axis without edges

    said = style.said(dataset, "random_over_guided", "no layers to draw from")
    below = (forest.height(rows), quotients) if rows else None
    return style.by_model(dataset, None, said, [(2.4, _curves)], entries, below=below)


def _curves(axes: Axes, one: xr.Dataset, _: str) -> bool:
    for name, colour in _COLOURS.items():
        if name not in one["strategy"].values:
            continue
        curve = one.sel(strategy=name)
        loss, kl = (curve[each].transpose("bound", "step").values for each in ("loss", "kl"))
        shown = np.isfinite(loss[0]) & (kl[0] > _FLOOR)
        axes.plot(loss[0][shown], kl[0][shown], color=colour, marker=".", lw=1.3, gid=name)
    axes.invert_xaxis()
    style.log_axis(axes)
    axes.set_xlabel("held-out loss, nats (learnt →)")
    style.label_y(axes, "KL shift elsewhere, nats")
    return False
