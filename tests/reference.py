"""The plain way: one hooked Hugging Face forward per prompt, a row for each condition.

It knows nothing of the engine: module names stand in ``plain_names``, hooks are torch's own, and every number
is computed from whole logits in float64. What the engine returns must be these numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from plain_names import plain_names

#: Numerical agreement in float32.
ABSOLUTE, RELATIVE = 1e-4, 1e-5

#: A place ``(layer, kind)`` and a function from its value ``(1, pos, ...)`` to the new value.
Edit = tuple[int, str, Callable[[torch.Tensor], torch.Tensor]]


def agree(ours: Any, reference: Any) -> bool:
    """Whether two arrays agree within 1e-4 nats + 1e-5 relative, NaN where NaN."""
    return np.allclose(ours, reference, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)


def logits(model: Any, ids: Sequence[int], edits: Sequence[Edit] = ()) -> torch.Tensor:
    """Return the logits ``(pos, vocabulary)`` of one prompt in float64, with edits in place."""
    return many_logits(model, ids, [edits])[0]


def many_logits(model: Any, ids: Sequence[int], rows: Sequence[Sequence[Edit]]) -> torch.Tensor:
    """Return the logits ``(row, pos, vocabulary)`` of one prompt in rows of one forward, each with its own edits."""
    with ExitStack() as stack, torch.no_grad():
        for row, edits in enumerate(rows):
            for layer, kind, change in edits:
                for handle in _hook(model, layer, kind, _of_row(row, change)):
                    stack.callback(handle.remove)
        return model(input_ids=torch.tensor([list(ids)] * len(rows)), use_cache=False).logits.double()


def _of_row(row: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def changed(value: torch.Tensor) -> torch.Tensor:
        new = value.clone()
        new[row : row + 1] = change(value[row : row + 1])
        return new

    return changed


def every_value(model: Any, ids: Sequence[int], sites: Sequence[tuple[int, str]]) -> dict[tuple[int, str], Any]:
    """Return the values ``(1, pos, ...)`` of several sites in one clean run."""
    seen: dict[tuple[int, str], torch.Tensor] = {}

    def looker(site: tuple[int, str]) -> Callable[[torch.Tensor], torch.Tensor]:
        def look(value: torch.Tensor) -> torch.Tensor:
            seen[site] = value.clone()
            return value

        return look

    # One site per forward would do as well: a value is read before anything is written.
    for start in ("resid_mid", ""):
        logits(model, ids, [(*site, looker(site)) for site in sites if (site[1] == "resid_mid") == bool(start)])
    return seen


def values(model: Any, ids: Sequence[int], layer: int, kind: str) -> torch.Tensor:
    """Return a site's value ``(1, pos, ...)`` in a clean run."""
    seen: list[torch.Tensor] = []

    def look(value: torch.Tensor) -> torch.Tensor:
        seen.append(value.clone())
        return value

    logits(model, ids, [(layer, kind, look)])
    return seen[0]


