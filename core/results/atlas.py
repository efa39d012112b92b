"""Many results at once: opened as one tree, exactly one job for each model and probe; or verified, file by file."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xatlas.config import KeyedSettings
from xatlas.errors import XatlasError, unknown
from xatlas.files import Busy, explained, hash_path, held, locked, read_hashed, set_aside, strays
from xatlas.results.store import Entry, FolderCheckpoint, Store, atlas_folder, check_result

if TYPE_CHECKING:
    import xarray as xr

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
        Nothing fits, or more than one job of a probe does: these are listed with what differs between them.
    """
    import xarray as xr

    for name in choices:
        if name not in CHOICES:
            raise unknown("choice", name, (*CHOICES, "models", "probes", "parameters"))
    models, probes = (given.split(",") if isinstance(given, str) else given for given in (models, probes))
    store = Store(atlas_folder(Path(path)))
    wanted = {name: value for name, value in choices.items() if value is not None}
    found: dict[str, list[Entry]] = {}
    for entry in store.entries(models and frozenset(models), probes and frozenset(probes)):
        own = entry.job.parameters
        same = all(own.get(name, value) == value for name, value in (parameters or {}).items())
        if same and all(_chosen(entry, name, value) for name, value in wanted.items()):
            found.setdefault(f"/{entry.job.model}/{entry.job.probe}", []).append(entry)
    if not found:
        asked = ", ".join(f"{name}={value}" for name, value in wanted.items())
        raise XatlasError(f"{store.path} holds no result{' for ' + asked if asked else ''}.")
    for node, entries in found.items():
        if len(entries) > 1:
            raise XatlasError(_choose(node, entries))
    return xr.DataTree.from_dict({node: entries[0].dataset() for node, entries in found.items()})


def _chosen(entry: Entry, name: str, value: Any) -> bool:
    has = entry.key if name == "key" else getattr(entry.job, name)
    if name not in ("suite", "reference", "key"):
        return bool(has == value)
    # A probe of the model alone has no suite: it fits any choice of one.
    return has is None or entry.name_of(name) == value or (len(str(value)) >= 6 and has.startswith(str(value)))


def _choose(node: str, entries: list[Entry]) -> str:
    described = {}
    for entry in entries:
        record = entry.job.record()
        for name in ("suite", "reference"):
            record[name] = entry.name_of(name) or str(record[name])[:12]
        for group in ("parameters", "inputs"):
            record |= {f"{group}.{name}": value for name, value in record.pop(group).items()}
        described[entry.key] = [f"{name}={value}" for name, value in record.items()]
    common = set.intersection(*map(set, described.values()))
    own = (f"[key={key} {', '.join(w for w in words if w not in common)}]" for key, words in described.items())
    return f"{len(entries)} jobs of {node[1:]} fit; choose one by what differs: {' '.join(own)}"


# -- verification ----------------------------------------------------------------------------------

