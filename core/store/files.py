"""Files that are whole or not there: atomic writing, hashes beside files, locks. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from xatlas.errors import XatlasError

log = logging.getLogger("xatlas")

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, or a power cut, sees the old file or the new one.

    Parameters
    ----------
    path : Path
        Its folder is made where it is missing. Two writers of one path must hold a lock.
    data : bytes
        The whole content.

    Raises
    ------
    XatlasError
        The disk is full, or the folder can't be written to.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` last through a power cut, where the system knows how to."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def explained(path: Path, folder: Path | None = None) -> Iterator[None]:
    """Turn what the file system refuses into one clear line.

    Raises
    ------
    XatlasError
        Instead of any :class:`OSError`.
    """
    folder = folder or path.parent
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            what = f"the disk is full: {path} could not be written. Finished results are kept; free some space."
        elif error.errno in _CLOSED:
            what = f"the folder {folder} is not writable: choose another one with --out."
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            what = f"{folder} is not a folder: choose another one with --out."
        else:
            what = f"{path} could not be read or written ({error.strerror or error})."
        raise XatlasError(what) from error


def sha256(data: bytes) -> str:
    """Return the hex sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def hash_path(path: Path) -> Path:
    """Return where the hash of ``path`` stands: beside it, as ``sha256sum`` writes it."""
    return path.with_name(path.name + ".sha256")


def write_hashed(path: Path, data: bytes) -> None:
    """Write ``data`` and its hash; the hash goes first, so that the file is complete once it is there.

    Raises
    ------
    XatlasError
        As :func:`write_atomic`.
    """
    write_atomic(hash_path(path), f"{sha256(data)}  {path.name}\n".encode())
    write_atomic(path, data)


def read_hashed(path: Path) -> bytes:
    """Return the content of ``path`` once it agrees with the hash beside it.

    Raises
    ------
    XatlasError
        The file can't be read, has no hash, or differs from it.
    """
    with explained(path):
        data = path.read_bytes()
    try:
        expected = hash_path(path).read_text().split()[:1]
    except (OSError, UnicodeDecodeError):
        raise XatlasError(
            f"{path} has no hash beside it: it was never finished, or did not come from xatlas."
        ) from None
    if expected != [sha256(data)]:
        raise XatlasError(f"{path} is damaged: it differs from the hash beside it.")
    return data


@contextlib.contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock file ``path``; whoever comes second waits. The lock of a killed process is free.

    Parameters
    ----------
    path : Path
        Lock file; made, and left behind.
    waiting : str
        Logged once when another process holds it.

    Raises
    ------
    XatlasError
        The folder can't be written to, or its file system knows no locks.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True)
    try:
        with explained(path):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.warning(waiting)
                lock.acquire()
    except NotImplementedError:
        raise XatlasError(
            f"the file system of {path.parent} knows no locks: choose another folder with --out."
        ) from None
    try:
        yield
    finally:
        lock.release()
