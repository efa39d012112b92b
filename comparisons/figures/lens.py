"""The figure of the logit lens: how often and how near the answer is on top over depth, and from which depth on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures import lettering, style
from xatlas.drawing import asked_width
from xatlas.text import span

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Font size of the models' names beside the depths.
_NAMES = 8
#: Most models whose intervals are drawn as bands.
_MOST = 3
_CHANCE: dict[str, Any] = {"marker": "o", "ls": "none", "mfc": "none", "mec": style.CONTROL, "ms": 5}
_OPEN: dict[str, Any] = {"marker": "o", "mfc": "white", "ms": 6, "lw": 2.5}
_SETTLED: dict[str, Any] = {"marker": "D", "ls": "none", "mfc": "white", "ms": 4}
_TWIN: dict[str, Any] = {"marker": "|", "ls": "none", "color": style.CONTROL, "ms": 8}
_UNIFORM: dict[str, Any] = {"ls": (0, (1, 1)), "lw": 1}


def draw(dataset: xr.Dataset) -> Figure:
    """Draw the share of right prompts with the answer on top, its rank, and the depths from which on it is."""
    models = list(map(str, dataset["model"].values))
    palette = style.colours(models)
    with style.context():
        names = [lettering.fitted(model, style.within(1.5), _NAMES) for model in models]
        row = max(0.5, 0.3 + lettering.extra(names, _NAMES))
        narrow = asked_width.get() is not None
        height = max(3.6, 1.6 + row * len(models))
        made = style.figure(10.6, 7.0 + height if narrow else height, dataset.attrs["suite"])
        top, rank, depth = made.subplots(3, 1, height_ratios=[1, 1, 1.2]) if narrow else made.subplots(1, 3)
        _curves(top, dataset, palette, "on_top", (0.0, 1.0))
        top.set_ylim(-0.03, 1.03)
        top.set_yticks([0, 0.5, 1])
        top.set_ylabel("share of prompts it gets right")
        top.set_title(f"On top in half of them from {_from(dataset['on_top'] >= 0.5)}")
        _curves(rank, dataset, palette, "rank", (1.0, math.inf))
        for model, colour in palette.items():  # the geometric mean of ranks that are drawn at random
            rank.axhline(float(dataset["vocabulary"].sel(model=model)) / math.e, color=colour, **_UNIFORM)
        style.log_axis(rank)
        rank.set_ylabel("rank of the answer, geometric mean")
        rank.set_title(f"Among the first ten from {_from(dataset['rank'] <= 10)}")
        twins = _depths(depth, dataset, palette, names)
        entries = [(model, {"color": palette[model], "marker": "o", "ms": 3}) for model in models]
        entries += [
            ("hollow: not supported", _OPEN),
            ("layers in random order", _CHANCE),
            ("its own first token, all prompts", _SETTLED),
        ]
        entries += [("the same in untrained twins", _TWIN)] if twins else []
        style.legend(made, [*entries, ("rank at random", _UNIFORM)])
    return made


def _curves(axes: Axes, dataset: xr.Dataset, palette: dict[str, str], name: str, ends: tuple[float, float]) -> None:
    """Draw a curve per model; of its interval what lies within what the number can be."""
    for model, colour in palette.items():
        one = dataset[name].sel(model=model)
        depth = one["depth"].values
        there = np.isfinite(depth)
        value, low, high = (one.sel(bound=bound).values[there] for bound in dataset["bound"].values)
        if len(palette) <= _MOST:
            axes.fill_between(depth[there], np.clip(low, *ends), np.clip(high, *ends), color=colour, alpha=0.15, lw=0)
        axes.plot(depth[there], value, color=colour, marker="o", ms=3, gid=f"{name}-{model}")
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("depth (layer / last layer)")


def _from(holds: xr.DataArray) -> str:
    """Say from which depth on something holds up to the last layer: the span over models in which it ever does."""
    found = []
    for one in holds.sel(bound="value"):
        there = np.isfinite(one["depth"].values)
        failing = np.flatnonzero(~one.values[there])
        after = one["depth"].values[there][failing[-1] + 1 if failing.size else 0 :]
        found += list(after[:1])
    return f"depth {span(found, '.2f')}" if found else "no depth"


def _depths(axes: Axes, dataset: xr.Dataset, palette: dict[str, str], names: list[str]) -> bool:
    """Draw each model's depth with chance and twins; return whether there are any twins."""
    shown, twins = [], False
    for model, colour in palette.items():
        y = -list(map(str, dataset["model"].values)).index(model)
        found = style.finding(dataset, "onset", model)
        assert found is not None
        value, low, high = found["finding_number"].values
        if math.isnan(value):
            axes.text(0.02, y, str(found["finding_reason"].item()), va="center", fontsize=7.5, color="#666666")
        else:
            shown.append(value)
            axes.plot(np.clip([low, high], 0, 1), [y, y], color=colour, lw=2.5, solid_capstyle="butt")
            fill = colour if found["finding_verdict"].item() == "supported" else "white"
            axes.plot([value], [y], "o", color=colour, mfc=fill, ms=6, gid=f"onset-{model}")
            middle, *ends = found["finding_control"].values
            axes.plot(np.clip(ends, 0, 1), [y - 0.2] * 2, color=style.CONTROL, lw=1)
            axes.plot([middle], [y - 0.2], **_CHANCE)
        axes.plot([float(dataset["settled"].sel(model=model, bound="value"))], [y - 0.4], color=colour, **_SETTLED)
        for twin in found["twin"].sel(bound="value").values:
            twins |= bool(math.isfinite(twin))
            axes.plot([twin], [y - 0.4], **_TWIN)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-len(names) + 0.3, 0.5)
    axes.set_yticks([-i for i in range(len(names))], names, fontsize=_NAMES)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("depth (layer / last layer)")
    axes.set_title(f"On top for good from depth {span(shown, '.2f')}" if shown else "On top for good")
    return twins
