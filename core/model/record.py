"""What a clean forward leaves behind: values at sites; each layer's input, and the arguments it was called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch

from xatlas.errors import XatlasError
from xatlas.model.hooks import attached, first_tensor, keeper
from xatlas.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.model import HookedModel
    from xatlas.prompts import TokenPrompt


@dataclass(frozen=True)
class Capture:
    """What reading probes receive: prompts of equal length and the values at their sites.

    Parameters
    ----------
    prompts : tuple of TokenPrompt
        The rows, in order.
    index : tuple of int
        Where each stands in the tokenised suite.
    values : dict of Site to Tensor
        ``(prompt, pos, ...)`` as the site kind says.
    """

    prompts: tuple[TokenPrompt, ...]
    index: tuple[int, ...]
    values: dict[Site, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerCall:
    """The arguments that a layer was called with besides the stream, cut to one row."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class CleanRun:
    """One clean pass over prompts of equal length.

    Parameters
    ----------
    inputs : list of Tensor
        The stream entering each layer ``(prompt, pos, d_model)``.
    calls : list of LayerCall
        The rest of each layer's arguments.
    final : Tensor
        The stream leaving the last layer ``(prompt, pos, d_model)``.
    values : dict of Site to Tensor
        ``(prompt, pos, ...)`` at the sites that were asked for.
    """

    inputs: list[Tensor]
    calls: list[LayerCall]
    final: Tensor
    values: dict[Site, Tensor] = field(default_factory=dict)


@contextmanager
def recording(model: HookedModel, rows: int, sites: Sequence[Site] = ()) -> Iterator[Callable[[], CleanRun]]:
    """Keep what each layer is called with, and the values at ``sites``, while a forward of ``rows`` prompts runs.

    Yields
    ------
    callable
        Returns the record, once the forward is done.
    """
    inputs: list[Tensor] = []
    calls: list[LayerCall] = []
    final: list[Tensor] = []
    values: dict[Site, Tensor] = {}
    thread = get_ident()

    def before(_: Any, args: Any, kwargs: Any) -> None:
        if get_ident() != thread:
            return
        hidden, args, kwargs, name = first_tensor(args, kwargs)
        inputs.append(model.lasting(Site(len(inputs), "resid_pre"), hidden))
        rest = args[1:] if name is None else args
        skipped = (name, model.adapter.cache_argument, "use_cache")
        named = {key: value for key, value in kwargs.items() if key not in skipped}
        calls.append(LayerCall(*one_row((tuple(rest), named), rows)))

    hooks = [model.hook(Site(model.n_layers - 1, "resid_post"), final.append)]
    hooks += [model.hook(site, keeper(values, site)) for site in sites]
    with ExitStack() as stack:
        for layer in range(model.n_layers):
            handle = model.adapter.layer(layer).register_forward_pre_hook(before, prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(attached(hooks))
        yield lambda: CleanRun(inputs, calls, final[0], values)


def one_row(value: Any, rows: int) -> Any:
    """Cut every tensor with a batch dimension to one row, which stands for all: there is no padding.

    Raises
    ------
    XatlasError
        The rows differ, so one can't stand for all.
    """
    if isinstance(value, torch.Tensor):
        if rows == 1 or value.dim() < 2 or value.shape[0] != rows:
            return value
        if not torch.equal(value, value[:1].expand_as(value)):
            raise XatlasError("a layer takes an argument that differs between prompts of equal length.")
        return value[:1]
    if isinstance(value, dict):
        return {key: one_row(item, rows) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(one_row(item, rows) for item in value)
    return value
