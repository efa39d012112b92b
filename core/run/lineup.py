"""Lining results up for a comparison: what it requires of each model, and what varies around that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xatlas.comparison import Comparison
from xatlas.run.plan import Settings, steps_for
from xatlas.store import Entry, Store, read_result
from xatlas.store.jobs import Job

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.loading.names import Resolved

#: Fields of a job in which a sensitivity run may differ from the main one.
VARIED = ("suite", "bos", "parameters")


def lacking(comparison: Comparison, model: Resolved, settings: Settings, store: Store) -> list[str]:
    """Return the probes without whose results the comparison can't show the model."""
    needed = [requirement for requirement in comparison.requires if not requirement.optional]
    steps = [steps_for(model, [requirement], settings)[-1] for requirement in needed]
    return [step.job.probe for step in steps if store.state(step.job) != "done"]


def nodes_for(
    comparison: Comparison, models: Sequence[Resolved], settings: Settings, store: Store
) -> list[tuple[str, Path]]:
    """Return tree node → file of everything that the comparison may read.

    Parameters
    ----------
    comparison : Comparison
        Says what it requires.
    models : sequence of Resolved
        In the order in which they are to be shown.
    settings : Settings
        How the main results were measured.
    store : Store
        Where they are; see :func:`lacking`.

    Returns
    -------
    list of (str, Path)
        ``/{model}/{probe}``, or with ``@`` and what differs, and the file.
    """
    nodes: dict[str, Path] = {}
    for model in models:
        for needed in comparison.requires:
            step = steps_for(model, [replace(needed, optional=False)], settings)[-1]
            if store.state(step.job) == "done":
                nodes[f"/{model.slug}/{needed.probe}"] = store.file(step.job)
                nodes |= variants(step.job, settings, store)
    return list(nodes.items())


def variants(main: Job, settings: Settings, store: Store) -> dict[str, Path]:
    """Return the same probe's results that differ from ``main`` in suite, BOS habit or parameters only.

    They are named ``/{model}/{probe}@{what differs}``, for instance ``@bos=native,suite=standard``.
    """
    found: dict[str, Path] = {}
    for entry in store.entries([main.model], [main.probe]):
        same = replace(entry.job, **{name: getattr(main, name) for name in VARIED})
        # The same suite by name with other prompts in it is an older one, not another one.
        stale = entry.job.suite != main.suite and entry.name_of("suite") == settings.suite.name
        name = _difference(entry, main)
        if same == main and name and not stale:
            found[f"/{main.model}/{main.probe}@{name}"] = entry.path
    return found


def _difference(entry: Entry, main: Job) -> str:
    parts: dict[str, str] = {}
    if entry.job.bos != main.bos:
        parts["bos"] = entry.job.bos
    if entry.job.suite != main.suite:
        parts["suite"] = entry.name_of("suite") or str(entry.job.suite)[:12]
    for name, value in sorted(entry.job.parameters.items()):
        if main.parameters.get(name) != value:
            parts[name] = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return ",".join(f"{name}={value}" for name, value in parts.items()).replace("/", "_")


def build_tree(nodes: Iterable[tuple[str, Path]]) -> xr.DataTree:
    """Open results as the tree that comparisons read.

    Raises
    ------
    XatlasError
        A file is missing or damaged.
    """
    import xarray as xr

    return xr.DataTree.from_dict({node: read_result(path) for node, path in nodes})
