"""The figure of MLP ratios: over depth by operator type, and conv over attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import style
from xatlas.comparisons.measures import summary

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(dataset: xr.Dataset) -> Figure:
    """Draw MLP over operator along depth; beside it, where a model has both types, conv over attention."""
    models = list(map(str, dataset["model"].values))
    palette = style.colours(models)
    raw = dataset["conv_over_attention"].sel(part="raw").values
    both = [model for model, row in zip(models, raw, strict=True) if np.isfinite(row).any()]
    with style.context():
        height = max(3.9, 1.2 + 0.16 * (len(_ROWS) + 1) * len(both))
        made = style.figure(9.2 if both else 6.2, height, dataset.attrs["suite"])
        axes = made.subplots(1, 2, width_ratios=[1.5, 1]) if both else [made.subplots()]
        _curves(axes[0], dataset, palette)
        if both:
            _types(axes[1], dataset.sel(model=both), palette)
        kinds = sorted(set(dataset["operator_type"].values.ravel().tolist()) - {""})
        entries: list[tuple[str, dict[str, Any]]] = [(model, {"color": palette[model]}) for model in models]
        entries += [(f"{kind} layer", {"marker": style.marker(kind), "ls": "none", "ms": 4.5}) for kind in kinds]
        style.legend(made, [*entries, ("control", {"color": style.CONTROL, "ls": (0, (1, 1)), "lw": 1})])
    return made


def _curves(axes: Axes, dataset: xr.Dataset, palette: dict[str, str]) -> None:
    axes.axhline(1, color=style.INK, lw=0.8)
    for i, (model, colour) in enumerate((name, palette[name]) for name in map(str, dataset["model"].values)):
        one = dataset.isel(model=i)
        depth = one["depth"].values
        low, high = one["mlp_over_operator_low"].values, one["mlp_over_operator_high"].values
        axes.fill_between(depth, low, high, color=colour, alpha=0.15, lw=0)
        axes.plot(depth, one["control"].values, color=colour, lw=0.9, ls=(0, (1, 1)), alpha=0.7)
        ratio, types = one["mlp_over_operator"].values, one["operator_type"].values.astype(str)
        axes.plot(depth, ratio, color=colour, lw=1.2, gid=f"ratio-{model}")
        for kind in sorted(set(types) - {""}):
            axes.plot(depth[types == kind], ratio[types == kind], style.marker(kind), color=colour, ms=4.5)
    style.log_axis(axes)
    style.plain_ticks(axes)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("depth (layer / last layer)")
    axes.set_ylabel("KL of MLP over KL of operator, ratio")
    axes.set_title("MLP over operator")


#: Height of the lines of one model: raw above, within tertiles below, for both components.
_ROWS = (("mlp", "raw"), ("mlp", "within"), ("operator", "raw"), ("operator", "within"))


def _types(axes: Axes, dataset: xr.Dataset, palette: dict[str, str]) -> None:
    axes.axvline(1, color=style.INK, lw=0.8)
    labels = []
    for i, model in enumerate(map(str, dataset["model"].values)):
        for j, (component, part) in enumerate(_ROWS):
            one, y = dataset.isel(model=i).sel(component=component, part=part), -(i * 5 + j)
            named = "raw" if part == "raw" else "within depth tertiles"
            labels.append((y, f"{component}, {named}"))
            value, low, high = summary.triple(one, "conv_over_attention")
            if math.isnan(value):
                axes.text(1, y, "  no tertile holds both types", va="center", fontsize=7, color="#666666")
                continue
            fill = "white" if part == "raw" else palette[model]
            axes.plot([low, high], [y, y], color=palette[model], lw=2, solid_capstyle="butt", zorder=2)
            axes.plot([value], [y], "o", color=palette[model], mfc=fill, ms=6, gid=f"{model}-{component}-{part}")
            control = [float(one[f"conv_over_attention_control_{end}"]) for end in ("low", "high")]
            axes.plot(control, [y - 0.3] * 2, color=style.CONTROL, lw=1.2)
    style.log_axis(axes, "x")
    style.plain_ticks(axes, "x")
    axes.set_yticks([y for y, _ in labels], [text for _, text in labels])
    axes.set_ylim(min(y for y, _ in labels) - 0.8, 0.8)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("KL in conv over attention layers, ratio")
    axes.set_title("Conv over attention")
