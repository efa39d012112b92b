"""The figure of what breaks: a map of layers or heads against categories of tests, model by model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xatlas.comparisons.figures import lettering, style

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from xatlas import Finding

_NAMES = 7
_BREAKS: dict[str, Any] = {"marker": "o", "ls": "none", "ms": 3, "color": style.INK}


def draw(dataset: xr.Dataset, findings: Sequence[Finding]) -> Figure:
    """Draw the share of tests lost beyond the control; a mark where a finding ``removed: category`` is supported."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    models = list(map(str, dataset["model"].values))
    beyond = (dataset["loss"] - dataset["control"]).sel(bound="value")
    categories = [lettering.fitted(str(name), 1.6, _NAMES) for name in dataset["category"].values]
    broken = {(each.model, each.name) for each in findings if each.verdict == "supported"}
    norm = Normalize(-1, 1)
    scale = ScalarMappable(norm, "RdBu_r")
    claimed = [[each.verdict == "supported" for each in findings if each.model == model] for model in models]
    said = [f"{sum(own)} of {len(own)} claims hold" for own in claimed]

    def panel(axes: Axes, one: xr.Dataset, _: str) -> bool:
        model = str(one["model"].item())
        own = beyond.sel(model=model).dropna("removed", how="all")
        names = list(map(str, own["removed"].values))
        axes.pcolormesh(own.transpose("removed", "category").values, cmap=scale.cmap, norm=norm, gid=model)
        for y, removed in enumerate(names):
            for x, category in enumerate(map(str, own["category"].values)):
                if (model, f"{removed}: {category}") in broken:
                    axes.plot([x + 0.5], [y + 0.5], **_BREAKS)
        axes.set_xticks([x + 0.5 for x in range(len(categories))], categories, fontsize=_NAMES, rotation=90)
        axes.set_yticks([y + 0.5 for y in range(len(names))], names, fontsize=_NAMES)
        axes.invert_yaxis()
        axes.grid(visible=False)
        return False

    def explain(panels: list[list[Axes]]) -> None:
        style.scale([axes for (axes,) in panels], scale, "share of tests lost beyond the control", beyond="neither")

    entries: style.Entries = [("breaks: claim supported", _BREAKS)]
    parts = [(1.6 + 0.15 * beyond.sizes["removed"], panel)]
    return style.by_model(dataset, None, said, parts, entries, after=explain)
