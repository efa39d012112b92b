"""How figures look: colours, sizes, footers; and how they are saved, byte for byte the same every time."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures.lettering import FONT, extra, fitted, width_of
from xatlas.drawing import asked_width
from xatlas.files import sha256
from xatlas.twins import training_seed

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

#: Raised whenever figures of the same data look different.
VERSION = "8"
#: Colours of the models that have a name here (Okabe and Ito 2008, Tol 2021).
FIXED = {
    "lfm2-mini": "#0072B2",
    "qwen-mini": "#D55E00",
    "smollm2-mini": "#009E73",
    "lfm2": "#56B4E9",
    "qwen": "#E69F00",
    "smollm2": "#CC79A7",
    "smollm2-135m-q4": "#882255",
}
#: Colours for all others; none of them is a fixed one.
OTHERS = ("#332288", "#999933", "#AA4499", "#661100", "#6699CC", "#B8A000", "#DD6677", "#225555")
#: Colours of factors and taps, the current token first; they are no models.
PARTS = ("#004488", "#BB5566", "#DDAA33", "#44AA99", "#999933", "#882255")
#: How training seeds 1 to 4 of a model differ from its colour: by that share towards white, or black where negative.
_SHADES = (-0.25, 0.35, -0.45, -0.65)
CONTROL = "#8A8A8A"
INK = "#222222"
#: Markers by operator type, and those that other types take in turn.
MARKERS = {
    **{"attention": "o", "conv": "^", "ssm": "s", "attention+ssm": "*", "linear_attention": "D", "recurrent": "P"},
    **{"mlp": "X", "experts": "v"},
}
_OTHER_MARKERS = ("h", "8", "d", "<", ">")
#: Mark of what lies beyond a panel, and what it is called.
BEYOND: dict[str, Any] = {"marker": "v", "ls": "none", "mfc": "none", "ms": 5}
_BEYOND = "beyond the panel, where triangles point"
#: Models side by side, at most; inches that each takes at least; font size of titles.
COLUMNS, _LEAST, _TITLE = 3, 2.2, 9.0
_INNER = "inner"
#: Label and line properties of what a legend explains.
Entries = list[tuple[str, dict[str, Any]]]
#: Draws one model's data in one colour; returns whether any of it is clipped.
Panel = Callable[["Axes", "xr.Dataset", str], bool]
#: Where effects end in logarithmic plots, in nats: below, they are 0 within numerical agreement.
FLOOR = 1e-4

_RC: dict[str, Any] = {
    "font.family": FONT,
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "xatlas",
    "path.simplify": False,
}
#: What differs in figures of a paper, which are shown as large as they are made.
_PAPER: dict[str, Any] = {"font.size": 8, "axes.titlesize": 8, "lines.linewidth": 1.2, "savefig.dpi": 300}
#: Font size of the footer.
_FOOT = 7


@contextmanager
def context() -> Iterator[None]:
    """Draw and save figures while the context lasts; the user's own settings stay out of it."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC | (_PAPER if asked_width.get() else {}))
        yield


def figure(width: float, height: float, footer: str) -> Figure:
    """Return an empty figure, sizes in inches, that says at its foot which suite it rests on.

    Where another width is asked for, it has that one: the type stays as large, so the height does.
    """
    from matplotlib.figure import Figure

    width = asked_width.get() or width
    made = Figure(figsize=(width, height), layout="constrained")
    text = fitted(footer, width - 0.2, _FOOT, lines=12)
    made.supxlabel(text, x=0.008, ha="left", fontsize=_FOOT, color="#666666")
    grow(made, extra([text], _FOOT))
    return made


