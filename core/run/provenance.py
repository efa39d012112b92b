"""How and on what a result was measured, as it is stored with it."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from xatlas import __version__
from xatlas.run.plan import Settings, Step

if TYPE_CHECKING:
    from xatlas.model import HookedModel


def provenance(step: Step, model: HookedModel, settings: Settings) -> dict[str, Any]:
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
            role: None if suite is None else {"name": suite.name, "hash": suite.hash, "prompts": len(suite)}
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
