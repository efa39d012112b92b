"""Interventions that are held over Hugging Face's own forward and ``generate``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.interventions import Intervention, InterventionContext, edit
from xatlas.model.hooks import CACHES, attached
from xatlas.vocabulary import forward_order

if TYPE_CHECKING:
    from xatlas.model import HookedModel


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
    decoder = model.decoder
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


def is_held(model: HookedModel) -> bool:
    """Whether interventions are held over a model's forward at this moment."""
    hooks = model.decoder._forward_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), HeldContext) for hook in hooks)


def _cached_length(cache: Any) -> int | None:
    """Return how many tokens a cache holds; None where it holds some and does not count them."""
    with suppress(AttributeError, TypeError, ValueError):
        return int(cache.get_seq_length())
    with suppress(AttributeError, TypeError, ValueError):
        return None if cache.has_previous_state() else 0
    return None
