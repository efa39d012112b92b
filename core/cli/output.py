"""What commands print: lines, tables and JSON on stdout, safe for terminals."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

import typer

from xatlas.text import printable

if TYPE_CHECKING:
    import xarray as xr

#: What tables are printed from: column → cell.
Rows = Sequence[Mapping[str, Any]]

#: Width of a table that no terminal shows.
_ENDLESS = 10**6
#: Widest that a comparison's table may be.
WIDTH = 100
#: Columns that stay longest where not all fit: what a row is about, what was found, and how far to trust it.
LATEST = ("number", "value", "verdict", "sensitivity")


def echo(text: str) -> None:
    """Print text."""
    typer.echo(printable(text))


def wrapped(text: str, first: str = "", rest: str = "") -> str:
    """Return a paragraph in lines of at most ``WIDTH`` characters, the first and the rest behind these."""
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=rest)


def print_json(value: Any) -> None:
    """Print a value for a program: dataclasses as objects, numbers that are not finite as null."""
    narrow = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "") != "utf8"
    text = json.dumps(_finite(value), indent=2, ensure_ascii=narrow, allow_nan=False, default=str)
    # What a terminal would obey is escaped as JSON does it: programs read the same text.
    typer.echo("".join(mark if printable(mark) == mark else f"\\u{ord(mark):04x}" for mark in text))


def _finite(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_rows(rows: Rows, as_json: bool) -> None:
    """Print what a command has collected: a table for people, JSON for programs."""
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows)
    else:
        echo("none")


def fitting(rows: Rows, width: int = WIDTH) -> tuple[Rows, list[str]]:
    """Return rows with the columns that fit a width, and the names of the others: the last go first, see ``LATEST``.

    Columns that hold nothing are left out.
    """
    named = dict.fromkeys(name for row in rows for name in row)
    columns = [name for at, name in enumerate(named) if at == 0 or any(row.get(name, "–") != "–" for row in rows)]
    widths = {name: max(len(_cell(each)) for each in [name, *(row.get(name, "") for row in rows)]) for name in columns}
    going = sorted(columns[1:], key=lambda name: (name in LATEST, -columns.index(name)))
    kept = list(columns)
    while going and sum(widths[name] for name in kept) + 2 * (len(kept) - 1) > width:
        kept.remove(going.pop(0))
    left = [name for name in columns if name not in kept]
    return [{name: row.get(name, "") for name in kept} for row in rows], left


def summarised(dataset: xr.Dataset) -> Rows:
    """Return a row per numeric variable: its mean over prompts is at most how much, and where."""
    rows = []
    for name, array in dataset.data_vars.items():
        if array.dtype.kind not in "fiu" or not array.size:
            continue
        values = array.mean([dim for dim in ("prompt", "draw") if dim in array.dims], keep_attrs=True)
        if not bool(values.notnull().any()):
            continue
        best = values.isel(values.argmax(...)) if values.dims else values
        where = ", ".join(f"{dim} {best[dim].item()}" for dim in values.dims if dim in best.coords)
        rows.append(
            {
                "variable": str(name),
                "dimensions": " × ".join(f"{dim} {size}" for dim, size in array.sizes.items()),
                "mean": float(values.mean()),
                "largest": float(best),
                "at": where or "–",
                "unit": str(array.attrs.get("units", "")),
            }
        )
    return rows


def print_table(rows: Rows) -> None:
    """Print rows under their column names, numbers to the right; on a terminal, cells are wrapped between words."""
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    rule = Box("    \n    \n -  \n    \n    \n    \n    \n    \n", ascii=True)  # under the heads, and no other line
    table = Table(box=rule, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[_cell(row.get(name, "")) for name in columns] for row in rows]
    for name, head, *cells in zip(columns, map(_cell, columns), *lines, strict=True):
        right = all(isinstance(row.get(name), int | float) for row in rows)
        longest = max(map(len, " ".join([head, *cells]).split()), default=0)
        table.add_column(Text(head), justify="right" if right else "left", min_width=longest)
    for line in lines:
        table.add_row(*map(Text, line))  # a Text holds no markup
    terminal = sys.stdout.isatty()
    width = (os.get_terminal_size(sys.stdout.fileno()).columns or 80) if terminal else _ENDLESS
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=terminal, force_jupyter=False).print(table, crop=False)
    for printed in text.getvalue().splitlines():
        typer.echo(printed.rstrip())


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}"
    return printable(str(value)).replace("\n", "\\n").replace("\t", "\\t")
