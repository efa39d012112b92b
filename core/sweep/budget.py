"""How much memory a sweep may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xatlas.errors import XatlasError

if TYPE_CHECKING:
    import torch


@dataclass
class Budget:
    """How much memory a sweep may take besides the weights.

    Parameters
    ----------
    stream_bytes : int
        For recorded streams, for other values that the clean run keeps, and for perturbed streams, each.
    logit_bytes : int
        For one tensor of logits.
    tile_tokens : int
        Tokens that go through a layer at a time.
    """

    stream_bytes: int = 192 << 20
    logit_bytes: int = 48 << 20
    tile_tokens: int = 2048

    @classmethod
    def for_device(cls, device: torch.device) -> Budget:
        """Return a budget that suits the device: fixed on CPU, a share of the free memory on CUDA."""
        if device.type != "cuda":
            return cls()
        from torch.cuda import mem_get_info

        free, _ = mem_get_info(device)
        return cls(stream_bytes=int(free * 0.2), logit_bytes=int(free * 0.04), tile_tokens=1 << 16)

    def halved(self) -> Budget:
        """Return half of everything.

        Raises
        ------
        XatlasError
            Nothing is left to halve.
        """
        if self.tile_tokens < 64:
            raise XatlasError("not enough memory for a single prompt: use shorter prompts or a smaller model.")
        return Budget(self.stream_bytes // 2, self.logit_bytes // 2, self.tile_tokens // 2)
