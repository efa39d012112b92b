"""Which models can be used right now, without a network. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xatlas import manager
from xatlas.loading.gguf import is_converted
from xatlas.loading.hub import cached_snapshot
from xatlas.loading.sources import ModelSource
from xatlas.loading.weights import missing_parts
from xatlas.loading.wheels import wheel_gguf

State = Literal["local", "cached", "needs download", "missing"]


@dataclass(frozen=True, slots=True)
class AvailableModel:
    """One alias and whether it can be used without a network.

    Parameters
    ----------
    alias, location, summary : str
        Its name, where it is from and what it is.
    kind : {"hub", "folder", "wheel-gguf"}
        How the location is to be read.
    state : {"local", "cached", "needs download", "missing"}
        ``local``: a folder that is there; ``cached``: fetched earlier;
        ``missing``: a folder that is not there.
    """

    alias: str
    location: str
    summary: str
    kind: str
    state: State


def available() -> list[AvailableModel]:
    """Return every alias, sorted, with whether it can be used without a network."""
    return [
        AvailableModel(source.alias, source.location, source.summary, source.kind, _state(source))
        for _, source in sorted(manager.models().items())
    ]


def _state(source: ModelSource) -> State:
    if source.kind == "folder":
        folder = Path(source.location)
        return "missing" if missing_parts(folder) else "local"
    if source.kind == "wheel-gguf":
        ready = is_converted(str(source.sha256)) or wheel_gguf(source) is not None
    else:
        ready = cached_snapshot(source.location, None) is not None
    return "cached" if ready else "needs download"


def works_now() -> str:
    """Return a sentence that names the aliases usable without a network."""
    ready = [model.alias for model in available() if model.state in ("local", "cached")]
    return f"Models that work now: {', '.join(ready) or 'any local folder with safetensors'}."
