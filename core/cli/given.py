"""Parameters of probes on the command line: `--set PROBE.NAME=VALUE`, or in short `--NAME VALUE`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import typer

from xatlas.errors import XatlasError, unknown

#: Lets a command leave options that it does not know to :func:`parameters`.
SHORT = {"allow_extra_args": True, "ignore_unknown_options": True}


def parameters(context: typer.Context, texts: list[str] | None, chosen: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return probe → name → value, as given in full and in short.

    Parameters
    ----------
    context : Context
        Of a command with the settings ``SHORT``: it holds what the command did not know.
    texts : list of str or None
        What was given in full.
    chosen : sequence of str
        Probes that will be measured: a short name stands for that parameter of each of them that has it.

    Returns
    -------
    dict of str to dict
        Texts, not yet converted.

    Raises
    ------
    XatlasError
        A text is malformed, or an option is neither one of the command nor a parameter of a chosen probe.
    """
    from xatlas import manager

    held = {name: probe().canonical_parameters() for name, probe in manager.probes().items()}
    short = []
    for option, value in _pairs(context.args):
        name = option.removeprefix("--").replace("-", "_")
        owners = [probe for probe in chosen if name in held.get(probe, {})]
        others = [probe for probe in held if name in held[probe]]
        if not owners and others:
            raise XatlasError(f"{option} is a parameter of {', '.join(others)}, and no such probe would be measured.")
        if not owners:
            known = {item for parameter in context.command.params for item in parameter.opts if item[:2] == "--"}
            named = {f"--{item}" for probe in chosen for item in held.get(probe, {})}
            raise unknown("option", option, known | named)
        short += [f"{probe}.{name}={value}" for probe in owners]
    return parse_parameters([*short, *(texts or [])])


def parse_parameters(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Turn ``PROBE.NAME=VALUE`` texts into probe → name → value.

    Raises
    ------
    XatlasError
        A text is not of that form.
    """
    parsed: dict[str, dict[str, str]] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        probe, dot, name = path.partition(".")
        if not (equals and dot and probe and name):
            raise XatlasError(f"--set {text} does not fit: write it as PROBE.NAME=VALUE.")
        parsed.setdefault(probe.strip(), {})[name.strip()] = value
    return parsed


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pair options with their values.

    Raises
    ------
    XatlasError
        A word belongs to no option, or an option has no value.
    """
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
