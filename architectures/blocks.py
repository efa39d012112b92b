"""What adapters of several kinds of block share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xatlas.contracts.adapter import Adapter, PreNormAdapter

if TYPE_CHECKING:
    import torch


def adapters_of(module: Mapping[str, Any]) -> list[type[Adapter]]:
    """Return the adapters that a file defines, given its ``globals()``: those that name architectures themselves."""
    classes = [each for each in module.values() if isinstance(each, type) and issubclass(each, Adapter)]
    return [each for each in classes if each.__module__ == module["__name__"] and "architectures" in vars(each)]


class SlidingEverywhere(PreNormAdapter):
    """Every layer attends in the window that the config names: the mask is the model's, the modules don't hold it."""

    def window(self, layer: int) -> int | None:
        """Return the config's window."""
        found = self.model.config.sliding_window
        return None if found is None else int(found)


class CappedLogits(PreNormAdapter):
    """Logits go through a soft cap where the config has one."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the capped logits."""
        logits, cap = super().logits(hidden), self.model.config.final_logit_softcapping
        return logits if cap is None else (logits / cap).tanh() * cap
