"""Settings that an atlas does not hold, each with the command that measures it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from xatlas import manager
from xatlas.config import KeyedSettings
from xatlas.contracts.parameters import as_text
from xatlas.findings.readings import ABLATIONS, Reading, Source
from xatlas.vocabulary import BOS_HABITS, SCOPES

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.suites import Suite

#: Parameter of a probe, the dimension of its result, what each setting is called, and all that there are.
_VARIED = (("ablations", "ablation", "ablation kind", ABLATIONS), ("scopes", "scope", "scope", SCOPES))


def not_run(tree: xr.DataTree, sources: Iterable[Source]) -> list[dict[str, str]]:
    """Return per model the runs that the atlas lacks: model, what they vary, and the command, each run once.

    ``tree.attrs["xatlas"]`` says how the suites were named and where the atlas is: see :func:`as_asked`. The command
    is empty where a suite has neither name nor file.
    """
    asked = json.loads(tree.attrs.get("xatlas", "{}"))
    runs: dict[tuple[str, str, str, str, str], list[tuple[str, list[str]]]] = {}
    for source in sources:
        for readings in filter(None, source.readings):
            main = readings[0]
            own = _named(asked, "suite", main.suite)
            options = " ".join(_options(main, asked))
            for what, suite, bos, given in _lacking(readings, own):
                named = f"--suite {shlex.quote(suite)} --bos {bos} {options}".strip() if suite else ""
                runs.setdefault((main.model, main.called, what, suite, named), []).append((main.probe, given))
    found = []
    for (model, called, what, suite, named), probes in runs.items():
        each = dict(probes)  # a probe that is required twice is run once
        given = [option for options in each.values() for option in options]
        parts = ["xatlas run", _quoted(called), "--probes", ",".join(each), named, *given]
        found.append({"model": model, "what": what, "command": " ".join(parts) if suite else ""})
    return found


def as_asked(suites: Mapping[str, Suite | None], out: str) -> str:
    """Return a tree's attribute ``xatlas``: ``suite`` and ``reference`` by file or name, and the folder ``out``."""
    named = {role: _name_of(suite) for role, suite in suites.items() if suite}
    return json.dumps({**named, "out": out}, sort_keys=True)


def _name_of(suite: Suite) -> str:
    """Return what a suite, or a part of one, is called on the command line; empty for one made in Python."""
    whole = suite.whole or suite
    name = whole.file or (whole.name if whole.name in manager.suites() else "")
    return name + suite.name.removeprefix(whole.name) if name else ""


def _lacking(readings: list[Reading], own: str) -> Iterable[tuple[str, str, str, list[str]]]:
    """Yield what a run varies, its suite and BOS habit, and parameters that it sets, for all that is not there."""
    main = readings[0]
    held = {(each.suite, each.bos) for each in readings}
    usual, same = _defaults(main), _set(main)
    other = "quick" if main.suite == "standard" else "standard"
    if not any(suite != main.suite and bos == main.bos for suite, bos in held) and other in manager.suites():
        yield f"suite {other}", other, main.bos, same
    for bos in BOS_HABITS:
        if (main.suite, bos) not in held:
            yield f"position 0: bos {bos}", own, bos, same
    beside = [each for each in readings if (each.suite, each.bos) == (main.suite, main.bos)]
    for name, dim, called, every in _VARIED:
        measured = {label for each in beside for label in each.labels(dim)}
        lacking = [label for label in every if label not in measured]
        if not measured or name not in usual or not lacking or "one" in measured:  # a factor at zero is no factor
            continue
        yield f"{called} {', '.join(lacking)}", own, main.bos, _set(main, **{name: [*every]})


def _set(main: Reading, **changed: Any) -> list[str]:
    """Return options for the main run's parameters, some of them changed, where they aren't the probe's defaults."""
    usual = _defaults(main)
    given = {**((main.about.get("job") or {}).get("parameters") or {}), **changed}
    differing = {name: value for name, value in given.items() if value != usual.get(name, value)}
    return [f"--set {shlex.quote(f'{main.probe}.{name}={as_text(value)}')}" for name, value in differing.items()]


def _defaults(main: Reading) -> dict[str, Any]:
    """Return the probe's parameters as they are when nothing is set, for ``xatlas run`` starts from these."""
    probe = manager.probes().get(main.probe)
    return probe().canonical_parameters() if probe else {}


def _named(asked: Mapping[str, str], role: str, name: str) -> str:
    """Return what a suite is called on the command line; empty where it has no name there."""
    return asked.get(role, name if name in manager.suites() else "")


def _quoted(called: str) -> str:
    return shlex.quote(f'"{called}"' if "," in called else called)


def _options(main: Reading, asked: Mapping[str, str]) -> list[str]:
    """Return the options in which the main run differs from the default, and a sensitivity run may not."""
    job, options = main.about.get("job") or {}, []
    for setting in fields(KeyedSettings):
        value = job.get(setting.name)
        if value not in (None, setting.default) and not setting.metadata.get("varied"):
            option = f"--{setting.name.replace('_', '-')}"
            options.append(option if value is True else f"{option} {shlex.quote(str(value))}")
    suites = manager.suites()
    reference = _named(asked, "reference", str((main.about.get("reference") or {}).get("name", "")))
    if job.get("reference") and reference and getattr(suites.get(reference), "default_for", "") != "reference":
        options.append(f"--reference {shlex.quote(reference)}")
    if asked.get("out", ".") != ".":
        options.append(f"--out {shlex.quote(asked['out'])}")
    return options
