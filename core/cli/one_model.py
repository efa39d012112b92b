"""The commands about one model: what it makes of a text, what it consists of; steering it, and training it."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xatlas import manager
from xatlas.cli import options
from xatlas.cli.app import command
from xatlas.cli.output import WIDTH, echo, fitting, print_json, print_table, wrapped
from xatlas.errors import XatlasError
from xatlas.text import say_on_stderr, split_names

if TYPE_CHECKING:
    import xarray as xr

Text = Annotated[str, typer.Argument(help="What the model reads.")]
Figures = Annotated[Path, typer.Option(help="Folder for figures/.")]

#: What is shown of held-out prompts.
_SHOWN = ("heldout_loss", "accuracy", "preference", "reward")
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
    from xatlas import api

    dataset, views = api.lens(model, text, target=target, **config), manager.part("views")
    files = views.export(dataset, out / api.FIGURES)
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

    views = manager.part("views")
    cells, chance = views.lens_cells(dataset)
    names = ["embedding", *(f"{layer} {kind}" for layer, kind in enumerate(dataset["operator_type"].values[1:]))]
    heads = [views.visible(str(token)) for token in dataset["token"].values]
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
    from xatlas import api

    dataset, views = api.attention(model, text, layer, **config), manager.part("views")
    files = views.export(dataset, out / api.FIGURES)
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


@command()
@options.configured("draws", "seed")
def steer(
    model: options.Model,
    text: Annotated[str, typer.Argument(help="What the model continues.")],
    direction: Annotated[
        str,
        typer.Option(
            metavar="random:SEED|FAMILY|FILE",
            help="A seed, a family of the reference suite, a .npy file, or a steering result as FILE.nc:DIRECTION.",
        ),
    ],
    layer: Annotated[int, typer.Option(help="Layer after which the direction is added, from 0.")],
    strength: Annotated[float, typer.Option(help="Length of what is added; below 0, away from the direction.")],
    relative: Annotated[
        bool, typer.Option("--relative", help="Strength in multiples of the layer's median norm on the suite.")
    ] = False,
    tokens: Annotated[int, typer.Option(help="Most tokens that are generated.")] = 30,
    *,
    as_json: options.Json = False,
    **config: Any,
) -> None:
    """Continue a text with a direction added at every newest token, beside the clean continuation."""
    from xatlas import api
    from xatlas.config import MeasureConfig

    # Everything that can be wrong without a model is found before one is loaded.
    settings = MeasureConfig.make(**config)
    from xatlas.steer import Direction, check_strength, steer as steer_text

    check_strength(strength)
    if tokens < 1:
        raise XatlasError(f"--tokens {tokens} does not fit: it takes a whole number from 1.")
    assert settings.reference is not None
    source = Direction.read(direction, settings.reference)
    hooked = api.load(model, **{name: value for name, value in config.items() if name not in ("suite", "reference")})
    vector = source.vector(hooked, layer, settings.reference)
    norm_of = settings.suite if relative else None
    done = steer_text(hooked, text, vector, layer, strength, relative_to=norm_of, tokens=tokens)
    if as_json:
        print_json({"model": hooked.slug, "text": text, "direction": direction, "layer": layer, **asdict(done)})
        return
    texts = [each.strip("\n") if each.strip() else "(the text ends here)" for each in (done.clean, done.steered)]
    lines = zip_longest(*(each.split("\n") for each in texts), fillvalue="")
    print_table([{"clean": clean, "steered": steered} for clean, steered in lines])
    echo(f"\nKL(clean || steered) at the first step: {done.kl:.4g} nats; added at layer {layer}: {done.length:.4g}")
    if done.clean == done.steered:
        say_on_stderr("the continuations are the same: a larger strength may tell them apart.")


@command()
@options.configured("draws")
def finetune(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder for the LoRA weights: MODEL+DIR is the tuned model.")],
    method: Annotated[
        str,
        typer.Option(
            metavar="sft|qlora|dpo|grpo", help="Supervised; the same on weights in four bits; preferences; reward."
        ),
    ] = "sft",
    roles: Annotated[str, typer.Option(help="Roles of the modules, comma-separated: mlp, attention.out, out.")] = "all",
    layers: Annotated[
        str, typer.Option(metavar="0,2,…|hub|all", help="hub: the third of them that matter most on the reference.")
    ] = "all",
    data: Annotated[
        str,
        typer.Option(
            metavar="FAMILY|FILE.jsonl|OWNER/NAME",
            help="Transfer families, comma-separated; a file of prompt and completion, messages, or prompt, chosen and "
            "rejected; a data set on the hub.",
        ),
    ] = "transfer",
    rank: Annotated[int, typer.Option(help="Rank of the LoRA weights.")] = 8,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    learning_rate: Annotated[float, typer.Option(help="Constant learning rate.")] = 1e-3,
    batch: Annotated[int, typer.Option(help="Examples of a step; of GRPO, prompts.")] = 8,
    *,
    as_json: options.Json = False,
    **config: Any,
) -> None:
    """Train LoRA weights on chosen modules, and measure on held-out prompts what that did; needs the extra train."""
    chosen: Any = layers
    if layers not in ("all", "hub"):
        try:
            chosen = [int(layer) for layer in split_names(layers)]
        except ValueError:
            raise XatlasError(f"--layers {layers} does not fit: give numbers, hub or all.") from None
    kind: Any = method
    done = manager.part("finetune")(
        model,
        out,
        method=kind,
        roles=split_names(roles),
        layers=chosen,
        data=data,
        rank=rank,
        steps=steps,
        learning_rate=learning_rate,
        batch=batch,
        **config,
    )
    if as_json:
        print_json({"model": done.name, "modules": done.modules, "parameters": done.parameters, "families": done.rows})
        return
    rows = []
    for row in done.rows:
        shown: dict[str, Any] = {"family": row["family"], "trained": "yes" if row["trained"] else "no"}
        for name in _SHOWN:
            before, after = row[f"{name} before"], row[f"{name} after"]
            shown[name.replace("heldout_", "")] = f"{before:.3g} → {after:.3g}" if math.isfinite(before) else None
        rows.append({**shown, "KL shift": f"{row['kl_shift after']:.3g}"})
    print_table(rows)
    echo("\nOn held-out prompts, before → after: loss in nats per response token, KL(base || tuned) likewise.")
    echo(f"{done.modules} modules, {done.parameters:,} parameters. The tuned model is '{done.name}'.")
