"""Views of one text: what their data say, how they are drawn, and the files that they are kept in."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.figures.style import saved
from xatlas.drawing import VIEW
from xatlas.files import digest, write_atomic
from xatlas.results.store import encode
from xatlas.text import one_line, spreadsheet_cell

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: Most positions that a figure shows, and most characters of a token in it.
_POSITIONS, _CHARACTERS = 16, 9
#: Most tokens on the axes of a map of attention, and most maps side by side.
_TOKENS, _MAPS = 16, 6
_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "svg.hashsalt": "xatlas",
    "text.parse_math": False,  # tokens may hold dollars
}


def settled(dataset: xr.Dataset) -> str:
    """Say from which layer on, to the end, the output's first token or the target is first at the last position."""
    last = dataset.isel(position=-1)
    if "target_rank" in dataset:
        token, first = dataset.attrs["target"], last["target_rank"].values == 1
    else:
        token = str(last["top_token"].values[-1])
        first = last["top_token"].values == token
    if not first[-1]:
        return f"{visible(token)} ends at rank {last['target_rank'].values[-1]:.0f}"
    since = len(first) - int(np.argmin(first[::-1]) or len(first))
    where = f"layer {since - 1} of 0 to {len(first) - 2} on" if since else "the embedding on"
    return f"{visible(token)} is the likeliest from {where}"


def visible(token: str) -> str:
    """Return a token with its spaces, line breaks and marks that show nothing to be seen."""
    signs = {" ": "·", "\n": "⏎", "\t": "→"}
    shown = (signs.get(mark, mark) for mark in token)
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in shown)


def shortened(token: str, most: int = _CHARACTERS) -> str:
    """Return a token's beginning, visible."""
    token = visible(token)
    return token if len(token) <= most else f"{token[: most - 1]}…"


def lens_cells(dataset: xr.Dataset) -> tuple[list[list[str]], np.ndarray]:
    """Return what a lens shows at each site and position, the target's rank or the first token, and its probability."""
    if "target_rank" in dataset:
        ranks = [[f"{rank:.0f}" for rank in row] for row in dataset["target_rank"].values]
        return ranks, dataset["target_probability"].values
    tokens = [[visible(str(token)) for token in row] for row in dataset["top_token"].values]
    return tokens, dataset["top_probability"].values


def draw_lens(dataset: xr.Dataset) -> Figure:
    """Draw a lens as layers over positions, the output on top: tokens or ranks, shaded by their probability."""
    from matplotlib import style
    from matplotlib.figure import Figure

    shown = dataset.isel(position=slice(-_POSITIONS, None))
    words, chance = lens_cells(shown)
    rows, columns = chance.shape
    with style.context(_RC, after_reset=True):
        figure = Figure(figsize=(max(5.0, 1.9 + 0.62 * columns), 1.3 + 0.21 * rows), layout="constrained")
        axes = figure.subplots()
        mesh = axes.pcolormesh(
            np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, chance, cmap="Blues", vmin=0, vmax=1
        )
        for row, column in np.ndindex(rows, columns):
            ink = "white" if chance[row, column] > 0.55 else "#222222"
            axes.text(column, row, shortened(words[row][column]), fontsize=6.5, ha="center", va="center", color=ink)
        heads = [shortened(str(token)) for token in shown["token"].values]
        axes.set_xticks(range(columns), heads, fontsize=6.5)
        axes.set_yticks(range(rows), ["embedding", *map(str, range(rows - 1))], fontsize=7.5)
        axes.tick_params(length=0)
        axes.set_xlabel("token that is read")
        axes.set_ylabel("after layer")
        figure.colorbar(mesh, ax=axes, label="probability", aspect=30, pad=0.01)
        target = dataset.attrs["target"]
        what = f"rank of {visible(target)}" if target else "likeliest next token"
        left = dataset.sizes["position"] - columns
        more = f" (the last {columns} of {left + columns} positions)" if left else ""
        title = f"{dataset.attrs['model']}: {what} by layer{more}\n{settled(dataset)}"
        axes.set_title(title, loc="left", fontsize=8.5, fontweight="bold")
    return figure


