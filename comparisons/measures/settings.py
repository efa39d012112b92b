"""Sensitivity: one number under every setting that the atlas holds, and commands for those that it lacks."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from xatlas.comparisons.measures.readings import ABLATIONS, Estimate, Reading
from xatlas.config import KeyedSettings
from xatlas.contracts.parameters import as_text
from xatlas.vocabulary import BOS_HABITS, SCOPES


@dataclass(frozen=True, slots=True)
class Setting:
    """What a sensitivity row varies: ablation kind, scope, position 0, suite, with or without layer 0."""

    ablation: str
    scope: str
    bos: str
    suite: str
    layer0: bool

    def __str__(self) -> str:
        ending = "" if self.layer0 else ", layer 0 excluded"
        return f"{self.ablation}, {self.scope}, bos {self.bos}, {self.suite}{ending}"


def cross(main: Reading, everything: Iterable[Reading]) -> list[Setting]:
    """Return the cross of all settings, the default one first."""
    usual = "quick" if main.suite == "standard" else "standard"
    suites = list(dict.fromkeys([main.suite, *(reading.suite for reading in everything), usual]))
    habits = [main.bos, *(bos for bos in BOS_HABITS if bos != main.bos)]
    return [
        Setting(ablation, scope, bos, suite, layer0)
        for suite in suites
        for bos in habits
        for layer0 in (True, False)
        for scope in SCOPES
        for ablation in ABLATIONS
    ]


def sensitivity(
    found: Sequence[Sequence[Reading]],
    estimate: Callable[[Reading, str, str, bool], Estimate],
    units: str,
    words: str,
    prefix: str = "sensitivity",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Estimate one number under every setting that the atlas holds.

    Parameters
    ----------
    found : per model its readings, the main one first
    estimate : callable
        ``(reading, ablation, scope, layer0) → Estimate``; without layer 0 where ``layer0`` is False.
    units : str
        Unit of the number.
    words : str
        What the number is.
    prefix : str
        Name of the variables that hold the number.

    Returns
    -------
    variables, coords
        ``prefix``, ``prefix_low``, ``prefix_high``, and ``sensitivity_status`` (``ok`` or ``not run``),
        ``sensitivity_command``, all ``(model, setting)``.
    """
    rows = cross(found[0][0], [reading for readings in found for reading in readings])
    numbers = np.full((3, len(found), len(rows)), np.nan)
    commands = np.full((len(found), len(rows)), "", dtype=object)
    for i, readings in enumerate(found):
        for j, row in enumerate(rows):
            held = [r for r in readings if (r.suite, r.bos) == (row.suite, row.bos)]
            held = [r for r in held if r.holds(row.ablation, row.scope)]
            if held:
                one = estimate(held[0], row.ablation, row.scope, row.layer0)
                numbers[:, i, j] = one.value, one.low, one.high
            else:
                commands[i, j] = command(readings[0], row)
    dims = ("model", "setting")
    status = np.where(commands == "", "ok", "not run").astype(object)
    variables = {
        prefix: (dims, numbers[0], units, words),
        f"{prefix}_low": (dims, numbers[1], units, "lower end of its 95 % interval"),
        f"{prefix}_high": (dims, numbers[2], units, "upper end of its 95 % interval"),
        "sensitivity_status": (dims, status, "1", "whether the atlas holds what the row needs"),
        "sensitivity_command": (dims, commands, "1", "the command that measures what is missing"),
    }
    coords: dict[str, Any] = {"setting": [str(row) for row in rows]}
    for name in ("ablation", "scope", "bos", "suite"):
        coords[f"setting_{name}"] = ("setting", [getattr(row, name) for row in rows])
    coords["setting_layer0"] = ("setting", [int(row.layer0) for row in rows])
    return variables, coords


def command(main: Reading, row: Setting) -> str:
    """Return the command that measures what a sensitivity row lacks, all else as in the main run.

    ``xatlas run`` starts from the probe's defaults, whatever the main run was told.
    """
    called = shlex.quote(main.called)
    parts = [f"xatlas run {called} --probes {main.probe} --suite {shlex.quote(row.suite)} --bos {row.bos}"]
    usual = _defaults(main)
    held = {"scopes": (row.scope, SCOPES), "ablations": (row.ablation, ABLATIONS)}
    wanted = {name: every for name, (one, every) in held.items() if one not in usual[name]}
    given = _job(main).get("parameters") or {}
    wanted |= {name: value for name, value in given.items() if name not in held and value != usual.get(name, value)}
    parts += [f"--set {shlex.quote(f'{main.probe}.{name}={as_text(value)}')}" for name, value in wanted.items()]
    return " ".join(parts + _options(main))


def _job(main: Reading) -> Mapping[str, Any]:
    return main.about.get("job") or {}


def _defaults(main: Reading) -> dict[str, Any]:
    """Return the probe's parameters as they are when nothing is set; what was measured for an unknown probe."""
    from xatlas import manager

    found: dict[str, Any] = {"scopes": main.scopes, "ablations": main.ablations}
    probe = manager.probes().get(main.probe)
    return found | (probe().canonical_parameters() if probe else {})


def _options(main: Reading) -> list[str]:
    """Return the options in which the main run differs from the default, and a sensitivity run may not."""
    from xatlas import manager

    job, options = _job(main), []
    for setting in fields(KeyedSettings):
        value = job.get(setting.name)
        if value not in (None, setting.default) and not setting.metadata.get("varied"):
            option = f"--{setting.name.replace('_', '-')}"
            options.append(option if value is True else f"{option} {value}")
    suites = manager.suites()
    reference = (main.about.get("reference") or {}).get("name")
    # one read from a file can't be named: its path is not stored
    if job.get("reference") and reference in suites and suites[reference].default_for != "reference":
        options.append(f"--reference {shlex.quote(reference)}")
    return options