def by_model(
    dataset: xr.Dataset,
    ax: Axes | None,
    said: Sequence[str],
    parts: Sequence[tuple[float, Panel]],
    entries: Entries,
    *,
    beyond: str = _BEYOND,
    below: tuple[float, Callable[[Axes], bool]] | None = None,
    after: Callable[[list[list[Axes]]], object] | None = None,
) -> Figure:
    """Draw the panels of each model below one another, and one below all of them; into ``ax`` the first panel alone.

    Of every panel ``parts`` and ``below`` say how many inches high it is, and what draws it. ``said`` is what was found
    about each model, ``entries`` explain marks, ``beyond`` what is clipped; ``after`` gets all panels.
    """
    models = list(map(str, dataset["model"].values))
    palette = colours(models)

    def explained(clipped: bool, what: str) -> Entries:
        return [*entries, *([(what, BEYOND)] if clipped else [])]

    with context():
        if ax is not None:
            clipped = parts[0][1](ax, layers(dataset.isel(model=0)), palette[models[0]])
            ax.set_title(fitted(f"{models[0]}: {said[0]}", 4.0, _TITLE), fontsize=_TITLE)
            ax.legend(handles=_handles(explained(clipped, _BEYOND)), fontsize=7)
            return ax.get_figure(root=True)  # type: ignore[return-value]
        made, panels, last = _blocks(dataset, said, [height for height, _ in parts], below[0] if below else 0.0)
        clipped = False
        for model, own in zip(models, panels, strict=True):
            one = layers(dataset.sel(model=model))
            for axes, (_, draw) in zip(own, parts, strict=True):
                clipped |= draw(axes, one, palette[model])
        if after:
            after(panels)
        if below and last:
            clipped |= below[1](last)
        legend(made, explained(clipped, beyond))
    return made


