"""Hooks on a hook point: reading, editing, and recording what a clean forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from xatlas.contracts.adapter import HookPoint, Site
    from xatlas.model import HookedModel
    from xatlas.prompts.reader import TokenPrompt


#: Receives the site's value; returns the new one, or None to leave it.
SiteFunction = Callable[["Tensor"], "Tensor | None"]
#: Receives the site's value and returns the new one.
Editor = Callable[["Tensor"], "Tensor"]
#: A module, its hook point, and what is called there: the arguments of :func:`attach`.
Hook = tuple["nn.Module", "HookPoint", SiteFunction]
_F = TypeVar("_F", bound=Callable[..., Any])


def exclusive(function: _F) -> _F:
    """Make a function hold the lock of its first argument, a ``HookedModel``, while it runs."""

    @wraps(function)
    def alone(model: Any, *args: Any, **kwargs: Any) -> Any:
        with model.lock:
            return function(model, *args, **kwargs)

    return cast("_F", alone)


def attach(module: nn.Module, point: HookPoint, function: SiteFunction) -> RemovableHandle:
    """Call ``function`` on the site's value each time the module runs.

    Parameters
    ----------
    module : Module
        The one at ``point.module``.
    point : HookPoint
        Side and view.
    function : callable
        Reads the value, and may return a new one.

    Returns
    -------
    RemovableHandle
        Its ``remove`` takes the hook away.

    Raises
    ------
    XatlasError
        While the module runs: it was called without a tensor, or returns none where the site should be.
    """
    if point.side == "input":

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            tensor, args_, kwargs_, name = first_tensor(args, kwargs)
            new = function(point.view.read(tensor))
            if new is None:
                return None
            written = point.view.write(tensor, new)
            if name is None:
                return (written, *args_[1:]), kwargs_
            return args_, {**kwargs_, name: written}

        return module.register_forward_pre_hook(before, with_kwargs=True)

    element = point.view.element

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        tensor = output[element] if isinstance(output, tuple) else output
        if tensor is None:
            raise XatlasError(f"{point.module} returns no attention weights: load the model with --attention eager.")
        new = function(point.view.read(tensor))
        if new is None:
            return None
        written = point.view.write(tensor, new)
        return (*output[:element], written, *output[element + 1 :]) if isinstance(output, tuple) else written

    return module.register_forward_hook(after)


def first_tensor(args: Any, kwargs: Any) -> tuple[Tensor, Any, dict[str, Any], str | None]:
    """Return a module's first tensor argument, the arguments, and its keyword if it was one.

    Raises
    ------
    XatlasError
        No argument is a tensor.
    """
    if args and isinstance(args[0], torch.Tensor):
        return args[0], args, kwargs, None
    for name, value in kwargs.items():
        if isinstance(value, torch.Tensor):
            return value, args, kwargs, name
    raise XatlasError("a hooked module was called without a tensor: its adapter names the wrong module.")


@contextmanager
def attached(hooks: Iterable[Hook], *, every_thread: bool = False) -> Iterator[None]:
    """Hold several hooks for the length of a ``with`` block; none survives it.

    Forwards that other threads run meanwhile pass them by, unless ``every_thread``.

    Raises
    ------
    XatlasError
        As :func:`attach`.
    """
    with ExitStack() as stack:
        for module, point, function in hooks:
            kept = function if every_thread else _own(function)
            stack.callback(attach(module, point, kept).remove)
        yield


def _own(function: SiteFunction) -> SiteFunction:
    thread = get_ident()
    return lambda value: function(value) if get_ident() == thread else None


def count_hooks(model: nn.Module) -> int:
    """Return how many forward hooks a model's modules hold."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def keeper(values: dict[Site, Tensor], site: Site) -> SiteFunction:
    """Return a function that keeps what it is shown as ``values[site]``."""

    def keep(value: Tensor) -> None:
        values[site] = value

    return keep


def rebuilding(editor: Editor) -> tuple[SiteFunction, Editor]:
    """Return how the stream is edited by way of what is added to it.

    Where a module only reads a copy of the stream, replacing what it reads would miss the stream itself. The
    stream is then rebuilt where it was last added to, from what entered the layer.

    Returns
    -------
    enter : callable
        Is shown the stream entering the layer ``(row, pos, d_model)``.
    rebuild : callable
        Takes what is added to it, and returns what makes the sum ``editor(sum)``.
    """
    entered: list[Tensor] = []

    def enter(value: Tensor) -> None:
        entered[:] = [value]

    def rebuild(value: Tensor) -> Tensor:
        stream = entered[0] + value
        new = editor(stream)
        # Exact where the stream is set to zero, and where it is left alone.
        return torch.where(new == stream, value, new - entered[0])

    return enter, rebuild


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
