"""Greedy generation for many prompts at once, equal to generating for each alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from xatlas.model.hooks import exclusive

if TYPE_CHECKING:
    from xatlas.model import HookedModel

#: Prompts that are continued together unless a number is given.
BATCH = 16
#: Difference of logits, as a share of their largest, that is rounding: by dtype.
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
#: Difference of the two largest logits within which another batch may decide otherwise: a tie.
TIE = 1e-4
#: Tokens of the short and the long prompt that padding is tried on, and steps after them.
_SHORT, _LONG, _STEPS = 3, 12, 3


@dataclass(frozen=True)
class Way:
    """How a model's prompts can be continued together, and still as each alone."""

    padded: bool  # prompts of different lengths, padded on the left; else those of one length
    cached: bool  # with the model's cache; else every step runs the whole text


@dataclass(frozen=True)
class Continuation:
    """What a model writes after a prompt."""

    tokens: tuple[int, ...]  # without the one that ended it
    stop_reason: str  # end: the model ended it; length: it was as long as allowed
    ties: int = field(default=0, compare=False)  # steps at which the two likeliest tokens tie


_WAYS: WeakKeyDictionary[Any, Way] = WeakKeyDictionary()


def end_tokens(model: HookedModel) -> list[int]:
    """Return the tokens that end what the model writes."""
    ends = getattr(model.model.generation_config, "eos_token_id", None)
    if ends is None and model.tokenizer is not None:
        ends = model.tokenizer.eos_token_id
    return [] if ends is None else [int(each) for each in (ends if isinstance(ends, list) else [ends])]


def run_generate(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    most: int,
    way: Way,
    *,
    forced: bool = False,
    output_logits: bool = False,
    **watching: Any,
) -> Any:
    """Call ``generate`` greedily on prompts; ``forced``: it writes ``most`` tokens, whatever they are.

    ``watching`` are lists of functions that are called at each step, as ``generate`` takes them: ``logits_processor``,
    ``stopping_criteria``.
    """
    from transformers import GenerationConfig

    ends = [] if forced else end_tokens(model)
    width = max(map(len, prompts))
    pad = ends[0] if ends else 0
    ids = torch.tensor([[pad] * (width - len(each)) + list(each) for each in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=model.device)
    config = GenerationConfig(
        max_new_tokens=most,
        min_new_tokens=most if forced else None,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=pad,
        use_cache=way.cached,
        output_logits=output_logits,
        return_dict_in_generate=True,
    )
    own = model.model.generation_config
    model.model.generation_config = config  # the model's own may sample, or punish repetition
    try:
        with torch.inference_mode():
            return model.model.generate(ids, attention_mask=mask, generation_config=config, **watching)
    finally:
        model.model.generation_config = own


@exclusive
def way_for(model: HookedModel) -> Way:
    """Return how prompts of a model can be continued together, tried on two prompts when it is first asked for.

    Padding, and the cache, are used where the logits of three steps are those of whole forwards of each prompt alone.
    """
    return _WAYS.get(model.model) or _WAYS.setdefault(model.model, _tried(model))


def _tried(model: HookedModel) -> Way:
    vocabulary = model.adapter.vocabulary
    long = [(7 * i + 5) % vocabulary for i in range(_LONG)]
    short = [(11 * i + 3) % vocabulary for i in range(_SHORT)]

    def logits(prompts: Sequence[Sequence[int]], way: Way) -> Tensor:
        made = run_generate(model, prompts, _STEPS, way, forced=True, output_logits=True)
        rows: Tensor = torch.stack(made.logits)[:, 0].float()
        return rows

    right = logits([short], Way(True, False))
    most = _ROUNDING.get(model.dtype, 1e-4) * float(right.abs().max().clamp(min=1.0))
    pair = [short, long]
    alike = [short, long[:_SHORT]]  # some caches mix up the rows of a batch
    for way, prompts in ((Way(True, True), pair), (Way(False, True), alike), (Way(True, False), pair)):
        try:
            found = logits(prompts, way)
        except Exception:  # whatever a model's own code raises where it can't do so
            continue
        if found.shape == right.shape and float((found - right).abs().max()) <= most:
            return way
    return Way(False, False)


def batches(lengths: Sequence[int], most: Sequence[int], way: Way, size: int = BATCH) -> list[list[int]]:
    """Return the indices of prompts that are continued together: alike in length, and in how much may follow."""
    order = sorted(range(len(lengths)), key=lambda i: (most[i], lengths[i], i))
    made: list[list[int]] = []
    for index in order:
        last = made[-1] if made else []
        fits = 0 < len(last) < size and most[last[0]] == most[index]
        if fits and (way.padded or lengths[last[0]] == lengths[index]):
            last.append(index)
        else:
            made.append([index])
    return made


@exclusive
def continue_batch(model: HookedModel, prompts: Sequence[Sequence[int]], most: int) -> list[Continuation]:
    """Return what a model writes after prompts of token ids, greedily, at most ``most`` tokens each.

    They are padded on the left where the model reads them so as it reads each alone; else they must be of one length.
    """
    ends, near = set(end_tokens(model)), []

    def count(_: Tensor, logits: Tensor) -> Tensor:
        near.append((logits >= logits.amax(-1, keepdim=True) - TIE).sum(-1) > 1)
        return logits

    made = run_generate(model, prompts, most, way_for(model), logits_processor=[count]).sequences
    found = []
    for row, ties in zip(made[:, max(map(len, prompts)) :].tolist(), torch.stack(near, 1).tolist(), strict=True):
        stop = next((place for place, token in enumerate(row) if token in ends), None)
        steps = len(row) if stop is None else stop + 1
        found.append(Continuation(tuple(row[:stop]), "length" if stop is None else "end", sum(ties[:steps])))
    return found


def continue_all(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    most: int | Sequence[int],
    size: int = BATCH,
    kept: Callable[[list[int], list[Continuation]], None] | None = None,
) -> list[Continuation]:
    """Return what a model writes after each prompt, batch by batch; ``kept`` is told of each batch that is done."""
    limits = [most] * len(prompts) if isinstance(most, int) else list(most)
    found: dict[int, Continuation] = {}
    for rows in batches(list(map(len, prompts)), limits, way_for(model), size):
        made = continue_batch(model, [prompts[i] for i in rows], limits[rows[0]])
        found.update(zip(rows, made, strict=True))
        if kept is not None:
            kept(rows, made)
    return [found[i] for i in range(len(prompts))]
