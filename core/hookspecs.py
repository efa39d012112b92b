"""The five hooks through which adapters, probes, comparisons, models and suites enter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from xatlas.contracts.adapter import Adapter
    from xatlas.contracts.comparison import Comparison
    from xatlas.contracts.probe import Probe
    from xatlas.loading.download import ModelSource
    from xatlas.suites import SuiteSpec

hookspec = pluggy.HookspecMarker("xatlas")
hookimpl = pluggy.HookimplMarker("xatlas")


@hookspec
def xatlas_adapters() -> list[type[Adapter]]:  # type: ignore[empty-body]
    """Return the adapter classes, each naming the Hugging Face model classes it fits."""


@hookspec
def xatlas_probes() -> list[type[Probe]]:  # type: ignore[empty-body]
    """Return the probe classes."""


@hookspec
def xatlas_comparisons() -> list[type[Comparison]]:  # type: ignore[empty-body]
    """Return the comparison classes."""


@hookspec
def xatlas_models() -> dict[str, ModelSource]:  # type: ignore[empty-body]
    """Return aliases and what each stands for."""


@hookspec
def xatlas_suites() -> list[SuiteSpec]:  # type: ignore[empty-body]
    """Return the suites that can be named."""