def draw_attention(dataset: xr.Dataset) -> Figure:
    """Draw a map for each head, queries over keys, in one scale; tokens stand on the axes where they fit."""
    from matplotlib import style
    from matplotlib.figure import Figure

    pattern = dataset["pattern"].values
    heads, n, _ = pattern.shape
    rows = -(-heads // _MAPS)
    columns = -(-heads // rows)
    words = [shortened(str(token)) for token in dataset["key_token"].values]
    tokens = n <= _TOKENS
    size = max(1.5, 0.13 * n) if tokens else 1.5
    with style.context(_RC, after_reset=True):
        height = 0.75 + rows * (size + 0.3) + 0.5 * tokens
        figure = Figure(figsize=(max(4.5, 1.4 + columns * (size + 0.15)), height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        shown = np.where(np.tri(n, dtype=bool), pattern, np.nan)
        for axes, head, values in zip(grid.ravel(), dataset["head"].values, shown, strict=False):
            mesh = axes.pcolormesh(np.arange(n + 1) - 0.5, np.arange(n + 1) - 0.5, values, cmap="Blues", vmin=0, vmax=1)
            axes.set(aspect="equal", facecolor="#F4F4F4", ylim=(n - 0.5, -0.5))
            axes.set_title(f"head {head}: {_looks(dataset.sel(head=head))}", fontsize=7.5)
            axes.tick_params(length=0, labelsize=6)
            for axis in (axes.xaxis, axes.yaxis) if tokens else ():
                axis.set_ticks(range(n), words)
        for axes in grid.ravel()[heads:]:
            axes.set_visible(False)
        for column in range(columns):
            lowest = grid[(heads - 1 - column) // columns, column]
            lowest.tick_params(labelbottom=True, labelrotation=0)
            if tokens:
                lowest.tick_params(axis="x", labelrotation=90)

        figure.colorbar(mesh, ax=list(grid.ravel()), label="attention weight", fraction=0.03, pad=0.01)
        figure.supxlabel("token looked at" if tokens else "position looked at", fontsize=8)
        figure.supylabel("looking token" if tokens else "looking position", fontsize=8)
        attrs = dataset.attrs
        title = f"{attrs['model']}, layer {attrs['layer']}: {drawn_to(dataset)}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    return figure


def _looks(one: xr.Dataset) -> str:
    """Say in two words which of position 0 and the previous token a head looks at more, and with what weight."""
    scores = {"position 0": float(one["first_weight"]), "the previous": float(one["previous_score"])}
    known = {name: score for name, score in scores.items() if np.isfinite(score)}
    best = max(known, key=known.__getitem__, default="")
    return f"{known[best]:.2f} on {best}" if best else "–"


def drawn_to(dataset: xr.Dataset) -> str:
    """Say how much of a layer's attention lies on position 0 and on the previous token."""
    first, previous = (float(dataset[name].mean()) for name in ("first_weight", "previous_score"))
    if not np.isfinite([first, previous]).all():
        return "the text is too short to say where heads look"
    return f"position 0 draws {first:.2f} of its heads' attention, the previous token {previous:.2f}"


def export(dataset: xr.Dataset, folder: Path) -> list[Path]:
    """Write a view's figure as PNG and SVG, and the data beside it as netCDF and CSV; return the files.

    Their name is the view's, the model's, and the text's beginning, with a digest of all that makes the view: another
    text is another file.
    """
    from matplotlib import style

    figure = draw_lens(dataset) if dataset.attrs[VIEW] == "lens" else draw_attention(dataset)
    attrs = {name: str(value) for name, value in dataset.attrs.items()}
    words = re.sub(r"[^a-z0-9]+", "-", one_line(attrs.get("text", "")).lower()).strip("-")[:24].rstrip("-")
    stem = "-".join(filter(None, (attrs[VIEW], attrs["model"], words, digest(attrs)[:6])))
    with style.context(_RC, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        made = {kind: saved(figure, kind) for kind in ("png", "svg")}
    table = dataset.to_dataframe().reset_index().map(spreadsheet_cell)
    made |= {"csv": table.to_csv(index=False, lineterminator="\n").encode(), "nc": encode(dataset)}
    paths = {kind: folder / f"{stem}.{kind}" for kind in made}
    for kind, path in paths.items():
        write_atomic(path, made[kind])
    return list(paths.values())
