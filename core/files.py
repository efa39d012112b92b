"""Files written whole or not at all, hashed, sealed and locked: the one place for each of these."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from xatlas.errors import XatlasError

log = logging.getLogger("xatlas")

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
#: Last line of sealed data: length of the note before it, and the sha256 of all before the hash.
_SEAL = re.compile(rb"\n(?P<length>[0-9a-f]{8}) (?P<sha256>[0-9a-f]{64}) xatlas\n")
_SEAL_LENGTH = 1 + 8 + 1 + 64 + 8
_OTHER_FOLDER = "choose another one with --out."
#: File systems note times in steps of up to 10 ms: two writes within one step look like one.
_CLOCK_STEP_NS = 20_000_000


class Busy(XatlasError):
    """Another process holds the lock."""


def sha256(data: bytes | memoryview | Iterable[bytes | memoryview]) -> str:
    """Return the hex sha256 of bytes, or of several pieces one after the other."""
    digest = hashlib.sha256()
    for piece in [data] if isinstance(data, bytes | memoryview) else data:
        digest.update(piece)
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the hex sha256 of a file of any size, without holding it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: Path) -> list[int]:
    """Return what any new content of a file changes; times that a next write might have, too, are waited out."""
    found = os.stat(path)
    if abs(time.time_ns() - found.st_ctime_ns) < _CLOCK_STEP_NS:
        time.sleep(_CLOCK_STEP_NS / 1e9)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def digest(value: Any) -> str:
    """Return the hex sha256 of ``value`` as canonical JSON: keys sorted, no spaces, NaN refused."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sha256(text.encode())


@contextlib.contextmanager
def explained(path: Path, folder: Path | None = None, advice: str = _OTHER_FOLDER) -> Iterator[None]:
    """Turn what the file system refuses into an XatlasError of one line."""
    folder = folder or path.parent
    try:
        yield
    except OSError as error:
        if error.errno in _CLOSED:
            what = f"the folder {folder} is not writable: {advice}"
        elif error.errno in _FULL:
            what = f"the disk is full: {path} could not be written. Finished results are kept; free some space."
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            what = f"{folder} is not a folder: {advice}"
        else:
            what = f"{path} could not be read or written ({error.strerror or error})."
        raise XatlasError(what) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``path``, whole or not at all, and its folder; two writers of one path must hold a lock."""
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
        with contextlib.suppress(OSError):  # renames outlast a power cut where the system can sync a folder
            handle = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def read_plain(path: Path, most: int = -1) -> bytes:
    """Return the content of a plain file, or its first ``most`` bytes: nothing that could block or never end."""
    try:
        # Asked first, because opening a device may already do something; then without waiting for a pipe's writer.
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return file.read(most)
    except OSError as error:
        raise XatlasError(f"{path} could not be read ({error.strerror or error}).") from error
    raise XatlasError(f"{path} is not a plain file: it is not read.")


def hash_path(path: Path) -> Path:
    """Return where the hash of ``path`` stands: beside it, as ``sha256sum`` writes it."""
    return path.with_name(path.name + ".sha256")


def write_hashed(path: Path, data: bytes) -> None:
    """Write ``data`` and its hash; the hash goes first, so that the file is complete once it is there."""
    write_atomic(hash_path(path), f"{sha256(data)}  {path.name}\n".encode())
    write_atomic(path, data)


def read_hashed(path: Path) -> bytes:
    """Return the content of ``path``; without the hash beside it, or off it, it is refused."""
    data = read_plain(path)
    try:
        expected, _, name = read_plain(hash_path(path), 4096).decode().removesuffix("\n").partition("  ")
    except (XatlasError, UnicodeDecodeError):
        why = "there is no hash beside it, so it was never finished, or did not come from xatlas."
        raise XatlasError(f"{path} is unhashed: {why}") from None
    if expected != sha256(data):
        raise XatlasError(f"{path} is damaged: it differs from the hash beside it.")
    if name != path.name:
        raise XatlasError(f"{path} is a copy: the hash beside it is that of '{name}'.")
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
    """Rename what stands at ``path``, whatever it is, so that it is in nobody's way; return its new place."""
    names = (path.with_name(f"{path.name}.damaged{number or ''}") for number in itertools.count())
    free = next(name for name in names if not os.path.lexists(name))
    with explained(path):
        os.rename(path, free)
    return free


def strays(lock: Path) -> list[Path]:
    """Return the temporary files of what ``NAME.lock`` guards, ``NAME.*`` or ``NAME-KEY.*``: left by killed runs."""
    own = re.compile(rf"\.{re.escape(lock.stem.removeprefix('.'))}(-[0-9a-f]{{16}})?\.[\w.]*tmp")
    found = (path for path in lock.parent.glob(".*tmp") if own.fullmatch(path.name))
    return [path for path in found if path.is_symlink() or path.is_file()]


@contextlib.contextmanager
def locked(path: Path, waiting: str | None, advice: str = _OTHER_FOLDER) -> Iterator[None]:
    """Hold the lock file ``path``; a second process waits, and so warns, or gets :class:`Busy` where that is None.

    The file is made for all users, and left behind. Temporary files that a killed process left of it are removed.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, mode=0o666, is_singleton=True)
    try:
        with explained(path, advice=advice):
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
                set_aside(path)
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
        raise XatlasError(f"the file system of {path.parent} knows no locks: {advice}") from None
    try:
        for stray in strays(path):
            with contextlib.suppress(OSError):
                stray.unlink()
        yield
    finally:
        lock.release()


def _share(path: Path) -> None:
    """Put a lock file that all may take in the place of another user's that only they may, once it is free."""
    import fcntl

    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as old:
        fcntl.flock(old, fcntl.LOCK_EX)  # reading is enough to hold it, not for FileLock
        fresh = path.with_name(f".{path.name.removeprefix('.')}.{secrets.token_hex(8)}.tmp")
        fresh.touch(exist_ok=False)
        fresh.chmod(0o666)
        fresh.replace(path)


def held(path: Path) -> bool:
    """Say whether another process holds the lock file ``path``; nothing is written."""
    try:
        import fcntl

        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        return isinstance(error, BlockingIOError)
    return False