def _blocks(
    dataset: xr.Dataset, said: Sequence[str], parts: Sequence[float], below: float
) -> tuple[Figure, list[list[Axes]], Axes | None]:
    """Return a figure, the panels of each model, ``parts`` inches high, and the one below all of them.

    Models stand side by side as far as the width goes. The first panel of each says its name and what was found.
    """
    models = list(map(str, dataset["model"].values))
    asked, most = asked_width.get(), min(len(models), COLUMNS)
    columns = most if asked is None else max(1, min(most, int(asked / _LEAST)))
    width = asked or max(0.8 + 3.5 * columns, 5.6)
    room, rows = width / columns - 0.8, -(-len(models) // columns)
    parts = [part * (0.8 if columns == 1 < len(models) else 1) for part in parts]
    titles = [
        "\n".join(fitted(text, room, _TITLE, bold=True) for text in pair) for pair in zip(models, said, strict=True)
    ]
    height = rows * (sum(parts) + 0.2 + 0.3 * len(parts) + extra(titles, _TITLE))
    made = figure(width, 0.5 + height + below, dataset.attrs["suite"])
    top, bottom = np.asarray(made.subfigures(2, 1, height_ratios=[height, below])) if below else (made, None)
    grid = top.add_gridspec(rows * len(parts), columns, height_ratios=list(parts) * rows)
    panels, palette = [], colours(models)
    for i, model in enumerate(models):
        row, column = divmod(i, columns)
        places = [grid[len(parts) * row + part, column] for part in range(len(parts))]
        panels.append([top.add_subplot(place, gid=_INNER if column else None) for place in places])
        panels[-1][0].set_title(titles[i], color=palette[model])
    return made, panels, bottom.subplots() if bottom else None


def scale(panels: Sequence[Axes], colours_of: ScalarMappable, label: str, *, beyond: str) -> Colorbar:
    """Explain the colours of maps below them; pointed ends say where values lie beyond: neither, min, max or both."""
    holder, inches = panels[0].figure, asked_width.get() or 9.0
    rows = [axes.get_subplotspec().rowspan.stop for axes in panels]  # type: ignore[union-attr]
    bar = holder.colorbar(
        colours_of,
        ax=[axes for axes, row in zip(panels, rows, strict=True) if row == max(rows)],
        label=label,
        extend=beyond,
        location="bottom",
        shrink=0.6,
        aspect=6 * inches,
    )
    bar.minorticks_off()
    return bar


def label_y(axes: Axes, text: str) -> None:
    """Label the y axis, but of panels that have their like to the left."""
    if axes.get_gid() != _INNER:
        axes.set_ylabel(text)


def panels(made: Figure, n: int, *, least: float = 2.4, ratios: Sequence[float] | None = None) -> list[Axes]:
    """Return ``n`` panels side by side, ``ratios`` as wide; below one another what would be narrower than ``least``.

    The figure's height is that of one row; it grows with every other.
    """
    width, height = made.get_size_inches()
    columns = max(1, min(n, int(width / least)))
    rows = -(-n // columns)
    grow(made, (rows - 1) * max(height - 0.8, 1.5))  # legend and footer stand there once
    drawn = made.subplots(rows, columns, squeeze=False, width_ratios=ratios if columns == n else None).ravel()
    for unused in drawn[n:]:
        unused.remove()
    return list(drawn[:n])


def within(inches: float) -> float:
    """Return the room for a name beside a panel: less than usual in a figure that is asked for narrow."""
    return min(inches, 0.3 * (asked_width.get() or 40.0))


def grow(made: Figure, inches: float) -> None:
    """Make room for what a figure holds beyond what its height was chosen for."""
    width, height = made.get_size_inches()
    made.set_size_inches(width, height + inches)


def colours(models: Iterable[str]) -> dict[str, str]:
    """Return a colour per model slug, in their order: the fixed one, or one derived from the slug.

    A model keeps its colour from figure to figure, unless two unnamed models in one figure would share it:
    then the one later in the alphabet takes the next. Its training seeds have shades of it.
    """
    models = list(models)
    seeds = {model: training_seed(model) for model in models}
    found: dict[str, str] = {}
    for model in sorted({name for name, _ in seeds.values()}):
        start = int(sha256(model.encode()), 16) % len(OTHERS)
        order = [*OTHERS[start:], *OTHERS[:start]]
        free = (colour for colour in order if colour not in found.values())
        found[model] = FIXED[model] if model in FIXED else next(free, order[0])
    return {model: _shaded(found[name], seed) for model, (name, seed) in seeds.items()}


def _shaded(colour: str, seed: int) -> str:
    from matplotlib.colors import to_hex, to_rgb

    share = _SHADES[(seed - 1) % len(_SHADES)] if seed else 0.0
    return to_hex(np.array(to_rgb(colour)) * (1 - abs(share)) + max(share, 0.0)).upper()


def finding(dataset: xr.Dataset, name: str, model: str) -> xr.Dataset | None:
    """Return one finding about a model, by the name of its claim."""
    about = {"name": name, "model": model, "model_other": ""}
    at = np.logical_and.reduce([dataset[f"finding_{part}"].values == value for part, value in about.items()])
    return dataset.isel(finding=int(at.argmax())) if at.any() else None


def counted(title: str, dataset: xr.Dataset, claim: str) -> str:
    """Return a title with how many of the models a claim is supported of, of one its verdict: a question if not so."""
    shown = dataset["finding_model"].isin(dataset["model"]) & (dataset["finding_model_other"] == "")
    verdicts = dataset["finding_verdict"].values[(shown & (dataset["finding_name"] == claim)).values].tolist()
    if not claim or not verdicts:
        return title
    count = dataset.sizes["model"]
    if count == 1:
        return f"{title}{':' if verdicts[0] == 'supported' else '?'} {verdicts[0]}"
    return f"{title} in {verdicts.count('supported')} of {count}"


def said(dataset: xr.Dataset, name: str, absent: str) -> list[str]:
    """Return what was found about each model, in a few words."""
    told = []
    for model in map(str, dataset["model"].values):
        found = finding(dataset, name, model)
        if found is None or math.isnan(found["finding_number"].values[0]):
            told.append(absent if found is None else str(found["finding_reason"].item()) or absent)
            continue
        short, verdict, reason = (str(found[f"finding_{part}"].item()) for part in ("short", "verdict", "reason"))
        because = reason.replace(" = ", "=")  # a number stays on its line
        told.append(f"{short}: {verdict}" + (f" ({because})" if because and verdict != "artefact" else ""))
    return told


def having(dataset: xr.Dataset, name: str) -> tuple[xr.Dataset, list[str]]:
    """Return the data of models that have something of a variable, and the names of the others."""
    there = dataset[name].notnull().any([dim for dim in dataset[name].dims if dim != "model"]).values
    return dataset.isel(model=np.flatnonzero(there)), list(map(str, dataset["model"].values[~there]))


def empty(width: float, height: float, footer: str, what: str) -> Figure:
    """Return a figure that says that no model has something."""
    with context():
        made = figure(width, height, footer)
        axes = made.subplots()
        axes.set_axis_off()
        axes.text(0.5, 0.5, f"no model here has {what}", ha="center", va="center", color="#666666")
    return made


def kinds(dataset: xr.Dataset) -> Entries:
    """Return what explains the markers of operator types."""
    types = sorted(set(dataset["operator_type"].values.ravel().tolist()) - {""})
    return [(f"{kind} layer", {"marker": marker(kind), "ls": "none", "ms": 4}) for kind in types]


def layers(one: xr.Dataset) -> xr.Dataset:
    """Return the data of a model's own layers, without those that only others have."""
    return one.isel(layer=np.flatnonzero(np.isfinite(one["depth"].values))) if "depth" in one else one


def marker(operator_type: str) -> str:
    """Return the marker of an operator type, in every figure the same."""
    other = int(sha256(operator_type.encode()), 16) % len(_OTHER_MARKERS)
    return MARKERS.get(operator_type, _OTHER_MARKERS[other])


def _handles(entries: Entries) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], label=text, **{"color": INK, **look}) for text, look in entries]


