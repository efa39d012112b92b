"""Models from the hub, or from its local cache. No torch; an unreachable hub is told within seconds."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from xatlas.errors import XatlasError
from xatlas.loading.weights import LORA_CONFIG, is_read, missing_parts

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
