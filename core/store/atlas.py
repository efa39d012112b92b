"""Opening an atlas: many results as one tree, exactly one job for each model and probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas.errors import XatlasError, unknown
from xatlas.store.results import Entry, Store, atlas_folder, read_result

if TYPE_CHECKING:
    import xarray as xr

#: What a choice between jobs can name; ``suite`` takes a suite's name or the start of its hash.
CHOICES = ("suite", "reference", "dtype", "attention", "bos", "chat_template", "template_date", "seed", "draws", "key")


def open_atlas(
    path: str | Path = "atlas",
    *,
    models: Iterable[str] | str | None = None,
    probes: Iterable[str] | str | None = None,
    parameters: Mapping[str, Any] | None = None,
    **choices: Any,
) -> xr.DataTree:
    """Open an atlas as the tree ``/{model}/{probe}``, in memory; no model is touched.

    Parameters
    ----------
    path : path
        The folder ``atlas``, or the folder that holds it.
    models, probes : str or iterable of str, optional
        Leave out all others.
    parameters : mapping, optional
        Parameters that a probe must have been run with, where it knows them.
    **choices
        ``suite`` (name, or start of the hash), ``reference``, ``dtype``, ``attention``, ``bos``,
        ``chat_template``, ``template_date``, ``seed``, ``draws``, ``key``: needed when a probe was run in several ways.

    Returns
    -------
    DataTree
        One dataset for each model and probe; nothing at the root.

    Raises
    ------
    XatlasError
        Nothing fits, or more than one job of a probe does: these are listed with what tells them apart.
    """
    import xarray as xr

    for name in choices:
        if name not in CHOICES:
            raise unknown("choice", name, (*CHOICES, "models", "probes", "parameters"))
    store = Store(atlas_folder(Path(path)))
    wanted = {name: value for name, value in choices.items() if value is not None}
    found: dict[str, list[Entry]] = {}
    for entry in store.entries(_names(models), _names(probes)):
        if _fits(entry, parameters or {}, wanted):
            found.setdefault(f"/{entry.job.model}/{entry.job.probe}", []).append(entry)
    if not found:
        asked = ", ".join(f"{name}={value}" for name, value in wanted.items())
        raise XatlasError(f"{store.path} holds no result{' for ' + asked if asked else ''}.")
    for node, entries in found.items():
        if len(entries) > 1:
            raise XatlasError(_choose(node, entries))
    return xr.DataTree.from_dict({node: read_result(entries[0].path) for node, entries in found.items()})


def _names(given: Iterable[str] | str | None) -> frozenset[str] | None:
    if given is None:
        return None
    return frozenset(given.split(",") if isinstance(given, str) else given)


def _fits(entry: Entry, parameters: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    job = entry.job
    if any(job.parameters.get(name, value) != value for name, value in parameters.items()):
        return False
    return all(_chosen(entry, name, value) for name, value in wanted.items())


def _chosen(entry: Entry, name: str, value: Any) -> bool:
    has = entry.key if name == "key" else getattr(entry.job, name)
    if name not in ("suite", "reference", "key"):
        return bool(has == value)
    # A probe of the model alone has no suite: it fits any choice of one.
    return has is None or entry.name_of(name) == value or (len(str(value)) >= 6 and has.startswith(str(value)))


def _choose(node: str, entries: list[Entry]) -> str:
    """Say which jobs there are and what tells them apart."""
    described = [_describe(entry) for entry in entries]
    common = set.intersection(*(set(description.items()) for description in described))
    lines = []
    for entry, description in zip(entries, described, strict=True):
        own = ", ".join(f"{name}={value}" for name, value in description.items() if (name, value) not in common)
        lines.append(f"[key={entry.key} {own}]")
    return f"{len(entries)} jobs of {node[1:]} fit; choose one by what differs: {' '.join(lines)}"


def _describe(entry: Entry) -> dict[str, str]:
    record = entry.job.record()
    for name in ("suite", "reference"):
        record[name] = entry.name_of(name) or str(record[name])[:12]
    inner = {
        f"{group}.{name}": value for group in ("parameters", "inputs") for name, value in record.pop(group).items()
    }
    return {name: str(value) for name, value in (record | inner).items()}
