"""Finished parts of a long job, kept in a folder until the whole is there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from xatlas.errors import XatlasError

if TYPE_CHECKING:
    import numpy as np


log = logging.getLogger("xatlas")

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
#: Last line of sealed data: length of the note before it, and the sha256 of all before the hash.
_SEAL = re.compile(rb"\n(?P<length>[0-9a-f]{8}) (?P<sha256>[0-9a-f]{64}) xatlas\n")
_SEAL_LENGTH = 1 + 8 + 1 + 64 + 8


class NotWritable(XatlasError):
    """The folder takes no files: of another user, or on a disk that is read-only."""


class Busy(XatlasError):
    """Another process holds the lock."""


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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # O_EXCL: neither a file that is there nor a link is ever written through.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
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
        Instead of any :class:`OSError`; :class:`NotWritable` where the folder takes no files.
    """
    folder = folder or path.parent
    try:
        yield
    except OSError as error:
        if error.errno in _CLOSED:
            raise NotWritable(f"the folder {folder} is not writable: choose another one with --out.") from error
        if error.errno in _FULL:
            what = f"the disk is full: {path} could not be written. Finished results are kept; free some space."
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            what = f"{folder} is not a folder: choose another one with --out."
        else:
            what = f"{path} could not be read or written ({error.strerror or error})."
        raise XatlasError(what) from error


def read_plain(path: Path, most: int = -1) -> bytes:
    """Return the content of a plain file, or its first ``most`` bytes: nothing that could block or never end.

    Raises
    ------
    XatlasError
        It can't be read, or is a folder, a pipe or a device.
    """
    try:
        # Asked first, because opening a device may already do something; then without waiting for a pipe's writer.
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return file.read(most)
    except OSError as error:
        raise XatlasError(f"{path} could not be read ({error.strerror or error}).") from error
    raise XatlasError(f"{path} is not a plain file: it is not read.")


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
        The file can't be read, has no hash, or differs from it; or the hash is one of another file.
    """
    data = read_plain(path)
    try:
        digest, _, name = read_plain(hash_path(path), 4096).decode().removesuffix("\n").partition("  ")
    except (XatlasError, UnicodeDecodeError):
        raise XatlasError(
            f"{path} is unhashed: there is no hash beside it, so it was never finished, or did not come from xatlas."
        ) from None
    if name != path.name and digest == sha256(data):
        raise XatlasError(f"{path} is a copy: the hash beside it is that of '{name}'.")
    if (digest, name) != (sha256(data), path.name):
        raise XatlasError(f"{path} is damaged: it differs from the hash beside it.")
    return data


def seal(data: bytes, note: str) -> bytes:
    """Return ``data`` with a note and a hash of both behind it, which programs that read ``data`` pass over.

    The hash beside a file can be made anew, for damaged content, too; with a seal inside, the bytes are ours.
    """
    text = note.encode()
    sealed = data + text + b"\n%08x " % len(text)
    return sealed + sha256(sealed).encode() + b" xatlas\n"


def unseal(sealed: bytes) -> tuple[bytes, str] | None:
    """Return what :func:`seal` was given; None where there is no seal, or a broken one."""
    found = _SEAL.fullmatch(sealed[-_SEAL_LENGTH:])
    if found is None or sha256(sealed[: 10 - _SEAL_LENGTH]).encode() != found["sha256"]:
        return None
    end = len(sealed) - _SEAL_LENGTH
    start = end - int(found["length"], 16)
    return sealed[:start], sealed[start:end].decode()


def set_aside(path: Path) -> Path:
    """Rename what stands at ``path``, whatever it is, so that it is in nobody's way; return its new place.

    Raises
    ------
    XatlasError
        The folder can't be written to.
    """
    names = (path.with_name(f"{path.name}.damaged{number or ''}") for number in itertools.count())
    free = next(name for name in names if not os.path.lexists(name))
    with explained(path):
        os.rename(path, free)
    return free


def strays(lock: Path) -> list[Path]:
    """Return the temporary files of what ``NAME.lock`` guards, ``NAME.*`` or ``NAME-KEY.*``: left by killed runs."""
    own = re.compile(rf"\.{re.escape(lock.stem.removeprefix('.'))}(-[0-9a-f]{{16}})?\.[\w.]*tmp")
    try:
        return [
            path for path in lock.parent.iterdir() if own.fullmatch(path.name) and (path.is_symlink() or path.is_file())
        ]
    except OSError:
        return []


@contextlib.contextmanager
def locked(path: Path, waiting: str | None) -> Iterator[None]:
    """Hold the lock file ``path``; whoever comes second waits. The lock of a killed process is free.

    Temporary files that a killed process left of what it guards are removed.

    Parameters
    ----------
    path : Path
        Lock file; made for all users, and left behind.
    waiting : str or None
        Logged once when another process holds it; None: don't wait.

    Raises
    ------
    XatlasError
        The folder can't be written to, or its file system knows no locks; :class:`Busy` instead of waiting.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            set_aside(path)
    lock = FileLock(path, mode=0o666, is_singleton=True)
    try:
        with explained(path):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if waiting is None:
                    raise Busy(f"{path} is held by another process.") from None
                log.warning(waiting)
                lock.acquire()
            except PermissionError:
                if not path.is_file():
                    raise
                _share(path)
                lock.acquire()
    except NotImplementedError:
        raise XatlasError(
            f"the file system of {path.parent} knows no locks: choose another folder with --out."
        ) from None
    try:
        for stray in strays(path):
            with contextlib.suppress(OSError):
                stray.unlink()
        yield
    finally:
        lock.release()


