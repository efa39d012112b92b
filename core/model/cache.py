"""The last position by itself: everything before it is as in the clean run, by causality, and held by a cache."""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xatlas.contracts.adapter import Site
from xatlas.model.hooks import CleanRun, record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xatlas.model import HookedModel


#: Names under which decoders take and return their cache.
CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


class _Rows(list[Any]):
    """The layers of a cache, each with other rows than the cache has; made when it is asked for."""

    def __init__(self, layers: Sequence[Any], rows: Tensor) -> None:
        super().__init__(layers)
        self.rows, self.made = rows, set[int]()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) and index % len(self) not in self.made:
            self.made.add(index % len(self))
            layer = copy.copy(super().__getitem__(index))
            for name, value in vars(layer).items():
                if isinstance(value, list | dict):  # of states, which are replaced one by one
                    setattr(layer, name, value.copy())
            layer.reorder_cache(self.rows)
            self[index] = layer
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def rows_of(cache: Any, rows: Tensor) -> Any:
    """Return a Hugging Face cache that holds the given rows of another, whatever its layers hold; that one stays."""
    found = copy.copy(cache)
    found.layers = _Rows(cache.layers, rows)
    return found


def has_steps(model: HookedModel) -> bool:
    """Whether a model can be run one position at a time, on a cache that knows how many went before."""
    counted = bool(model.sites("attention_pattern")) or model.adapter.steps_uncounted
    return model.adapter.cache_argument is not None and counted


@torch.inference_mode()
def record_last_position(model: HookedModel, ids: Tensor, sites: Sequence[Site] = ()) -> tuple[CleanRun, Any]:
    """Run ``ids`` ``(prompt, pos)``; return the last position's pass, its values at ``sites`` kept, and the cache.

    The cache holds what the positions before the last left behind.
    """
    made = model.decoder(input_ids=ids[:, :-1], use_cache=True)
    name = next(name for name in CACHES if made.get(name) is not None)
    cache = made[name]
    for layer in cache.layers:
        if getattr(layer, "sliding_window", None) == 1:  # of a window of 1, Hugging Face's cache keeps all
            layer.keys, layer.values = layer.keys[..., :0, :], layer.values[..., :0, :]
    step = rows_of(cache, torch.arange(len(ids), device=ids.device))
    more = {name: step}
    if "position_ids" in inspect.signature(model.decoder.forward).parameters:  # not all count the cache by themselves
        more["position_ids"] = torch.full((len(ids), 1), ids.shape[1] - 1, device=ids.device)
    run = partial(model.decoder, input_ids=ids[:, -1:], use_cache=True, **more)
    return record(model, ids.shape[0], sites, run), cache
