"""Hooks on hook points: reading, editing, recording what a clean forward passes, and holding interventions."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial, wraps
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from xatlas.contracts.adapter import HookPoint, Site
from xatlas.errors import XatlasError
from xatlas.interventions import Intervention, InterventionContext, edit
from xatlas.prompts.reader import TokenPrompt
from xatlas.vocabulary import forward_order

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from xatlas.model import HookedModel

#: Receives the site's value; returns the new one, or None to leave it.
SiteFunction = Callable[[Tensor], Tensor | None]
#: Receives the site's value and returns the new one.
Editor = Callable[[Tensor], Tensor]


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
        return tensor.reshape(*sizes[here()], *tensor.shape[1:])

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
        own = {
            name: value[:prompts].repeat(rows // prompts, *[1] * (value.dim() - 1)) for name, value in self.rows.items()
        }
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


# -- holding interventions over Hugging Face's own forward and generate --------------------------------------------

#: Names under which decoders take and return their cache.
CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


class HeldContext(InterventionContext):
    """The context of whatever is being run; updated at each forward pass of the decoder."""

    def __init__(self, model: HookedModel, means: Mapping[Site, Tensor], seed: int) -> None:
        super().__init__({site: mean.to(model.device) for site, mean in means.items()}, seed)
        self.model = model
        # of the whole forward, and of what is run right now: each token's position, and whether it is no padding
        self._whole = self._position, self._real = torch.zeros(0), torch.zeros(0)
        self._counted = True  # whether it is known how many tokens went before
        self._cache: Any = None
        # of the last forward: its cache, how many tokens each row then held (row, 1), and how many with padding
        self._last: tuple[Any, Tensor | int, int] = (None, 0, 0)

    def before_forward(self, decoder: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Read off the decoder's arguments where its tokens stand."""
        given = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
        named = [given.get("input_ids"), given.get("inputs_embeds"), *args]
        tokens = next(value for value in named if value is not None)
        rows, length = tokens.shape[:2]
        mask = given.get("attention_mask")
        real = torch.ones(rows, length, dtype=torch.bool, device=tokens.device)
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            real = mask.bool()
            adapter = self.model.adapter
            paths = [adapter.conv_path(layer) for layer in range(self.model.n_layers)]
            biased = any(path is not None and adapter.module(path).bias is not None for path in paths)
            biased = biased and not adapter.masks_convolutions
            if biased and not bool(real.all()):
                what = "padding in front of a convolution with bias is not exact in Hugging Face's forward"
                warnings.warn(f"{what}: run prompts of equal length together.", stacklevel=2)
        self._cache = next((given[name] for name in CACHES if given.get(name) is not None), None)
        past: Tensor | int | None = 0
        columns = 0
        if real.shape[1] == length:  # a longer mask covers the past as well
            past, columns = self._past(given)
        self._counted = past is not None
        position = (0 if past is None else past) + real.cumsum(1) - 1
        self._whole = self._position, self._real = position[:, -length:], real[:, -length:]
        self._last = (None, position[:, -1:] + 1, columns + real.shape[1])

    def after_forward(self, _: Any, __: Any, output: Any) -> None:
        """Remember the cache that belongs to the forward."""
        made = output if isinstance(output, Mapping) else {}
        cache = self._cache if self._cache is not None else next((made[n] for n in CACHES if n in made), None)
        self._last = (cache if self._counted else None, *self._last[1:])

    def edit(self, intervention: Intervention, value: Tensor) -> Tensor:
        """Make an intervention, in a forward or in a layer that is run alone: on blocks of rows, or last positions."""
        rows, length = value.shape[:2]
        self._position, self._real = self._whole
        if self._real.shape != (rows, length):
            self._position = self._position[:1, -length:].expand(rows, -1)
            self._real = self._real[:1, -length:].expand(rows, -1)
        return edit(intervention, value, self)

    def _past(self, given: Mapping[str, Any]) -> tuple[Tensor | int | None, int]:
        """Return how many tokens went before, by row or in all, and how many with padding; None if that's unknown."""
        if self._cache is None:
            return 0, 0
        held = _cached_length(self._cache)
        cache, counts, columns = self._last
        if cache is self._cache and held in (None, columns):
            return counts, columns
        if held is None and isinstance(given.get("cache_position"), torch.Tensor):
            held = int(given["cache_position"].reshape(-1)[0])
        return held, held or 0

    def mask(self, positions: str) -> Tensor:
        """Return which tokens ``(row, pos)`` are ``all``, ``first``, ``rest`` or ``last`` (newest); no padding."""
        if positions == "all":
            return self._real
        if positions == "first":
            if not self._counted:
                advice = "run the text from its beginning under the same intervene, or pass use_cache=False."
                raise XatlasError(f"this model's cache does not count its tokens, so position 0 is not known: {advice}")
            return (self._position == 0) & self._real
        if positions == "rest":
            return self._real & ~self.mask("first")
        if positions == "last":
            newest = torch.where(self._real, self._position, -1).amax(1, keepdim=True)
            return (self._position == newest) & self._real
        known = "all, first, rest or last"
        raise XatlasError(f"while a text is run, the positions '{positions}' are not known: use {known}.")

    def source(self, site: Site, name: str) -> Tensor:
        raise XatlasError("while a text is run there is no other run to take values from: use zero, mean or add.")

    def clean(self, site: Site) -> Tensor:
        raise XatlasError("while a text is run there is no clean run beside it: a control needs a sweep.")


@contextmanager
def holding(
    model: HookedModel, interventions: Sequence[Intervention], means: Mapping[Site, Tensor], seed: int
) -> Iterator[None]:
    """Hold interventions until the ``with`` block ends; refuse at once what can't be held."""
    context = HeldContext(model, means, seed)
    hooks = []
    # Two edits may hook one module, where they run in the order of their hooks.
    for intervention in sorted(interventions, key=lambda each: forward_order(each.site.kind)):
        model.check(intervention)
        if intervention.change.runs() or intervention.change.reads():
            context.source(intervention.site, "")
        for site in intervention.change.means(intervention.site):
            context.mean(site)
        hooks += model.edit_hooks(intervention.site, partial(context.edit, intervention))
    decoder = _decoder(model)
    with ExitStack() as stack:
        stack.callback(decoder.register_forward_pre_hook(context.before_forward, with_kwargs=True).remove)
        stack.callback(decoder.register_forward_hook(context.after_forward).remove)
        stack.enter_context(attached(hooks, every_thread=True))
        try:
            yield
        except ValueError as error:
            # generate() asks its cache for a length before the first forward; without attention there is none.
            if "get_seq_length" not in str(error) or model.sites("attention_pattern"):
                raise
            what = "this model has no attention layer, so Hugging Face's cache can't count its tokens"
            raise XatlasError(f"{what}: pass use_cache=False.") from None


def _decoder(model: HookedModel) -> nn.Module:
    """Return the module that runs the layers: every forward passes it, where OPT's goes past its base model."""
    return model.adapter.module(model.adapter.layers_path.rpartition(".")[0])  # type: ignore[no-any-return]


def is_held(model: HookedModel) -> bool:
    """Whether interventions are held over a model's forward at this moment."""
    hooks = _decoder(model)._forward_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), HeldContext) for hook in hooks)


def _cached_length(cache: Any) -> int | None:
    """Return how many tokens a cache holds; None where it holds some and does not count them."""
    with suppress(AttributeError, TypeError, ValueError):
        return int(cache.get_seq_length())
    with suppress(AttributeError, TypeError, ValueError):
        return None if cache.has_previous_state() else 0
    return None
