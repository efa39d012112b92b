"""The command that fine-tunes a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from xatlas.cli import options
from xatlas.cli.app import command
from xatlas.cli.output import echo, print_json, print_table
from xatlas.errors import XatlasError
from xatlas.text import split_names

#: What is shown of held-out prompts.
_SHOWN = ("heldout_loss", "accuracy", "preference", "reward")


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
    from xatlas.finetune import finetune as run

    chosen: Any = layers
    if layers not in ("all", "hub"):
        try:
            chosen = [int(layer) for layer in split_names(layers)]
        except ValueError:
            raise XatlasError(f"--layers {layers} does not fit: give numbers, hub or all.") from None
    kind: Any = method
    done = run(
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
