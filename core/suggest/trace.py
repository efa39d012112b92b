"""What every module of a small model takes and gives in one forward."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from xatlas.model.hooks import attention_weights

LENGTH = 6
#: Relative difference up to which sums are equal.
CLOSE = 1e-4


@dataclass
class Trace:
    """What every module took and gave in one forward: path → tensors, in the order in which they ran."""

    entered: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    patterns: dict[str, Tensor] = field(default_factory=dict)
    again: dict[str, Tensor] = field(default_factory=dict)  # what modules took last that ran more than once: no sites


@torch.inference_mode()
def traced(hf: Any, first: int) -> Trace:
    """Trace a forward of fixed tokens, with ``first`` added to the first of them."""
    trace, handles, twice = Trace(), list[Any](), set[str]()

    def keep(path: str) -> Any:
        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            parts = output if isinstance(output, tuple | list) else (output,)
            tensors = [part for part in parts if isinstance(part, Tensor)]
            if given is not None and tensors:
                twice.update({path} & trace.left.keys())
                trace.entered[path], trace.left[path] = given.clone(), tensors[0].clone()
                patterns = [
                    part for part in tensors[1:] if part.dim() == 4 and part.shape[-1] == part.shape[-2] == LENGTH
                ]
                trace.patterns |= dict(zip((path,), patterns, strict=False))

        return after

    for path, module in hf.named_modules():
        if path:
            handles.append(module.register_forward_hook(keep(path), with_kwargs=True))
    ids = torch.arange(3, 3 + LENGTH)[None]
    ids[0, 0] += first
    try:
        with attention_weights(hf):
            hf(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for path in twice:  # a hook there would fire more than once
        trace.again[path] = trace.entered.pop(path)
        del trace.left[path]
    return trace


@torch.inference_mode()
def row_arguments(hf: Any, layers: str) -> tuple[str, ...]:
    """Return the arguments of layers that need a row for each prompt: cut to that of one, the forward differs.

    The first tensor is the stream, which is left as it is.
    """
    ids = torch.arange(3, 3 + LENGTH) + torch.arange(2)[:, None]
    lengths: dict[str, int] = {}

    def forward(rows: int, cut: str | None = None) -> Tensor:
        def before(layer: nn.Module, args: Any, kwargs: Any) -> Any:
            bound = dict(zip(inspect.signature(layer.forward).parameters, args, strict=False)) | kwargs
            tensors = [name for name, value in bound.items() if isinstance(value, Tensor) and value.dim() > 1]
            lengths.update({name: len(bound[name]) for name in tensors[1:]})
            return (), bound | {name: bound[name][: len(bound[name]) // rows] for name in tensors[1:] if name == cut}

        with ExitStack() as stack, attention_weights(hf):
            for layer in hf.get_submodule(layers):
                stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            logits: Tensor = hf(input_ids=ids[:rows], use_cache=False).logits
        return logits

    def needed(name: str) -> bool:
        try:
            return not same(forward(2, name), whole)
        except Exception:  # each class has its own way to say that sizes differ
            return True

    forward(1)
    of_one, whole = dict(lengths), forward(2)
    return tuple(name for name, n in dict(lengths).items() if n == 2 * of_one.get(name, n) and needed(name))


def same(one: Tensor | None, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, up to rounding, however they are shaped."""
    if one is None or one.numel() != other.numel():
        return False
    gap = float((one.double().flatten() - other.double().flatten()).norm())
    return gap <= CLOSE * float(other.double().norm())
