"""Hooks on one hook point: reading and editing what a module takes or returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from xatlas.errors import XatlasError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from xatlas.sites import HookPoint, Site

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