def held(path: Path) -> bool:
    """Tell whether another process holds the lock file ``path``; nothing is written."""
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        pass
    return False


def _share(path: Path) -> None:
    """Put a lock file that all may take in the place of another user's that only they may, once it is free."""
    import fcntl

    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # reading is enough to hold it, not for FileLock
        fresh = path.with_name(f".{path.name.removeprefix('.')}.{secrets.token_hex(8)}.tmp")
        os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        os.chmod(fresh, 0o666)
        os.replace(fresh, path)
    finally:
        os.close(handle)


log = logging.getLogger("xatlas")


class FolderCheckpoint:
    """Keeps finished parts of a long job as files, each written whole and sealed with its own name.

    Parameters
    ----------
    folder : Path
        Made when the first part is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays saved under ``key``; None where there are none, or where they are damaged or others'."""
        import numpy as np

        path = self._file(key)
        if not os.path.lexists(path):
            return None
        data = self._read(key)
        if data is None:
            log.warning("%s is damaged: this part is measured again.", path)
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            # The leading underscore keeps array names apart from savez's own argument names.
            return {name[1:]: arrays[name] for name in arrays.files}

    def holds(self, key: str) -> bool:
        """Tell whether the part is there, whole, and this job's own."""
        return self._read(key) is not None

    def _read(self, key: str) -> bytes | None:
        try:
            found = unseal(read_plain(self._file(key)))
        except XatlasError:
            return None
        return found[0] if found is not None and found[1] == self._note(key) else None

    def save(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep ``arrays`` under ``key``, whole or not at all.

        Raises
        ------
        XatlasError
            The disk is full or the folder not writable.
        """
        import numpy as np

        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{f"_{name}": array for name, array in arrays.items()})
        path = self._file(key)
        for place in (self.folder, path):
            if os.path.lexists(place) and (place.is_symlink() or place.is_dir() != (place is self.folder)):
                set_aside(place)
        write_atomic(path, seal(buffer.getvalue(), self._note(key)))

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def _note(self, key: str) -> str:
        # The folder is named after the job, whose key digests all else.
        return f"{self.folder.name}/{key}"
