"""The options that commands share, each with its help and what a shell may complete it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from xatlas.config import takes_settings
from xatlas.errors import XatlasError, unknown
from xatlas.vocabulary import NULLS

F = TypeVar("F", bound=Callable[..., Any])

#: Lets a command leave options that it does not know to :func:`parameters`.
SHORT = {"allow_extra_args": True, "ignore_unknown_options": True}


def parameters(
    context: typer.Context, texts: Sequence[str], probes: Sequence[str], comparisons: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Return probe or comparison → name → value, not yet converted: ``--set`` in full, and what stands for it in short.

    In short, ``--NAME VALUE`` sets that parameter of each of the probes that has it, or of the one comparison. The
    context is one of a command with the settings ``SHORT``: it holds what the command did not know.
    """
    from xatlas import manager

    of_probes = {name: set(probe().canonical_parameters()) for name, probe in manager.probes().items()}
    of_comparisons = {name: set(each().canonical_parameters()) for name, each in manager.comparisons().items()}
    short = []
    for option, value in _pairs(context.args):
        name = option.removeprefix("--").replace("-", "_")
        owners = [probe for probe in probes if name in of_probes.get(probe, ())]
        makers = [comparison for comparison in comparisons if name in of_comparisons[comparison]]
        if len(makers) > 1 or (owners and makers):
            raise XatlasError(f"{option} may be of {', '.join(owners + makers)}: write --set NAME.{name}={value}.")
        if not owners + makers:
            others = [owner for each in (of_probes, of_comparisons) for owner in each if name in each[owner]]
            if others:
                whose = ", ".join(others)
                raise XatlasError(f"{option} is a parameter of {whose}, and nothing of that name is asked for.")
            known = {item for parameter in context.command.params for item in parameter.opts if item[:2] == "--"}
            chosen = [of_probes.get(probe, set()) for probe in probes] + [of_comparisons[each] for each in comparisons]
            raise unknown("option", option, known | {f"--{item}" for each in chosen for item in each})
        short += [f"{owner}.{name}={value}" for owner in owners + makers]
    found = parse_parameters(short)
    for owner, values in parse_parameters(texts).items():  # what is said of one goes before what is said of all
        found[owner] = found.get(owner, {}) | values
    return found


def parse_parameters(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Turn ``OWNER.NAME=VALUE`` texts into probe or comparison → name → value."""
    parsed: dict[str, dict[str, str]] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        owner, _, name = (part.strip() for part in path.partition("."))
        if not (equals and owner and name):
            raise XatlasError(f"--set {text} does not fit: write it as PROBE.NAME=VALUE, or COMPARISON.NAME=VALUE.")
        if parsed.setdefault(owner, {}).setdefault(name, value) != value:
            raise XatlasError(f"{owner}.{name} is set twice: to {parsed[owner][name]!r} and to {value!r}.")
    return parsed


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if not option.startswith("--"):
            raise XatlasError(f"unexpected '{word}': names in a list are separated by commas, without spaces.")
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise XatlasError(f"{option} needs a value, if it is to set a parameter; commands have no such option.")
        yield option, value


def complete(*kinds: str, among: Sequence[str] = ()) -> Callable[[str], list[str]]:
    """Return a completer for comma-separated names of things of these kinds, or among those given."""

    def matching(incomplete: str) -> list[str]:
        from xatlas import manager

        before, comma, last = incomplete.rpartition(",")
        try:
            known = [*among, *(name for kind in kinds for name in manager.REGISTRIES[kind]())]
        except XatlasError:  # a plugin is off: the command itself says so
            return []
        return [f"{before}{comma}{name}" for name in known if name.startswith(last)]

    return matching


def configured(*without: str) -> Callable[[F], F]:
    """Give a command that takes ``**config`` the options of :class:`xatlas.config.MeasureConfig`, but those named."""
    return takes_settings("help", without, _option)


def _option(setting: Field[Any], default: Any) -> Any:
    about = setting.metadata
    option = typer.Option(
        f"--{setting.name.replace('_', '-')}",
        help=about["help"],
        metavar=about.get("metavar"),
        autocompletion=complete(*about.get("names", ()), among=about.get("choices", ())),
        show_default=default is not None,
    )
    return Annotated[str | None if default is None else type(default), option]


def argument(help: str, *kinds: str) -> Any:
    """Return an argument that takes names of these kinds."""
    return typer.Argument(help=help, autocompletion=complete(*kinds))


def several(help: str, kind: str, *spellings: str) -> Any:
    """Return an option that takes names of one kind, comma-separated."""
    return typer.Option(*spellings, help=help, autocompletion=complete(kind), show_default=False)


Model = Annotated[str, argument("Name or path of a model.", "model")]
Models = Annotated[
    list[str],
    several(
        "Models by name or path, comma-separated; 'xatlas models' lists names. Given again, it adds to them; "
        "a path with a comma stands in double quotes.",
        "model",
        "--models",
        "-m",
    ),
]
Comparisons = Annotated[
    list[str] | None,
    several("Comparisons, comma-separated; those that cost little when left out.", "comparison"),
]
Probes = Annotated[
    list[str] | None, several("Probes, comma-separated; all but those that train when left out.", "probe")
]
MoreProbes = Annotated[
    list[str] | None, several("Probes to measure besides what the comparisons need, comma-separated.", "probe")
]
Null = Annotated[
    str | None,
    typer.Option(
        metavar="untrained",
        help="untrained: measure three untrained twins of each model too, at three times its cost.",
        autocompletion=complete(among=NULLS),
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
Minutes = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="Measure on so many of each family's templates as take about N minutes on this machine; a later run on "
        "more of them takes over what is there.",
        show_default=False,
    ),
]
Refresh = Annotated[bool, typer.Option("--refresh", help="Measure again what the atlas holds already.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