def _hook(model: Any, layer: int, kind: str, change: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
    names = plain_names(model, layer)
    block = model.get_submodule(f"{names.layers}.{layer}")
    config = model.config.get_text_config()
    factors = names.factors(config) or (names.factor(config),) * len(names.operator)

    def on_output(_: Any, __: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    def on_input(_: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    if kind == "resid_pre" and names.enters and layer == 0:
        return [block.get_submodule(names.enters).register_forward_hook(on_output)]
    if kind == "resid_pre":
        return [block.register_forward_pre_hook(on_input, with_kwargs=True)]
    if kind == "resid_post":
        return [block.register_forward_hook(on_output)]
    if kind == "operator_out":
        return _on_added(block, names.operator, factors, change)
    if kind == "mlp_out":
        factors = (names.factor(config),) * len(names.mlp)
        if not names.flat:
            return _on_added(block, names.mlp, factors, change)
        rows: list[int] = []

        def count(_: Any, args: Any, kwargs: Any) -> None:
            rows.append(len(args[0] if args else kwargs["hidden_states"]))

        def unflattened(value: torch.Tensor) -> torch.Tensor:
            return change(value.unflatten(0, (rows[-1], -1))).flatten(0, 1)

        handle = block.register_forward_pre_hook(count, with_kwargs=True)
        return [handle, *_on_added(block, names.mlp, factors, unflattened)]
    if kind == "heads":

        def on_heads(_: Any, args: Any) -> Any:
            split = args[0].unflatten(-1, (getattr(config, names.heads), -1))
            return (change(split).reshape(args[0].shape),)

        return [block.get_submodule(names.out).register_forward_pre_hook(on_heads)]
    if kind == "resid_mid":
        entered: list[torch.Tensor] = []

        def keep(_: Any, args: Any, kwargs: Any) -> None:
            entered.append(args[0] if args else kwargs["hidden_states"])

        def rewritten(written: torch.Tensor) -> torch.Tensor:
            stream = entered[-1] + written
            changed = change(stream)
            return _where_changed(changed - stream, changed - entered[-1], written)

        handle = block.register_forward_pre_hook(keep, with_kwargs=True)
        return [handle, *_on_added(block, names.operator, factors, rewritten)]
    third = {"conv_gate": 0, "conv_carrier": 1, "conv_signal": 2}[kind]

    def on_third(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        parts = list(output.chunk(3, dim=-1))
        parts[third] = change(parts[third])
        return torch.cat(parts, dim=-1)

    return [block.get_submodule(names.parts).register_forward_hook(on_third)]


def _where_changed(difference: torch.Tensor, new: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """Return what is new, and to the last digit what was written where nothing is; derivatives are those by what is."""
    return torch.where(difference == 0, written + difference, new)


def _on_added(
    block: Any, modules: Sequence[str], factors: Sequence[float], change: Callable[[torch.Tensor], torch.Tensor]
) -> list[Any]:
    """Hook what several modules add to the stream together, times a factor each: the last that runs changes it."""
    before: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        before.append((output[0] if isinstance(output, tuple) else output) * factors[len(before)])

    def last(_: Any, __: Any, output: Any) -> Any:
        written = output[0] if isinstance(output, tuple) else output
        others = sum(before)
        total = written * factors[-1] + others
        changed = change(total)
        new = _where_changed(changed - total, (changed - others) / factors[-1], written)
        before.clear()
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handles = [block.get_submodule(name).register_forward_hook(keep) for name in modules[:-1]]
    return [*handles, block.get_submodule(modules[-1]).register_forward_hook(last)]


def kl(clean: torch.Tensor, changed: torch.Tensor) -> float:
    """KL(clean ‖ changed) of one position's logits ``(vocabulary,)``, in nats; of several, their mean."""
    p, q = clean.log_softmax(-1), changed.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def measure(prompt: Any, clean: torch.Tensor, changed: torch.Tensor) -> list[float]:
    """Return KL last, KL all, change of NLL per byte, top-1 changed, change of the logit difference.

    They are made of the prompt's logits ``(pos, vocabulary)`` without and with edits; NaN where a prompt has no target
    or foil.
    """
    here, there = clean[prompt.readout], changed[prompt.readout]
    nll = diff = float("nan")
    if prompt.target_ids:
        places = list(enumerate(prompt.target_ids, start=prompt.n_text - 1))
        lost = sum(clean[p].log_softmax(-1)[token] - changed[p].log_softmax(-1)[token] for p, token in places)
        nll = float(lost) / len(prompt.prompt.target.encode())
    if prompt.foil_answer is not None:
        gaps = [row[prompt.answer] - row[prompt.foil_answer] for row in (here, there)]
        diff = float(gaps[1] - gaps[0])
    text = slice(1, prompt.n_text)
    return [kl(here, there), kl(clean[text], changed[text]), nll, float(here.argmax() != there.argmax()), diff]
