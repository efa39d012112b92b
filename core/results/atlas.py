"""Opening an atlas: many results as one tree, exactly one job for each model and probe."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas.config import KeyedSettings
from xatlas.errors import XatlasError, unknown
from xatlas.files import Busy, hash_path, held, locked, read_hashed, set_aside, strays
from xatlas.results.store import Entry, FolderCheckpoint, Store, atlas_folder, check_result, read_result

if TYPE_CHECKING:
    import xarray as xr


#: Names as xatlas gives them: results, their hashes, and hidden ones of locks, parts and temporary files.
_OWN = re.compile(r"(?P<hidden>\.)?(?P<stem>.+-[0-9a-f]{16})(?P<suffix>\.nc|\.nc\.sha256|\.lock|\.parts|\..*tmp)")
_ASIDE = re.compile(r".*\.damaged\d*")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in an atlas.

    Parameters
    ----------
    path : Path
        Where.
    what : str
        One sentence.
    repaired : str
        What was done about it, empty where nothing was.
    """

    path: Path
    what: str
    repaired: str = ""


def verify(path: str | Path = "atlas", *, repair: bool = False) -> Iterator[Problem]:
    """Check every file of an atlas: hash, key, schema; strays, locks, parts and temporary files.

    Files of jobs that another process is at work on are left out.

    Parameters
    ----------
    path : path
        The folder ``atlas``, or the folder that holds it.
    repair : bool
        Set aside what is wrong, under a name with ``.damaged``; remove what killed runs left. The next run
        measures again what it needs.

    Yields
    ------
    Problem
        In the order of the files' names.

    Raises
    ------
    XatlasError
        There is no atlas, or it can't be written to for ``repair``.
    """
    root = atlas_folder(Path(path))
    if not root.is_dir() or not any(_OWN.fullmatch(file.name) for file in root.glob("*/*")):
        raise XatlasError(f"{root} holds no atlas: there is no result in it, nor anything else of xatlas.")
    for folder in sorted(root.iterdir()):
        if folder.name == ".comparisons":
            yield from _check_records(folder, repair)
        elif folder.name.startswith(".") or _ASIDE.fullmatch(folder.name):
            continue
        elif folder.is_dir():
            for file in sorted(folder.iterdir()):
                yield from _check(file, repair)
        elif folder.suffix == ".nc" or folder.is_symlink():
            yield _aside(folder, f"{folder} is out of place: an atlas holds a folder for each model.", repair)


def _check(file: Path, repair: bool) -> Iterator[Problem]:
    """Check one thing in a model's folder."""
    own = _OWN.fullmatch(file.name)
    hidden = file.name.startswith(".")
    # Hidden files of others' are not ours to judge (.DS_Store, .nfs…); a hash goes aside with its file.
    if _ASIDE.fullmatch(file.name) or (hidden and not own) or not os.path.lexists(file):
        return
    stem = own["stem"] if own else ""
    lock, result = file.with_name(f".{stem}.lock"), file.with_name(f"{stem}.nc")
    if own and held(lock):
        return
    if file.name.endswith(".nc"):
        try:
            check_result(file)
        except XatlasError as error:
            yield _aside(file, str(error), repair)
    elif file.name.endswith(".nc.sha256"):
        if not os.path.lexists(file.with_name(file.name.removesuffix(".sha256"))):
            yield _aside(file, f"{file} is a hash without its file.", repair)
    elif own is None or not hidden:
        yield _aside(file, f"{file} is not a file of xatlas.", repair)
    elif own["suffix"] == ".lock":
        if file.is_symlink() or not file.is_file():
            yield _aside(file, f"{file} is not a plain file, so it can't be a lock.", repair)
    elif own["suffix"] == ".parts":
        yield from _check_parts(file, lock, result, repair)
    elif file in strays(lock):
        # Taking the lock removes them.
        yield _removed(file, f"{file} was left by a killed run.", _under(lock, lambda: None) if repair else None)


def _check_parts(parts: Path, lock: Path, result: Path, repair: bool) -> Iterator[Problem]:
    """Check the finished parts of a job that is not finished itself."""
    if parts.is_symlink() or not parts.is_dir():
        yield _aside(parts, f"{parts} is not a folder of finished parts.", repair)
    elif os.path.lexists(result):
        drop = _under(lock, lambda: shutil.rmtree(parts)) if repair else None
        yield _removed(parts, f"{parts} was left by a killed run: its job is finished.", drop)
    else:
        checkpoint = FolderCheckpoint(parts)
        for part in sorted(parts.iterdir()):
            if _ASIDE.fullmatch(part.name):
                continue
            if part.suffix != ".npz" or part.name.startswith(".") or not checkpoint.holds(part.stem):
                yield _aside(part, f"{part} is damaged, or no part of this job.", repair)


def _check_records(folder: Path, repair: bool) -> Iterator[Problem]:
    """Check the records of comparisons, which are made again where they lack."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not os.path.lexists(file):  # a hash goes aside with its file
            continue
        if file.suffix == ".json":
            try:
                read_hashed(file)
            except XatlasError as error:
                yield _aside(file, str(error), repair)
        elif file.name.endswith(".json.sha256") and not os.path.lexists(file.with_name(file.stem)):
            yield _aside(file, f"{file} is a hash without its file.", repair)
        elif file.suffix == ".tmp" and not any(map(held, folder.glob("*.lock"))):
            yield _removed(file, f"{file} was left by a killed run.", file.unlink if repair else None)


def _aside(path: Path, what: str, repair: bool) -> Problem:
    if not repair:
        return Problem(path, what)
    if os.path.lexists(hash_path(path)):
        set_aside(hash_path(path))
    return Problem(path, what, f"set aside as {set_aside(path).name}")


def _removed(path: Path, what: str, remove: Callable[[], object] | None) -> Problem:
    if remove is None:
        return Problem(path, what)
    try:
        remove()
    except Busy:
        return Problem(path, what)
    return Problem(path, what, "removed")


def _under(lock: Path, action: Callable[[], object]) -> Callable[[], None]:
    def locked_action() -> None:
        with locked(lock, None):
            action()

    return locked_action


#: What a choice between jobs can name; ``suite`` takes a suite's name or the start of its hash.
CHOICES = ("suite", "reference", *(setting.name for setting in fields(KeyedSettings)), "key")


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
