"""Hooks on hook points: reading, editing, and recording what a clean forward passes, or its last position alone."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from xatlas.contracts.adapter import HookPoint, Site
from xatlas.errors import XatlasError
from xatlas.prompts.reader import TokenPrompt

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from xatlas.model import HookedModel

#: Receives the site's value; returns the new one, or None to leave it.
SiteFunction = Callable[[Tensor], Tensor | None]
#: Receives the site's value and returns the new one.
Editor = Callable[[Tensor], Tensor]
#: Names under which decoders take and return their cache.
CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


@dataclass(frozen=True)
class Hook:
    """A site's modules, and what is called with its value each time they run."""

    module: nn.Module
    point: HookPoint
    function: SiteFunction
    beside: tuple[nn.Module, ...] = ()  # of the points beside it
    layer: nn.Module | None = None  # whose input tells batch and positions apart


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
    """Hold hooks for a ``with`` block; forwards of other threads pass them by, unless ``every_thread``."""
    thread = None if every_thread else get_ident()
    with ExitStack() as stack:
        for hook in hooks:
            for handle in _attach(hook, thread):
                stack.callback(handle.remove)
        yield


@contextmanager
def attention_weights(model: nn.Module) -> Iterator[None]:
    """Let a Hugging Face model return its attention weights, as only eager attention does; then all is as it was."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]  # a whole before its parts
    before = [(config, config._attn_implementation) for config in configs if hasattr(config, "_attn_implementation")]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def _attach(hook: Hook, thread: int | None) -> Iterator[RemovableHandle]:
    """Attach a hook; the values of modules beside, and the sizes of flat tensors, are kept by thread until it runs."""
    point, here = hook.point, get_ident
    parts: dict[tuple[int, int], Tensor] = {}
    sizes: dict[int, tuple[int, ...]] = {}

    def read(one: HookPoint, tensor: Tensor) -> Tensor:
        return one.view.read(unflattened(tensor) if one.flat else tensor)

    def unflattened(tensor: Tensor) -> Tensor:
        return tensor.reshape(*sizes[here()], tensor.shape[-1])

    def replaced(tensor: Tensor) -> Tensor | None:
        """Return the module's tensor with the site's new value; None where it stays."""
        if thread not in (None, here()):
            return None
        own = value = read(point, tensor)
        for number, one in enumerate(point.beside):
            if (here(), number) not in parts:
                raise XatlasError(f"{one.module} has not run before {point.module}: its adapter names them in turn.")
            value = value + parts.pop((here(), number))
        new = hook.function(value)
        if new is None:
            return None
        new = own + (new - value) if point.beside else new
        if not point.flat:
            return point.view.write(tensor, new)
        return point.view.write(unflattened(tensor), new).flatten(0, 1)

    if any(one.flat for one in (point, *point.beside)):
        assert hook.layer is not None

        def measure(_: nn.Module, args: Any, kwargs: Any) -> None:
            sizes[here()] = first_tensor(args, kwargs)[0].shape[:2]

        yield hook.layer.register_forward_pre_hook(measure, with_kwargs=True)
    for number, (module, one) in enumerate(zip(hook.beside, point.beside, strict=True)):

        def keep(tensor: Tensor, number: int = number, one: HookPoint = one) -> None:
            parts[here(), number] = read(one, tensor)

        yield _at(module, one, keep)
    yield _at(hook.module, point, replaced)


def _at(module: nn.Module, point: HookPoint, replaced: SiteFunction) -> RemovableHandle:
    """Call ``replaced`` with the tensor that a hook point is in, and put what it returns in the tensor's place."""

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


class Rebuild:
    """Edits the stream inside a layer, where replacing what a module reads would miss the stream itself.

    It is rebuilt where it was last added to, so that the sum is what ``editor`` makes of it. What rounding leaves of
    that is made good where the stream is read and where it leaves the layer: a norm of nearly nothing would enlarge it.
    """

    def __init__(self, editor: Editor) -> None:
        self.editor = editor

    def enter(self, value: Tensor) -> None:
        """Keep the stream that enters the layer."""
        self.entered = value

    def add(self, value: Tensor) -> Tensor:
        """Return what is to be added to the stream in place of ``value``; exact where it is left alone."""
        self.stream = self.entered + value
        self.new = self.editor(self.stream)
        return torch.where(self.new == self.stream, value, self.new - self.entered)

    def read(self, value: Tensor) -> Tensor:
        """Return the stream as it was to become."""
        new = torch.where(self.new == self.stream, value, self.new)
        self.lost = new - value
        return new

    def leave(self, value: Tensor) -> Tensor:
        """Return the stream that leaves the layer."""
        return value + self.lost


@dataclass(frozen=True)
class Capture:
    """What reading probes receive: prompts of equal length and the values at their sites."""

    prompts: tuple[TokenPrompt, ...]
    index: tuple[int, ...]  # where each stands in the tokenised suite
    values: dict[Site, Tensor] = field(default_factory=dict)  # (prompt, pos, ...) as the site kind says


@dataclass(frozen=True)
class LayerCall:
    """The arguments that a layer was called with besides the stream."""

    args: tuple[Any, ...]  # those without a name
    kwargs: dict[str, Any]  # cut to one row, which stands for all
    rows: dict[str, Tensor]  # those that belong to a prompt each: (prompt, n, ...), n rows for one

    @classmethod
    def of(cls, model: HookedModel, layer: nn.Module, args: Any, kwargs: Any, rows: int) -> LayerCall:
        """Return the arguments of a call with ``rows`` prompts; the stream is the first, whatever it is called."""
        bound = inspect.signature(layer.forward).bind(*args, **kwargs)
        named, more = dict(bound.arguments), ()
        for name, parameter in bound.signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(name, {})
            elif parameter.kind is parameter.VAR_POSITIONAL:
                more = named.pop(name, ())
        stream = next(name for name, value in named.items() if isinstance(value, torch.Tensor))
        for name in (stream, str(model.adapter.cache_argument), "use_cache"):
            named.pop(name, None)
        own = {name: named.pop(name) for name in model.adapter.row_arguments if named.get(name) is not None}
        kept = {name: value.unflatten(0, (rows, -1)) for name, value in own.items()}
        return cls(one_row(more, rows), one_row(named, rows), kept)

    def for_rows(self, rows: int, prompts: int) -> dict[str, Any]:
        """Return the named arguments for ``rows``: blocks of the first ``prompts`` prompts."""
        own = {name: torch.cat([value[:prompts]] * (rows // prompts)) for name, value in self.rows.items()}
        return self.kwargs | {name: value.flatten(0, 1) for name, value in own.items()}


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

    def before(layer: Any, args: Any, kwargs: Any) -> None:
        if get_ident() != thread:
            return
        inputs.append(model.lasting(Site(len(inputs), "resid_pre"), first_tensor(args, kwargs)[0]))
        calls.append(LayerCall.of(model, layer, args, kwargs, rows))

    hooks = [model.hook(Site(model.n_layers - 1, "resid_post"), final.append)]
    hooks += [model.hook(site, partial(values.__setitem__, site)) for site in sites]
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
            advice = "name it in the adapter's row_arguments"
            raise XatlasError(f"a layer takes an argument that differs between prompts of equal length: {advice}.")
        return value[:1]
    if isinstance(value, dict):
        return {key: one_row(item, rows) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(one_row(item, rows) for item in value)
    return value


# -- the last position by itself: all before it is as in the clean run, by causality, and held by a cache -----------


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
