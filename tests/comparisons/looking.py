"""What stands in a figure, as a reader sees it: texts with their boxes, ticks, marks."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def boxes(figure):
    """Return the box of every text that is shown, legends as one, once the figure is laid out."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    inside = {text for legend in legends for text in legend.findobj(Text)}
    found = {}
    for text in figure.findobj(lambda artist: isinstance(artist, Text) and artist not in inside):
        axis = getattr(text, "axes", None)
        if text.get_visible() and text.get_text().strip() and not (axis is not None and not axis.get_visible()):
            found[text.get_text(), id(text)] = text.get_window_extent(renderer)
    shown = {text: box for text, box in found.items() if box.width and box.height}
    return shown | {("legend", i): legend.get_window_extent(renderer) for i, legend in enumerate(legends)}


def drawn_ticks(figure):
    """Hide the labels that an axis holds beyond its limits: they are not drawn."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            kept = axis._update_ticks()
            for tick in {*axis.get_major_ticks(), *axis.get_minor_ticks()} - set(kept):
                tick.label1.set_visible(False)


def marks(lines):
    """Return marker and whether it is hollow; triangles at an edge, wherever they point, are one mark."""
    found = set()
    for line in lines:
        marker, hollow = str(line.get_marker()), line.get_markerfacecolor() in ("none", "white")
        if marker not in ("", "None", ".") and np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any():
            found.add(("v" if hollow and marker in "<>^" else marker, hollow))
    return found


def rows(axes):
    """Return what stands in a panel of rows: name of the row and colour → sorted numbers at one height, of each height.

    A number and its interval that belong together lie at one height: three numbers, the number between its ends.
    """
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    names = {at: text.get_text().replace("\n", "") for at, text in ticks}
    held = {}
    for line in axes.lines:
        x, y = (np.asarray(each, dtype=float) for each in line.get_data())
        if len(set(y)) == 1:
            row = names[min(names, key=lambda at: abs(at - y[0]))]
            held.setdefault((round(y[0], 6), row, line.get_color()), []).extend(x.tolist())
    found = {}
    for (_, row, colour), numbers in sorted(held.items(), key=lambda each: -each[0][0]):
        found.setdefault((row, colour), []).append(sorted(numbers))
    return found


def shows(line, values):
    """Tell whether a line goes through these numbers, with gaps where they are absent."""
    drawn = np.asarray(line.get_ydata(), dtype=float)
    return drawn.shape == values.shape and np.allclose(drawn, values, equal_nan=True)


def explained(figure):
    """Return what the legend says → the mark that it says it of."""
    (legend,) = figure.legends
    lines = zip(legend.get_texts(), legend.get_lines(), strict=True)
    return {text.get_text().replace("\n", " "): line for text, line in lines}


def look(line):
    """Return what tells a line or mark from others."""
    parts = (
        line.get_color(),
        line.get_marker(),
        line.get_markersize(),
        line.get_markerfacecolor(),
        line.get_linewidth(),
    )
    return str((*parts, line.get_markeredgecolor(), line._unscaled_dash_pattern))
