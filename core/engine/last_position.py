"""One-position runs: what an intervention at the readout position alone needs recomputed.

Everything before the readout is as in the clean run, by causality. So its keys, values and conv states are
taken from one cached clean pass, and only the readout position walks through the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from xatlas.model.hold import is_held
from xatlas.model.hooks import CleanRun, recording

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.contracts.adapter import Site
    from xatlas.model import HookedModel


@dataclass(frozen=True)
class Past:
    """Clean keys, values and conv states before the readout position.

    Parameters
    ----------
    keys, values : dict of int to Tensor
        Layer → ``(prompt, n_kv_heads, pos, d_head)``.
    conv : dict of int to Tensor
        Layer → ``(prompt, d_model, kernel)``.
    length : int
        Positions before the readout.
    """

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    conv: dict[int, Tensor]
    length: int


class StepCache:
    """What a layer is handed as its cache for one position: it reads the past and stores nothing.

    Parameters
    ----------
    past : Past
        The clean past.
    prompts : int
        How many of its rows are used, the first ones.
    copies : int
        Blocks of prompts that go through the layer together.
    """

    def __init__(self, past: Past, prompts: int, copies: int) -> None:
        self.past = past
        self.prompts = prompts
        self.copies = copies

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor[: self.prompts].repeat(self.copies, *[1] * (tensor.dim() - 1))

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the past's keys and values with this position's behind them."""
        keys, values = self.past.keys[layer_idx], self.past.values[layer_idx]
        return torch.cat([self._rows(keys), key], dim=-2), torch.cat([self._rows(values), value], dim=-2)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor:
        """Return a copy of the conv state: the layer updates it in place."""
        return self._rows(self.past.conv[layer_idx])

    def is_recording_past(self, layer_idx: int) -> bool:
        """Return that nothing is kept for going back."""
        return False

    # Earlier releases of transformers ask the same of their cache in another way.

    def has_previous_state(self, layer_idx: int) -> bool:
        """Return that there is a conv state."""
        return True

    @property
    def layers(self) -> _Layers:
        """What ``layers[i].conv_states[0]`` and ``layers[i].record_past`` are read from."""
        return _Layers(self)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many positions went before."""
        return self.past.length


@dataclass(frozen=True)
class _Layers:
    """The layers of a step's cache, one at a time."""

    cache: StepCache
    layer_idx: int = -1
    record_past = False

    def __getitem__(self, layer_idx: int) -> _Layers:
        return _Layers(self.cache, layer_idx)

    @property
    def conv_states(self) -> list[Tensor]:
        """The conv state, as the only one."""
        return [self.cache.get_conv_state(self.layer_idx)]


def can_step(model: HookedModel, length: int) -> bool:
    """Whether one position can be run on its own: there is a past, and Hugging Face's cache can count it."""
    if is_held(model):  # what is held at the newest token would be held at the past's
        return False
    return length > 1 and model.adapter.cache_argument is not None and "attention" in model.operator_types


@torch.inference_mode()
def record_step(model: HookedModel, ids: Tensor, sites: Sequence[Site] = ()) -> tuple[CleanRun, Past]:
    """Run ``ids`` ``(prompt, pos)`` with a cache and keep the last position's pass, and its values at ``sites``.

    Returns
    -------
    CleanRun
        Of the last position alone ``(prompt, 1, d_model)``.
    Past
        What went before it.
    """
    cache = model.model.base_model(input_ids=ids[:, :-1], use_cache=True).past_key_values
    keys, values, conv = {}, {}, {}
    for layer, kept in enumerate(cache.layers):
        if model.operator_types[layer] == "attention":
            if getattr(kept, "sliding_window", None) == 1:  # of a window of 1, Hugging Face's cache keeps all
                kept.keys, kept.values = kept.keys[..., :0, :], kept.values[..., :0, :]
            keys[layer], values[layer] = kept.keys, kept.values
        else:
            conv[layer] = kept.conv_states[0].clone()
    past = Past(keys, values, conv, ids.shape[1] - 1)
    with recording(model, ids.shape[0], sites) as record:
        model.model.base_model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
    return record(), past