def legend(made: Figure, entries: Entries) -> None:
    """Explain marks once for all panels, above them: ``(label, line properties)`` each."""
    size, width = _RC["legend.fontsize"], made.get_size_inches()[0] - 0.3
    shown = [(fitted(label, min(width - 0.5, 3.0), size), look) for label, look in entries]
    wide = [max(width_of(line, size) for line in text.split("\n")) + 4.2 * size / 72 for text, _ in shown]

    def columns(count: int) -> list[slice]:
        """Return which entries stand in each column, as matplotlib fills them."""
        sizes = [len(shown) // count + (at < len(shown) % count) for at in range(count)]
        return [slice(sum(sizes[:at]), sum(sizes[: at + 1])) for at in range(count)]

    fit = (n for n in range(len(shown), 1, -1) if sum(max(wide[part]) for part in columns(n)) <= width)
    count = next(fit, 1)
    made.legend(handles=_handles(shown), loc="outside upper right", ncols=count, columnspacing=1.2)
    rows = [sum(1 + text.count("\n") for text, _ in shown[part]) for part in columns(count)]
    grow(made, (max(rows) - 1) * size * 1.65 / 72)


def layer_axis(axes: Axes, n_layers: int) -> None:
    """Label the x axis with whole layer numbers, few enough to be read."""
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50) if n_layers / step <= 9 or step == 50)
    axes.set_xticks(range(0, n_layers, step))
    room = 0.6 if n_layers > 2 else 1.5
    axes.set_xlim(-room, n_layers - 1 + room)


def log_axis(axes: Axes, which: str = "y", about: tuple[float, float] | None = None) -> None:
    """Make an axis that holds its marks logarithmic, with round ticks; of ratios it reaches from and to ``about``."""
    from matplotlib.ticker import NullLocator

    axes.set(**{f"{which}scale": "log"})
    getattr(axes, f"{which}axis").set_minor_locator(NullLocator())  # those take most of the time to draw
    low, high = getattr(axes, f"get_{which}lim")()
    if about:
        low, high = min(low, about[0]), max(high, about[1])
    ticks = round_ticks(low, high)
    axes.set(**{f"{which}lim": (low, high)})
    getattr(axes, f"set_{which}ticks")(ticks, [f"{tick:g}" for tick in ticks])


def round_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten between two numbers, 1 among them where it lies there; more where that would be few."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8)):
        found = [step * 10.0**power for power in range(-9, 10) for step in steps if low <= step * 10.0**power <= high]
        if len(found) > 2:
            break
    step = max(1, -(-len(found) // 5))  # few enough to stand beside one another
    return found[found.index(1.0) % step if 1.0 in found else 0 :: step]


#: What each format would say about when and by what it was made.
_NAMED = {"png": ("Software",), "svg": ("Date", "Creator"), "pdf": ("CreationDate", "Creator", "Producer")}


def saved(made: Figure, kind: str) -> bytes:
    """Return a figure in a format, without dates or versions in it."""
    drawn = io.BytesIO()
    made.savefig(drawn, format=kind, metadata=dict.fromkeys(_NAMED[kind]))
    return drawn.getvalue()