#: Names as xatlas gives them: results, their hashes, and hidden ones of locks, parts and temporary files.
_OWN = re.compile(r"(?P<hidden>\.)?(?P<stem>.+-[0-9a-f]{16})(?P<suffix>\.nc|\.nc\.sha256|\.lock|\.parts|\..*tmp)")
_ASIDE = re.compile(r".*\.damaged\d*")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in an atlas."""

    path: Path
    what: str  # one sentence
    repaired: str = ""  # what was done about it, empty where nothing was


#: A path, what is wrong with it, and the lock under which it may be removed, or None: then it is set aside.
_Fault = tuple[Path, str, Path | None]


def verify(path: str | Path = "atlas", *, repair: bool = False) -> Iterator[Problem]:
    """Check every file of an atlas, in the order of their names: hash, key, schema; strays, locks, parts.

    ``path`` is the atlas, or the folder that holds it. What is wrong is set aside with ``repair``, and what killed runs
    left is removed: the next run measures again what it needs. Jobs that another process is at work on are left out.
    Refused where there is no atlas, or it can't be written to for ``repair``.
    """
    root = atlas_folder(Path(path))
    if not root.is_dir() or not any(_OWN.fullmatch(file.name) for file in root.glob("*/*")):
        raise XatlasError(f"{root} holds no atlas: there is no result in it, nor anything else of xatlas.")
    for place in sorted(root.iterdir()):
        files = sorted(place.iterdir()) if place.is_dir() else ()
        faults: Iterable[_Fault] = (fault for file in files for fault in _faults_of(file))
        if place.name == ".comparisons":
            faults = (fault for file in files for fault in _faults_of_record(file))
        elif place.name.startswith(".") or _ASIDE.fullmatch(place.name):
            continue
        elif not place.is_dir() and (place.suffix == ".nc" or place.is_symlink()):
            faults = [(place, f"{place} is out of place: an atlas holds a folder for each model.", None)]
        for file, what, lock in faults:  # a repair comes before the next file is looked at
            yield Problem(file, what, _repair(file, lock) if repair else "")


def _repair(file: Path, lock: Path | None) -> str:
    if lock is None:
        if os.path.lexists(hash_path(file)):
            set_aside(hash_path(file))
        return f"set aside as {set_aside(file).name}"
    try:
        with locked(lock, None), explained(file):  # taking the lock removes temporary files
            if file.is_dir():
                shutil.rmtree(file)
    except Busy:
        return ""
    return "removed"


def _faults_of(file: Path) -> Iterator[_Fault]:
    own = _OWN.fullmatch(file.name)
    hidden = file.name.startswith(".")
    # Hidden files of others' are not ours to judge (.DS_Store, .nfs…); a hash goes aside with its file.
    if _ASIDE.fullmatch(file.name) or (hidden and not own) or not os.path.lexists(file):
        return
    stem, suffix = (own["stem"], own["suffix"]) if own else ("", "")
    lock = file.with_name(f".{stem}.lock")
    if own and held(lock):
        return
    if file.name.endswith(".nc"):
        try:
            check_result(file)
        except XatlasError as error:
            yield file, str(error), None
    elif file.name.endswith(".nc.sha256"):
        if not os.path.lexists(file.with_name(file.name.removesuffix(".sha256"))):
            yield file, f"{file} is a hash without its file.", None
    elif not (own and hidden):
        yield file, f"{file} is not a file of xatlas.", None
    elif suffix == ".lock":
        if file.is_symlink() or not file.is_file():
            yield file, f"{file} is not a plain file, so it can't be a lock.", None
    elif suffix != ".parts":
        if file in strays(lock):
            yield file, f"{file} was left by a killed run.", lock
    elif file.is_symlink() or not file.is_dir():
        yield file, f"{file} is not a folder of finished parts.", None
    elif os.path.lexists(file.with_name(f"{stem}.nc")):
        yield file, f"{file} was left by a killed run: its job is finished.", lock
    else:
        checkpoint = FolderCheckpoint(file)
        for part in sorted(file.iterdir()):
            named = part.suffix == ".npz" and not part.name.startswith(".")
            if not (named and checkpoint.part(part.stem) is not None) and not _ASIDE.fullmatch(part.name):
                yield part, f"{part} is damaged, or no part of this job.", None


def _faults_of_record(file: Path) -> Iterator[_Fault]:
    """Check one thing beside the records of comparisons, which are made again where they lack."""
    if not os.path.lexists(file):  # a hash goes aside with its file
        return
    if file.suffix == ".json":
        try:
            read_hashed(file)
        except XatlasError as error:
            yield file, str(error), None
    elif file.name.endswith(".json.sha256") and not os.path.lexists(file.with_name(file.stem)):
        yield file, f"{file} is a hash without its file.", None
    elif file.suffix == ".tmp" and not any(map(held, file.parent.glob("*.lock"))):
        own = re.match(r"\.(.+)-[0-9a-f]{16}\.", file.name)
        yield file, f"{file} was left by a killed run.", file.with_name(f"{own[1]}.lock") if own else None
