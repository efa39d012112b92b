"""The figure of MLP ratios: over depth by operator type, and what was found beside it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Ratios drawn at the edge when they lie beyond.
EDGES = (0.02, 50.0)
#: Lines of one model beside the curves: claim, and what it is of.
_ROWS = {
    "mlp_over_operator": "MLP / operator",
    "types_mlp": "MLPs, {types}",
    "types_operator": "operators, {types}",
    "types_ratio": "ratio, {types}",
}
_HOLLOW: dict[str, Any] = {"marker": "o", "ls": "none", "mfc": "white", "ms": 5.5}
_FULL: dict[str, Any] = {"marker": "o", "ls": "none", "ms": 5.5}
_CONTROL: dict[str, Any] = {"color": style.CONTROL, "lw": 1.2, "marker": "|", "ms": 5}
_BEYOND: dict[str, Any] = {"marker": ">", "ls": "none", "mfc": "none", "ms": 5}


def draw(dataset: xr.Dataset) -> Figure:
    """Draw MLP over operator along depth; beside it the ratio over all layers, and by operator type."""
    models = list(map(str, dataset["model"].values))
    palette = style.colours(models)
    rows = [(model, name) for model in models for name in _ROWS if style.finding(dataset, name, model) is not None]
    with style.context():
        height = max(3.9, 1.7 + 0.19 * (len(rows) + len(models)))
        made = style.figure(10.2, height, dataset.attrs["suite"])
        left, right = made.subplots(1, 2, width_ratios=[1.25, 1])
        beyond = _curves(left, dataset, palette)
        beyond |= _findings(right, dataset, palette, rows)
        kinds = sorted(set(dataset["operator_type"].values.ravel().tolist()) - {""})
        entries: list[tuple[str, dict[str, Any]]] = [(model, {"color": palette[model]}) for model in models]
        entries += [(f"{kind} layer", {"marker": style.marker(kind), "ls": "none", "ms": 4.5}) for kind in kinds]
        entries += [("control over depth", {"ls": (0, (1, 1)), "lw": 0.9}), ("control", _CONTROL)]
        entries += [("supported", _FULL), ("not supported", _HOLLOW)]
        entries += [("beyond the axis", _BEYOND)] if beyond else []
        style.legend(made, entries)
    return made


def _clipped(values: Any) -> Any:
    return np.where(np.isfinite(values), np.clip(values, *EDGES), np.nan)


def _curves(axes: Axes, dataset: xr.Dataset, palette: dict[str, str]) -> bool:
    axes.axhline(1, color=style.INK, lw=0.8)
    beyond = False
    for model, colour in palette.items():
        one = dataset.sel(model=model)
        depth = one["depth"].values
        ratio, low, high = (one["mlp_over_operator"].sel(bound=end).values for end in ("value", "low", "high"))
        axes.fill_between(depth, _clipped(low), _clipped(high), color=colour, alpha=0.15, lw=0)
        if "mlp_over_operator_control" in one:
            control = one["mlp_over_operator_control"].sel(bound="value").values
            axes.plot(depth, _clipped(control), color=colour, lw=0.9, ls=(0, (1, 1)), alpha=0.7)
        axes.plot(depth, _clipped(ratio), color=colour, lw=1.2, gid=f"ratio-{model}")
        types = one["operator_type"].values.astype(str)
        inside = (ratio >= EDGES[0]) & (ratio <= EDGES[1])
        for kind in sorted(set(types) - {""}):
            at = (types == kind) & inside
            axes.plot(depth[at], ratio[at], style.marker(kind), color=colour, ms=4.5)
        for way, marker in ((ratio > EDGES[1], "^"), (ratio < EDGES[0], "v")):
            if way.any():
                axes.plot(depth[way], _clipped(ratio[way]), marker, color=colour, mfc="none", ms=6, clip_on=False)
                beyond = True
    style.log_axis(axes)
    style.plain_ticks(axes)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("depth (layer / last layer)")
    axes.set_ylabel("KL of MLP over KL of operator, ratio")
    axes.set_title("MLP over operator, layer by layer")
    return beyond


def _findings(axes: Axes, dataset: xr.Dataset, palette: dict[str, str], rows: list[tuple[str, str]]) -> bool:
    axes.axvline(1, color=style.INK, lw=0.8)
    labels, y, before, beyond = [], 0.0, "", False
    for model, name in rows:
        y -= 1.0 if model == before or not before else 1.7
        before = model
        found = style.finding(dataset, name, model)
        assert found is not None
        labels.append((y, _ROWS[name].format(types=str(dataset["types"].sel(model=model).item()))))
        value, low, high = found["finding_number"].values
        if math.isnan(value):
            axes.text(1, y, f"  {found['finding_reason'].item()}", va="center", fontsize=7, color="#666666")
            continue
        colour = palette[model]
        fill = colour if found["finding_verdict"].item() == "supported" else "white"
        ends = _clipped(np.array([low, high]))
        axes.plot(ends, [y, y], color=colour, lw=2, solid_capstyle="butt", zorder=2)
        axes.plot(_clipped(np.array([value])), [y], "o", color=colour, mfc=fill, ms=5.5, gid=f"{model}-{name}")
        for end, marker, out in ((ends[0], "<", low < EDGES[0]), (ends[1], ">", high > EDGES[1])):
            if out:
                axes.plot([end], [y], marker, color=colour, mfc="white", ms=5, clip_on=False)
                beyond = True
        middle, *sides = found["finding_control"].values
        if not math.isnan(sides[0]):
            axes.plot(_clipped(np.array(sides)), [y - 0.33] * 2, color=style.CONTROL, lw=1.2)
            axes.plot(_clipped(np.array([middle])), [y - 0.33], "|", color=style.CONTROL, ms=5)
    style.log_axis(axes, "x")
    style.plain_ticks(axes, "x")
    axes.set_yticks([at for at, _ in labels], [text for _, text in labels], fontsize=7.5)
    axes.set_ylim(y - 0.8, -0.3)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("ratio, with its 95 % interval")
    axes.set_title("Over all layers, and by layer type")
    return beyond
