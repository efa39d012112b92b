"""How figures look: colours, sizes, footers; and how they are saved, byte for byte the same every time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Raised whenever figures of the same data look different.
VERSION = "1"
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
CONTROL = "#8A8A8A"
INK = "#222222"
#: Markers by operator type; any other type takes a diamond.
MARKERS = {"attention": "o", "conv": "^", "ssm": "s"}
#: Where effects end in logarithmic plots, in nats: below, they are 0 within numerical agreement.
FLOOR = 1e-4

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
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
    "svg.hashsalt": "xatlas",
    "path.simplify": False,
}


def context() -> AbstractContextManager[None]:
    """Return the context in which figures are drawn and saved; the user's own settings stay out of it."""
    import matplotlib

    class _Context:
        def __enter__(self) -> None:
            self._inner = matplotlib.rc_context()
            self._inner.__enter__()
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_RC)

        def __exit__(self, *error: Any) -> None:
            self._inner.__exit__(*error)

    return _Context()


def figure(width: float, height: float, footer: str) -> Figure:
    """Return an empty figure, sizes in inches, that says at its foot which suite it rests on."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    made.supxlabel(footer, x=0.008, ha="left", fontsize=6.5, color="#666666")
    return made


def colours(models: Iterable[str]) -> dict[str, str]:
    """Return a colour per model slug: the fixed one, or one derived from the slug.

    A model keeps its colour from figure to figure, unless two unnamed models in one figure would share it:
    then the one later in the alphabet takes the next.
    """
    found: dict[str, str] = {}
    for model in sorted(set(models)):
        if model in FIXED:
            found[model] = FIXED[model]
            continue
        start = int(hashlib.sha256(model.encode()).hexdigest(), 16) % len(OTHERS)
        order = [*OTHERS[start:], *OTHERS[:start]]
        found[model] = next((colour for colour in order if colour not in found.values()), order[0])
    return found


def marker(operator_type: str) -> str:
    """Return the marker of an operator type."""
    return MARKERS.get(operator_type, "D")


def legend(made: Figure, entries: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Explain marks once for all panels, above them: ``(label, line properties)`` each."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **({"color": INK} | look), label=label) for label, look in entries]
    made.legend(handles=handles, loc="outside upper right", ncols=len(handles), columnspacing=1.2)


def layer_axis(axes: Axes, n_layers: int) -> None:
    """Label the x axis with whole layer numbers, few enough to be read."""
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50) if n_layers / step <= 9 or step == 50)
    axes.set_xticks(range(0, n_layers, step))
    room = 0.6 if n_layers > 2 else 1.5
    axes.set_xlim(-room, n_layers - 1 + room)


def log_axis(axes: Axes, which: str = "y") -> None:
    """Make an axis logarithmic without minor ticks: those take most of the time to draw."""
    from matplotlib.ticker import NullLocator

    axes.set(**{f"{which}scale": "log"})
    getattr(axes, f"{which}axis").set_minor_locator(NullLocator())


def round_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5, 10, … between two numbers; powers of ten only where that would be many."""
    steps = (1, 2, 5) if high / low < 400 else (1,)
    return [step * 10.0**power for power in range(-9, 10) for step in steps if low <= step * 10.0**power <= high]


def plain_ticks(axes: Axes, which: str = "y") -> None:
    """Give a logarithmic axis of ratios ticks at 1, 2, 5, 10, … and room to at least 0.5 and 2."""
    low, high = getattr(axes, f"get_{which}lim")()
    low, high = min(low, 0.5), max(high, 2.0)
    ticks = round_ticks(low, high)
    axes.set(**{f"{which}lim": (low, high)})
    getattr(axes, f"set_{which}ticks")(ticks, [f"{tick:g}" for tick in ticks])


def arrange(made: Figure) -> None:
    """Lay a finished figure out, once: saving it in two formats need not do it four times."""
    with context():
        made.draw_without_rendering()
        made.set_layout_engine("none")


def save(made: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the path's suffix, without dates or versions in it."""
    named = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    with context():
        made.savefig(path, format=path.suffix[1:], metadata=named)
