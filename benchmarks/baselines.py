"""The two plain ways to do a sweep, without the engine: hooks over whole Hugging Face forwards.

Both are given what the engine is given (the same tokens, conditions, reference means and random directions)
and return the same number, KL at the readout in nats. Neither uses `xatlas.sweep` or
`xatlas.model.hooks`. What can be made once, they are given ready made: directions cost them nothing.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from types import SimpleNamespace

import numpy as np
import torch

from xatlas.interventions import Target

#: Prompts per forward of the second baseline: more gain nothing on a CPU, and memory stays small.
LARGEST_BATCH = 32


@dataclass(frozen=True)
class PlainCondition:
    """One ablation or control, in tensors.

    Parameters
    ----------
    parts : tuple of (module, side, columns, means)
        Where values are replaced, or, for a control, looked at: an ``nn.Module``, ``"input"`` or
        ``"output"``, the slice of the last dimension, and the means ``(2, width)`` at position 0 and after.
    control : tuple of (module, side, columns, direction) or None
        Where random directions ``(row, width)`` of norm 1, one for each prompt, are added instead of replacing.
    """

    parts: tuple
    control: tuple | None = None


def plain_conditions(model, prompts, conditions, controls, means, seed):
    """Turn conditions of mean ablation, and which of them are controls, into tensors and modules.

    ``controls[i]`` is the ablation that condition i controls, or None.
    """
    stub = SimpleNamespace(seed=seed, names=[prompt.prompt.id for prompt in prompts])
    result = []
    for condition, controlled in zip(conditions, controls, strict=True):
        parts = tuple(_part(model, item, means) for item in controlled or condition)
        control = None
        if controlled:
            (added,) = condition
            module, side, columns = _place(model, added)
            sample = Target(stub, added.site, added.heads).pick(added.change.sample).flatten(1)
            weights = Target(stub, added.site, added.heads).random_by_prompt(sample.shape[:1], "direction 0", sample)
            direction = weights @ sample
            direction = direction / direction.norm(dim=-1, keepdim=True)
            control = (module, side, columns, direction.to(model.dtype))
        result.append(PlainCondition(parts, control))
    return result


def _place(model, intervention):
    point = model.point(intervention.site)
    width = model.d_model
    columns = slice(0, width)
    if intervention.heads is not None:
        (head,), d_head = intervention.heads, model.head_layouts[intervention.site.layer].d_head
        columns = slice(head * d_head, (head + 1) * d_head)
    return model.adapter.module(point.module), point.side, columns


def _part(model, intervention, means):
    value = means[intervention.site]
    if intervention.heads is not None:
        value = value[:, intervention.heads[0]]
    return (*_place(model, intervention), value.to(model.device, model.dtype))


@contextmanager
def held(condition, rows):
    """Hold the hooks of one condition over some of the prompts."""
    changes = []

    def replace(means):
        def change(value):  # (rows, pos, width)
            new = means[1].expand_as(value).clone()
            new[:, 0] = means[0]
            return new

        return change

    def look(means):
        def change(value):
            new = means[1].expand_as(value).clone()
            new[:, 0] = means[0]
            changes.append(new - value)

        return change

    def add(direction):
        def change(value):
            total = changes[0] if len(changes) == 1 else changes[0] + changes[1]
            changes.clear()
            return value + direction[rows, None] * total.norm(dim=-1, keepdim=True)

        return change

    with ExitStack() as stack:
        make = look if condition.control else replace
        for module, side, columns, means in condition.parts:
            stack.callback(_hook(module, side, columns, make(means)).remove)
        if condition.control:
            module, side, columns, direction = condition.control
            stack.callback(_hook(module, side, columns, add(direction)).remove)
        yield


def _hook(module, side, columns, change):
    def edited(tensor):
        new = change(tensor[..., columns])
        if new is None:
            return None
        if columns.stop - columns.start == tensor.shape[-1]:
            return new
        result = tensor.clone()
        result[..., columns] = new
        return result

    if side == "input":

        def before(_, args):
            new = edited(args[0])
            return None if new is None else (new, *args[1:])

        return module.register_forward_pre_hook(before)

    def after(_, __, output):
        new = edited(output[0] if isinstance(output, tuple) else output)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return module.register_forward_hook(after)


def _kl(clean, other):
    """Return KL(clean ‖ other) of logits ``(..., vocabulary)`` in nats."""
    clean, other = clean.float().log_softmax(-1), other.float().log_softmax(-1)
    return (clean.exp() * (clean - other)).sum(-1)


@torch.inference_mode()
def prompt_by_prompt(model, prompts, conditions):
    """Run every condition on every prompt alone; returns ``(prompt, condition)``."""
    result = np.zeros((len(prompts), len(conditions)))
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([prompt.ids], device=model.device)
        clean = model.model(input_ids=ids, use_cache=False).logits[0, -1]
        for column, condition in enumerate(conditions):
            with held(condition, [row]):
                logits = model.model(input_ids=ids, use_cache=False).logits[0, -1]
            result[row, column] = _kl(clean, logits).item()
    return result


@torch.inference_mode()
def bucketed(model, prompts, conditions):
    """Run every condition on all prompts of one length at once, last logits only."""
    result = np.zeros((len(prompts), len(conditions)))
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].ids))
    for _, same in groupby(order, key=lambda row: len(prompts[row].ids)):
        rows = list(same)
        for start in range(0, len(rows), LARGEST_BATCH):
            some = rows[start : start + LARGEST_BATCH]
            ids = torch.tensor([prompts[row].ids for row in some], device=model.device)
            clean = model.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
            for column, condition in enumerate(conditions):
                with held(condition, some):
                    output = model.model(input_ids=ids, use_cache=False, logits_to_keep=1)
                result[some, column] = _kl(clean, output.logits[:, -1]).cpu().numpy()
    return result
