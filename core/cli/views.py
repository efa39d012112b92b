"""The commands that show one text or one model: a table on the terminal, a figure with its data beside it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xatlas.cli import options
from xatlas.cli.app import command
from xatlas.cli.output import WIDTH, echo, fitting, print_json, print_table, wrapped

if TYPE_CHECKING:
    import xarray as xr


Text = Annotated[str, typer.Argument(help="What the model reads.")]
Figures = Annotated[Path, typer.Option(help="Folder for figures/.")]

#: Marks of a probability, and from where on each stands.
_SHADES = {0.9: "█", 0.6: "▓", 0.3: "▒", 0.1: "░", 0.0: " "}


@command()
@options.configured("draws", "seed", "suite", "reference")
def lens(
    model: options.Model,
    text: Text,
    target: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="Show this token's rank in place of the likeliest token.")
    ] = None,
    *,
    out: Figures = Path("."),
    as_json: options.Json = False,
    **config: Any,
) -> None:
    """Show what a model would say after each layer, at every token of a text (the logit lens)."""
    from xatlas import api, views

    dataset = api.lens(model, text, target=target, **config)
    files = views.save(views.draw_lens(dataset), dataset, out / api.FIGURES)
    if as_json:
        print_json({**dataset.to_dict(), "files": files})
        return
    first = _print_lens(dataset)
    said = "the target's rank" if target else "the likeliest next token"
    marks = ", ".join(f"{mark} from {100 * share:.0f} %" for share, mark in reversed(_SHADES.items()) if share)
    lines = [
        f"After each layer, {said}, shaded by its probability:",
        f"{marks}.",
        "The last row is the model's output.",
        f"At the last position {views.settled(dataset)}.",
    ]
    if first:
        lines.append(f"Positions before {first} are in the figure's data.")
    _foot(lines, files[0])


def _foot(lines: list[str], figure: object) -> None:
    """Print what is said below a table, and where its figure is."""
    echo("\n" + "\n".join(map(wrapped, lines)))
    echo(f"Figure: {figure}\nBeside it: .svg, and the data as .nc and .csv.")


@command()
def card(model: options.Model, *, out: Figures = Path("."), as_json: options.Json = False) -> None:
    """Show what a model consists of, layer by layer: operators, kernels, heads, parameters.

    Its config is enough: no weights are loaded, and no options of models are needed.
    """
    from xatlas import api

    results = api.card(model, out=out)
    if as_json:
        print_json(
            {each.name: {"table": each.table, "findings": each.findings, "files": each.files} for each in results}
        )
        return
    for each in results:
        print_table(fitting([{name: cell for name, cell in row.items() if name != "model"} for row in each.table])[0])
        _foot([finding.sentence for finding in each.findings], next(iter(each.files)))


def _print_lens(dataset: xr.Dataset) -> int:
    """Print layers over as many of the last positions as fit; return the first of them."""
    from rich.cells import cell_len, set_cell_size

    from xatlas.views import lens_cells, visible

    cells, chance = lens_cells(dataset)
    names = ["embedding", *(f"{layer} {kind}" for layer, kind in enumerate(dataset["operator_type"].values[1:]))]
    heads = [visible(str(token)) for token in dataset["token"].values]
    label = max(map(len, names))
    width = min(WIDTH, os.get_terminal_size(sys.stdout.fileno()).columns or WIDTH) if sys.stdout.isatty() else WIDTH
    wide = min(9, max(6, *(cell_len(cell) for row in cells for cell in row)))
    first = max(0, len(heads) - max(1, (width - label) // (wide + 2)))

    def fitted(text: str) -> str:
        return set_cell_size(text if cell_len(text) <= wide else f"{set_cell_size(text, wide - 1)}…", wide)

    lines = [" " * (label + 1) + "  ".join(map(fitted, heads[first:]))]
    for name, row, shares in zip(names, cells, chance, strict=True):
        marks = [next(mark for least, mark in _SHADES.items() if share >= least) for share in shares[first:]]
        lines.append(f"{name:<{label}} " + " ".join(map("".join, zip(map(fitted, row[first:]), marks, strict=True))))
    echo("\n".join(line.rstrip() for line in lines))
    return first


@command()
@options.configured("attention", "draws", "seed", "suite", "reference")
def attention(
    model: options.Model,
    text: Text,
    layer: Annotated[int, typer.Option(help="Layer whose heads are shown, from 0.")],
    *,
    out: Figures = Path("."),
    as_json: options.Json = False,
    **config: Any,
) -> None:
    """Show where each head of a layer looks in one text: scores as a table, patterns as a figure.

    Weights of attention can be read of eager attention alone, so that there is no --attention.
    """
    from xatlas import api, views

    dataset = api.attention(model, text, layer, **config)
    files = views.save(views.draw_attention(dataset), dataset, out / api.FIGURES)
    if as_json:
        print_json({**dataset.to_dict(), "files": files})
        return
    tokens = [views.shortened(str(token), 14) for token in dataset["key_token"].values]
    rows: list[dict[str, Any]] = []
    for head in dataset["head"].values.tolist():
        one = dataset.sel(head=head)
        last = one["pattern"].isel(query=-1).values
        most = sorted(range(len(tokens)), key=lambda key: -last[key])[:2]
        rows.append(
            {
                "head": head,
                "group": one["kv_group"].item(),
                "position 0": float(one["first_weight"]),
                "previous": float(one["previous_score"]),
                "distance": float(one["distance"]),
                "entropy": float(one["entropy"]),
                "last token looks at": ", ".join(f"{tokens[key]} ({key}) {last[key]:.2f}" for key in most),
            }
        )
    print_table(rows)
    lines = [
        "Means over tokens from the third on; distance in tokens, entropy in nats.",
        f"In layer {layer} {views.drawn_to(dataset)}.",
    ]
    _foot(lines, files[0])
