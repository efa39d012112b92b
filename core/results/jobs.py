"""What one measurement is, written down so that its hash names its file. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from xatlas.config import KeyedSettings
from xatlas.errors import XatlasError
from xatlas.files import digest

#: Hex digits of the hash that stand in a file name.
KEY_LENGTH = 16


@dataclass(frozen=True)
class Job(KeyedSettings):
    """One probe on one model, with everything that its numbers depend on, settings included.

    Parameters
    ----------
    model : str
        Slug: the folder in the atlas.
    weights : str
        Revision, or hash of the weights, and of LoRA weights where there are any.
    probe : str
        Name of the probe.
    version : int
        Its version.
    adapter : str
        The adapter that named the hook points, as ``module.Class``, and its version: ``xatlas.…LlamaAdapter 1``.
    parameters : mapping
        All of its parameters, JSON-ready.
    suite, reference : str or None
        Hashes of the suite and of the reference split, None where the probe reads neither.
    inputs : mapping of str to str
        Required probe → key of the job that its result came from.
    template_date : str or None
        Date that a chat template is rendered with, None without a template.
    """

    model: str
    weights: str
    probe: str
    version: int = 1
    adapter: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    suite: str | None = None
    reference: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    template_date: str | None = field(default=None, kw_only=True)

    def record(self) -> dict[str, Any]:
        """Return every field, JSON-ready."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Job:
        """Return the job that :meth:`record` wrote; fields unknown to this version are passed over.

        Raises
        ------
        XatlasError
            A field without default is missing.
        """
        known = {item.name for item in fields(cls)}
        try:
            return cls(**{name: value for name, value in record.items() if name in known})
        except TypeError:
            raise XatlasError("the record of a job is incomplete: it was not written by xatlas.") from None

    @cached_property
    def key(self) -> str:
        """First 16 hex digits of the sha256 of the job's canonical JSON."""
        return digest(self.record())[:KEY_LENGTH]

    @property
    def stem(self) -> str:
        """Name of the job's file, without suffix."""
        return f"{self.probe}-{self.key}"

    def __hash__(self) -> int:
        return hash(self.key)
