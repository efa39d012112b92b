"""The options that commands share, each with its help and what a shell may complete it with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from xatlas.errors import XatlasError
from xatlas.settings import ATTENTIONS, BOS_HABITS, DEVICES, DTYPES


def complete(*registries: str) -> Callable[[str], list[str]]:
    """Return a completer for comma-separated names in registries of :mod:`xatlas.manager`."""

    def matching(incomplete: str) -> list[str]:
        from xatlas import manager

        before, comma, last = incomplete.rpartition(",")
        try:
            known = [name for registry in registries for name in getattr(manager, registry)()]
        except XatlasError:  # a plugin is off: the command itself says so
            return []
        return [f"{before}{comma}{name}" for name in known if name.startswith(last)]

    return matching


def _one_of(*values: str) -> Callable[[str], list[str]]:
    def matching(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return matching


Models = Annotated[
    list[str],
    typer.Option(
        "--models",
        "-m",
        help="Models by name or path, comma-separated; 'xatlas models' lists names. Given again, it adds to them; "
        "a path with a comma stands in double quotes.",
        autocompletion=complete("models"),
    ),
]
Comparisons = Annotated[
    list[str] | None,
    typer.Option(
        help="Comparisons, comma-separated; those that cost little when left out.",
        autocompletion=complete("comparisons"),
        show_default=False,
    ),
]
Probes = Annotated[
    list[str] | None,
    typer.Option(
        help="Probes, comma-separated; all when left out.",
        autocompletion=complete("probes"),
        show_default=False,
    ),
]
MoreProbes = Annotated[
    list[str] | None,
    typer.Option(
        "--probes",
        help="Probes to measure besides what the comparisons need, comma-separated.",
        autocompletion=complete("probes"),
        show_default=False,
    ),
]
SuiteName = Annotated[
    str | None,
    typer.Option(
        "--suite",
        help="Suite to measure on, by name or as a JSON-lines file; 'xatlas suites' says which is the default.",
        autocompletion=complete("suites"),
        show_default=False,
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(
        help="Suite that means and donors are taken from, by name or file; the train split when left out.",
        autocompletion=complete("suites"),
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for atlas/ and figures/.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME.PARAMETER=VALUE",
        help="Set a parameter of a probe or comparison ('xatlas explain NAME' lists them); may be given several times. "
        "Short: --PARAMETER VALUE, for every chosen probe, or the chosen comparison, that has it.",
    ),
]
Draws = Annotated[int, typer.Option(help="Donors and control directions that are averaged.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", autocompletion=_one_of(*DEVICES))]
Dtype = Annotated[
    str,
    typer.Option(help="float32, bfloat16 or float16.", autocompletion=_one_of(*DTYPES)),
]
Bos = Annotated[
    str,
    typer.Option(
        help="always: a beginning token at position 0 of every model; native: the tokenizer's own habit.",
        autocompletion=_one_of(*BOS_HABITS),
    ),
]
Attention = Annotated[
    str, typer.Option(help="Attention implementation: sdpa or eager.", autocompletion=_one_of(*ATTENTIONS))
]
ChatTemplate = Annotated[bool, typer.Option("--chat-template", help="Wrap prompts as a user's turn.")]
TemplateDate = Annotated[
    str,
    typer.Option(metavar="YYYY-MM-DD", help="Date that a chat template is rendered with: equal tokens on any day."),
]
Refresh = Annotated[bool, typer.Option("--refresh", help="Measure again what the atlas holds already.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
