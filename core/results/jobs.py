"""What one measurement is, and its key: a hash of all that its numbers depend on, which names its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from xatlas.config import KeyedSettings
from xatlas.errors import XatlasError
from xatlas.files import digest


def job_key(record: Mapping[str, Any]) -> str:
    """Return the key of a job's record: the first 16 hex digits of the sha256 of its canonical JSON."""
    return digest(record)[:16]


@dataclass(frozen=True)
class Job(KeyedSettings):
    """One probe on one model, with everything that its numbers depend on, settings included."""

    model: str  # slug: the folder in the atlas
    weights: str  # revision, or hash of the weights, and of LoRA weights where there are any
    probe: str
    version: int = 1  # the probe's
    adapter: str = ""  # what names the hook points, and its version: ``xatlas.…LlamaAdapter 1``
    parameters: Mapping[str, Any] = field(default_factory=dict)  # all of the probe's, JSON-ready
    suite: str | None = None  # hash; None where the probe reads none
    reference: str | None = None  # hash of the reference split, likewise
    inputs: Mapping[str, str] = field(default_factory=dict)  # required probe → key of the job of its result
    template_date: str | None = field(default=None, kw_only=True)  # None without a chat template

    def record(self) -> dict[str, Any]:
        """Return every field, JSON-ready."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Job:
        """Return the job that :meth:`record` wrote; fields unknown to this version are passed over."""
        known = {item.name for item in fields(cls)}
        try:
            return cls(**{name: value for name, value in record.items() if name in known})
        except TypeError:
            raise XatlasError("the record of a job is incomplete: it was not written by xatlas.") from None

    @cached_property
    def key(self) -> str:
        """The key; see :func:`job_key`."""
        return job_key(self.record())

    @property
    def stem(self) -> str:
        """Name of the job's file, without suffix."""
        return f"{self.probe}-{self.key}"

    def __hash__(self) -> int:
        return hash(self.key)
