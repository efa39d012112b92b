"""Hooks on a hook point: reading, editing, and recording what a clean forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from xatlas.contracts.adapter import HookPoint, Site
from xatlas.errors import XatlasError
from xatlas.prompts.reader import TokenPrompt

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from xatlas.model import HookedModel

#: Receives the site's value; returns the new one, or None to leave it.
SiteFunction = Callable[["Tensor"], "Tensor | None"]
#: Receives the site's value and returns the new one.
Editor = Callable[["Tensor"], "Tensor"]
#: A module, its hook point, and what is called with the site's value each time the module runs.
Hook = tuple["nn.Module", HookPoint, SiteFunction]
_F = TypeVar("_F", bound=Callable[..., Any])


def exclusive(function: _F) -> _F:
    """Make a function hold the lock of its first argument, a ``HookedModel``, while it runs."""

    @wraps(function)
    def alone(model: Any, *args: Any, **kwargs: Any) -> Any:
        with model.lock:
            return function(model, *args, **kwargs)

    return cast("_F", alone)


@contextmanager
def attached(hooks: Iterable[Hook], *, every_thread: bool = False) -> Iterator[None]:
    """Hold several hooks for the length of a ``with`` block; none survives it.

    Forwards that other threads run meanwhile pass them by, unless ``every_thread``.
    """
    thread = None if every_thread else get_ident()
    with ExitStack() as stack:
        for module, point, function in hooks:
            stack.callback(_attach(module, point, function, thread).remove)
        yield


def _attach(module: nn.Module, point: HookPoint, function: SiteFunction, thread: int | None) -> RemovableHandle:
    def replaced(tensor: Tensor) -> Tensor | None:
        """Return the module's tensor with the site's new value; None where it stays."""
        new = function(point.view.read(tensor)) if thread in (None, get_ident()) else None
        return None if new is None else point.view.write(tensor, new)

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        tensor, name = first_tensor(args, kwargs)
        written = replaced(tensor)
        if written is None:
            return None
        return ((written, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: written})

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        element = point.view.element
        tensor = output[element] if isinstance(output, tuple) else output
        if tensor is None:
            raise XatlasError(f"{point.module} returns no attention weights: load the model with --attention eager.")
        written = replaced(tensor)
        whole = isinstance(output, tuple) and written is not None
        return (*output[:element], written, *output[element + 1 :]) if whole else written

    if point.side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def first_tensor(args: Any, kwargs: Any) -> tuple[Tensor, str | None]:
    """Return a module's first tensor argument, and its keyword if it was one."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0], None
    for name, value in kwargs.items():
        if isinstance(value, torch.Tensor):
            return value, name
    raise XatlasError("a hooked module was called without a tensor: its adapter names the wrong module.")


def count_hooks(model: nn.Module) -> int:
    """Return how many forward hooks a model's modules hold."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def capture_hook(values: dict[Site, Tensor], site: Site) -> SiteFunction:
    """Return a function that keeps the value it is called with as ``values[site]``."""

    def keep(value: Tensor) -> None:
        values[site] = value

    return keep


def rebuilding(editor: Editor) -> tuple[SiteFunction, Editor]:
    """Return how the stream is edited by way of what is added to it.

    Where a module only reads a copy of the stream, replacing what it reads would miss the stream itself. The
    stream is then rebuilt where it was last added to: the first function reads the stream entering the layer
    ``(row, pos, d_model)``, the second takes what is added to it and returns what makes the sum ``editor(sum)``.
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
    """What reading probes receive: prompts of equal length and the values at their sites."""

    prompts: tuple[TokenPrompt, ...]
    index: tuple[int, ...]  # where each stands in the tokenised suite
    values: dict[Site, Tensor] = field(default_factory=dict)  # (prompt, pos, ...) as the site kind says


@dataclass(frozen=True)
class LayerCall:
    """The arguments that a layer was called with besides the stream, cut to one row."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class CleanRun:
    """One clean pass over prompts of equal length."""

    inputs: list[Tensor]  # the stream entering each layer (prompt, pos, d_model)
    calls: list[LayerCall]  # the rest of each layer's arguments
    final: Tensor  # the stream leaving the last layer (prompt, pos, d_model)
    values: dict[Site, Tensor] = field(default_factory=dict)  # (prompt, pos, ...) at the sites that were asked for


def record(model: HookedModel, rows: int, sites: Sequence[Site], forward: Callable[[], Any]) -> CleanRun:
    """Call ``forward`` of ``rows`` prompts; return what each layer was called with, and the values at ``sites``."""
    inputs: list[Tensor] = []
    calls: list[LayerCall] = []
    final: list[Tensor] = []
    values: dict[Site, Tensor] = {}
    thread = get_ident()

    def before(_: Any, args: Any, kwargs: Any) -> None:
        if get_ident() != thread:
            return
        hidden, name = first_tensor(args, kwargs)
        inputs.append(model.lasting(Site(len(inputs), "resid_pre"), hidden))
        skipped = (name, model.adapter.cache_argument, "use_cache")
        named = {key: value for key, value in kwargs.items() if key not in skipped}
        calls.append(LayerCall(*one_row((tuple(args[1:] if name is None else args), named), rows)))

    hooks = [model.hook(Site(model.n_layers - 1, "resid_post"), final.append)]
    hooks += [model.hook(site, capture_hook(values, site)) for site in sites]
    with ExitStack() as stack:
        for layer in range(model.n_layers):
            handle = model.adapter.layer(layer).register_forward_pre_hook(before, prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(attached(hooks))
        forward()
    return CleanRun(inputs, calls, final[0], values)


def one_row(value: Any, rows: int) -> Any:
    """Cut every tensor with a batch dimension to one row, which stands for all: there is no padding."""
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
