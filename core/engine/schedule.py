"""What a sweep refuses before it begins, what fits its memory, and under which keys it keeps what is finished."""

from __future__ import annotations

import io
import logging
import pickle
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from xatlas.contracts.adapter import Chunk, Heads, Site
from xatlas.engine.walk import (
    is_last_position,
    is_written,
    needed_positions,
    nested,
    runs_last_position,
    sites_read,
)
from xatlas.errors import XatlasError
from xatlas.files import sha256
from xatlas.interventions import Condition, means_needed
from xatlas.metrics import Metric
from xatlas.model import HookedModel
from xatlas.prompts.reader import TokenPrompt, buckets
from xatlas.suites import template_turns
from xatlas.vocabulary import READ_ONLY, SITE_KINDS

#: Tokens of each other run, by prompt; None where the run has no counterpart of equal length.
Runs = Mapping[str, Sequence[tuple[int, ...] | None]]

log = logging.getLogger("xatlas")

#: Hugging Face model → what its weights looked like, and their checksum.
_CHECKSUMS: WeakKeyDictionary[Any, tuple[list[Any], str]] = WeakKeyDictionary()


@dataclass
class Budget:
    """How much memory a sweep may take besides the weights."""

    stream_bytes: int = 192 << 20  # for recorded streams, other values of the clean run, and perturbed streams, each
    logit_bytes: int = 48 << 20  # for one tensor of logits
    tile_tokens: int = 2048  # tokens that go through a layer at a time

    @classmethod
    def for_device(cls, device: torch.device) -> Budget:
        """Return a budget that suits the device: fixed on CPU, a share of the free memory on CUDA."""
        if device.type != "cuda":
            return cls()
        free, _ = torch.cuda.mem_get_info(device)
        return cls(stream_bytes=int(free * 0.2), logit_bytes=int(free * 0.04), tile_tokens=1 << 16)

    def halved(self) -> Budget:
        """Return half of everything; raises where nothing is left to halve."""
        if self.tile_tokens < 64:
            raise XatlasError("not enough memory for a single prompt: use shorter prompts or a smaller model.")
        return Budget(self.stream_bytes // 2, self.logit_bytes // 2, self.tile_tokens // 2)

    def most_prompts(self, model: HookedModel, length: int, n_runs: int) -> int:
        """Return how many prompts of this length a bucket may hold."""
        row = (model.n_layers + 1) * length * model.d_model * 4 * (1 + n_runs)
        return max(1, min(self.tile_tokens // length, self.stream_bytes // row))


def up_to_readout(prompts: Sequence[TokenPrompt], metrics: Sequence[Metric]) -> list[TokenPrompt]:
    """Return what is run of prompts: up to the readout where nothing after it is read, else all of them."""
    # by causality nothing behind it matters
    if all(set(metric.positions(prompt)) <= {prompt.readout} for metric in metrics for prompt in prompts):
        return [replace(prompt, ids=prompt.ids[: prompt.readout + 1]) for prompt in prompts]
    return list(prompts)


def buckets_of(model: HookedModel, prompts: Sequence[TokenPrompt], budget: Budget, n_runs: int) -> list[np.ndarray]:
    """Return the indices of prompts in buckets of one length, and of one block of their families' templates.

    Blocks are the first template, the second, two more, four more, …: what a sweep keeps of the first 1, 2, 4, …
    templates is then what a sweep over more of them looks for. Rounding depends on what shares a bucket.
    """
    turns = template_turns(prompt.prompt for prompt in prompts)
    places = [(turn.bit_length(), len(prompt.ids)) for turn, prompt in zip(turns, prompts, strict=True)]
    kinds = sorted(set(places))
    numbers = [kinds.index(place) for place in places]
    return buckets(numbers, lambda number: budget.most_prompts(model, kinds[number][1], n_runs))


@dataclass(frozen=True)
class Work:
    """What a sweep does: ``(layer,)`` each, the clean runs included, and the rest in numbers."""

    tokens: np.ndarray  # that go through a layer
    calls: np.ndarray  # of a layer
    rows: int  # positions that are unembedded
    visits: int  # conditions, counted in every bucket


def work(
    model: HookedModel, prompts: Sequence[TokenPrompt], conditions: Sequence[Condition], metrics: Sequence[Metric]
) -> Work:
    """Count what a sweep will do; the model needs no weights."""
    runs = frozenset().union(*(part.change.runs() for condition in conditions for part in condition))
    prompts, budget = up_to_readout(prompts, metrics), Budget.for_device(model.device)
    tokens, calls = np.zeros((2, model.n_layers), dtype=int)
    rows = visits = 0
    ways = Counter(map(_way, conditions))
    for group in buckets_of(model, prompts, budget, len(runs)):
        some = [prompts[i] for i in group]
        read = {(row, p) for metric in metrics for row, prompt in enumerate(some) for p in metric.positions(prompt)}
        length, possible = len(some[0].ids), runs_last_position(model, some, metrics)
        needed = needed_positions(model, length - min((p for _, p in read), default=length - 1))
        changed = np.zeros(model.n_layers, dtype=int)
        for (start, end, last_only), count in ways.items():
            for layer in range(start, model.n_layers):
                whole = 1 if last_only and possible else length
                short = needed[layer] if layer > end else None
                changed[layer] += count * len(some) * (whole if short is None else min(short, whole))
        tokens += changed + len(some) * length * (1 + len(runs))
        calls += 1 + -(-changed // budget.tile_tokens)
        rows, visits = rows + len(read) * len(conditions), visits + len(conditions)
    return Work(tokens, calls, rows, visits)


def _way(condition: Condition) -> tuple[int, int, bool]:
    """Return the first layer that a condition is run through, that of its last change, and if it is the readout's."""
    start, end = min(part.site.layer for part in condition), max(part.site.layer for part in condition)
    written = is_written([part for part in condition if part.site.layer == start])
    return start + written, end, all(map(is_last_position, condition))


def kept_sites(model: HookedModel, conditions: Sequence[Condition], tokens: int, budget: Budget) -> list[Site]:
    """Return the sites whose values the clean run keeps: all that conditions may read, or none where they don't fit."""
    sites, width = sites_read(conditions), 0  # numbers per token
    for site in sites:
        if site.kind in READ_ONLY or site.kind not in SITE_KINDS:  # of unknown size
            return []
        if site.kind not in ("resid_pre", "resid_post"):  # what enters and leaves a layer is recorded anyway
            view = model.point(site).view
            parts = view.count if isinstance(view, Chunk) else 1  # a part keeps the whole
            width += view.n_heads * view.d_head if isinstance(view, Heads) else model.d_model * parts
    return sites if width * tokens * 4 <= budget.stream_bytes else []


def check_sweep(
    model: HookedModel,
    prompts: Sequence[TokenPrompt],
    conditions: Sequence[Condition],
    runs: Runs,
    means: Mapping[Site, Tensor],
) -> None:
    """Refuse, before anything is run, what would fail later."""
    for condition in conditions:
        if not condition:
            raise XatlasError("a condition needs at least one intervention.")
        for part in condition:
            for each in (part, *nested(part)):
                model.check(each)
            for name in part.change.runs() - set(runs):
                raise XatlasError(f"the sweep was not given the run '{name}' that a change at {part.site} needs.")
    for site in sites_read(conditions):
        model.point(site)
    for site in means_needed(conditions) - set(means):
        raise XatlasError(f"no reference mean was given for {site}.")
    for name, run in runs.items():
        for prompt, tokens in zip(prompts, run, strict=True):
            if tokens is not None and len(tokens) != len(prompt.ids):
                which = f"run '{name}' of prompt '{prompt.prompt.id}'"
                raise XatlasError(f"{which} has {len(tokens)} tokens, not {len(prompt.ids)}.")


class _Canonical(pickle.Pickler):
    """Writes equal things as equal bytes, different ones as different bytes, in any process; what has no name fails."""

    def __init__(self, file: io.BytesIO, known: Collection[object]) -> None:
        super().__init__(file, protocol=5)
        self.fast = True  # no memo: bytes that depend on values alone, not on which of them are one object
        self.known = {id(each): each for each in known}
        self.tensors: dict[int, tuple[Tensor, str]] = {}  # the tensor too, so that its id is not given away again

    def persistent_id(self, thing: Any) -> str | None:
        """Return the content of what pickle writes by layout, by order or not at all."""
        if id(thing) in self.known:
            return "the model"
        if isinstance(thing, torch.Tensor):
            if id(thing) not in self.tensors:
                raw = thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                content = f"{thing.dtype} {tuple(thing.shape)} {sha256(raw.data)}"
                self.tensors[id(thing)] = thing, content
            return self.tensors[id(thing)][1]
        if isinstance(thing, set | frozenset):
            return f"{type(thing).__name__} {sorted(canonical_digest(each, self.known.values()) for each in thing)}"
        return None


def canonical_digest(thing: Any, known: Collection[object] = ()) -> str:
    """Return a hex digest of what something holds, apart from ``known`` objects; raises where that is impossible."""
    file = io.BytesIO()
    _Canonical(file, known).dump(thing)
    return sha256(file.getvalue())


def _weights(model: HookedModel) -> str:
    """Return the weights' checksum; taken once for many sweeps, as long as nothing has written to them."""
    tensors = model.model.state_dict().values()
    stamp = [(t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, t.shape) for t in tensors]
    # writes through .data raise no version: they change the sums
    stamp += torch.stack([t.sum(dtype=torch.float32) for t in tensors]).tolist()
    known = _CHECKSUMS.get(model.model)
    if known is None or known[0] != stamp:
        known = _CHECKSUMS[model.model] = stamp, model.checksum()
    return known[1]


def checkpoint_keys(model: HookedModel, label: str, whole: Any, parts: Sequence[Any]) -> list[str] | None:
    """Return under what each finished bucket is kept: a digest of all that its numbers depend on.

    ``whole`` is what the sweep holds besides the model, ``parts`` what each bucket does. None where that can't be told
    from others by its fields.
    """
    known = (model, model.model, model.adapter)
    try:
        common = f"{canonical_digest([label, whole], known)} {model.dtype} {_weights(model)}"
        return [canonical_digest([common, part]) for part in parts]
    except Exception as error:
        log.warning("sweep '%s' can't be resumed: its fields don't say all that it does (%s)", label, error)
        return None
