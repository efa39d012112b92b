"""Checking every file of an atlas, and setting aside what is wrong."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xatlas.errors import XatlasError
from xatlas.store.checkpoint import FolderCheckpoint
from xatlas.store.files import Busy, hash_path, held, locked, read_hashed, set_aside, strays
from xatlas.store.results import atlas_folder, check_result

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
