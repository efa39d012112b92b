"""How and on what a result was measured, as it is stored with it."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from xatlas import __version__
from xatlas.config import MeasureConfig
from xatlas.errors import XatlasError
from xatlas.results.store import Store, read_entry
from xatlas.run.plan import Step

if TYPE_CHECKING:
    from xatlas.model import HookedModel
    from xatlas.suites import Suite


class Reporter(Protocol):
    """Hears how a run goes."""

    def loading(self, model: str) -> None:
        """A model is being loaded."""

    def start(self, step: Step) -> None:
        """A measurement begins."""

    def progress(self, label: str, done: int, total: int) -> None:
        """Part of it is done; called often."""

    def finish(self, step: Step, seconds: float) -> None:
        """It is done and kept."""

    def fail(self, failure: Failure) -> None:
        """It failed; the others go on."""


class Silent:
    """Hears all and says nothing."""

    def loading(self, model: str) -> None:
        """Say nothing."""

    def start(self, step: Step) -> None:
        """Say nothing."""

    def progress(self, label: str, done: int, total: int) -> None:
        """Say nothing."""

    def finish(self, step: Step, seconds: float) -> None:
        """Say nothing."""

    def fail(self, failure: Failure) -> None:
        """Say nothing: the outcome holds it."""


@dataclass(frozen=True)
class Failure:
    """One thing that went wrong and did not stop the rest.

    Parameters
    ----------
    what : str
        ``layer_ablation on qwen-mini``, or the name of a comparison.
    reason : str
        One line.
    """

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass
class Outcome:
    """What became of the steps of a run.

    Parameters
    ----------
    measured, reused : list of Step
        Those done now, and those whose results were there.
    failures : list of Failure
        The rest.
    """

    measured: list[Step] = field(default_factory=list)
    reused: list[Step] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


#: Packages whose minor versions may change numbers.
_COMPUTING = ("torch", "transformers")


def provenance(step: Step, model: HookedModel, settings: MeasureConfig) -> dict[str, Any]:
    """Return how and on what results are measured, JSON-ready."""
    import torch

    named = step.model
    suites = {"suite": settings.suite, "reference": settings.reference}
    return {
        "model": {
            "name": named.name,
            "slug": named.slug,
            "source": named.source,
            "architecture": named.architecture,
            "revision": named.revision,
            "weights_hash": named.weights_hash,
            "lora_hash": named.lora_hash,
            "quantised": named.quantised,
        },
        **{
            role: None
            if suite is None
            else {"name": suite.name, "hash": suite.hash, "prompts": len(suite), "tokens": _tokens(model, suite)}
            for role, suite in suites.items()
        },
        "versions": {
            "xatlas": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy", "xarray")},
        },
        "platform": platform.platform(),
        "device": str(model.device),
        "device_name": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "",
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _tokens(model: HookedModel, suite: Suite) -> str | None:
    """Return the hash of the tokens that a suite is run as; None where the model can't read it."""
    try:
        return model.read(suite).hash
    except XatlasError:
        return None


def other_versions(steps: Iterable[Step], store: Store) -> str:
    """Return one line on results that other minor versions of torch or transformers gave; empty without any."""
    now = {name: version(name) for name in _COMPUTING}
    found: dict[str, list[str]] = {}
    for step in steps:
        held = read_entry(store.file(step.job)).provenance.get("versions") or {}
        odd = [f"{name} {held[name]}" for name in now if name in held and _minor(held[name]) != _minor(now[name])]
        if odd:
            found.setdefault(", ".join(odd), []).append(str(step))
    if not found:
        return ""
    told = "; ".join(f"with {versions}: {', '.join(names)}" for versions, names in found.items())
    here = ", ".join(f"{name} {number}" for name, number in now.items())
    return f"reused, but measured {told}. Here is {here}; --refresh (refresh=True) measures them again."


def _minor(number: str) -> list[str]:
    return str(number).split(".")[:2]
