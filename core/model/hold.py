"""Interventions held over Hugging Face's own forward and ``generate``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.interventions import edit
from xatlas.model.hooks import Editor, attached
from xatlas.vocabulary import forward_order

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.interventions import Intervention
    from xatlas.model import HookedModel


#: Names under which decoders take and return their cache.
CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")


class LiveScene:
    """The scene of whatever is being run right now; told anew by every forward."""

    def __init__(self, model: HookedModel, means: Mapping[Site, Tensor], seed: int) -> None:
        self.model = model
        self.means = means
        self.seed = seed
        self._whole = self._position, self._real = torch.zeros(0), torch.zeros(0)
        self._counted = True
        self._cache: Any = None
        # of the last forward: its cache, how many tokens each row then held (row, 1), and how many with padding
        self._last: tuple[Any, Tensor | int, int] = (None, 0, 0)

    def enter(self, decoder: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Read off a forward's arguments where its tokens stand; a hook on the decoder."""
        given = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
        named = [given.get("input_ids"), given.get("inputs_embeds"), *args]
        tokens = next(value for value in named if value is not None)
        rows, length = tokens.shape[:2]
        mask = given.get("attention_mask")
        real = torch.ones(rows, length, dtype=torch.bool, device=tokens.device)
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            real = mask.bool()
            self._warn(real)
        self._cache = next((given[name] for name in CACHES if given.get(name) is not None), None)
        past: Tensor | int | None = 0
        columns = 0
        if real.shape[1] == length:  # a longer mask tells of the past as well
            past, columns = self._past(given)
        self._counted = past is not None
        position = (0 if past is None else past) + real.cumsum(1) - 1
        self._whole = self._position, self._real = position[:, -length:], real[:, -length:]
        self._last = (None, position[:, -1:] + 1, columns + real.shape[1])

    def leave(self, _: Any, __: Any, output: Any) -> None:
        """Remember the cache that belongs to a forward; a hook on the decoder."""
        made = output if isinstance(output, Mapping) else {}
        cache = self._cache if self._cache is not None else next((made[n] for n in CACHES if n in made), None)
        self._last = (cache if self._counted else None, *self._last[1:])

    def fit(self, rows: int, length: int) -> None:
        """Go on to a layer that is run alone, on blocks of a forward's rows or on its last positions."""
        self._position, self._real = self._whole
        if self._real.shape != (rows, length):
            self._position = self._position[:1, -length:].expand(rows, -1)
            self._real = self._real[:1, -length:].expand(rows, -1)

    def _past(self, given: Mapping[str, Any]) -> tuple[Tensor | int | None, int]:
        """Return how many tokens went before, by row or in all, and how many with padding; None if that's unknown."""
        if self._cache is None:
            return 0, 0
        held = _held(self._cache)
        cache, counts, columns = self._last
        if cache is self._cache and held in (None, columns):
            return counts, columns
        if held is None and isinstance(given.get("cache_position"), torch.Tensor):
            held = int(given["cache_position"].reshape(-1)[0])
        return held, held or 0

    def _warn(self, real: Tensor) -> None:
        paths = [self.model.adapter.conv_path(layer) for layer in range(self.model.n_layers)]
        biased = any(path is not None and self.model.adapter.module(path).bias is not None for path in paths)
        if biased and not bool(real.all()):
            warnings.warn(
                "padding in front of a convolution with bias is not exact in Hugging Face's forward: "
                "run prompts of equal length together.",
                stacklevel=2,
            )

    def real(self) -> Tensor:
        """Return which tokens are no padding ``(row, pos)``."""
        return self._real

    def first(self) -> Tensor:
        """Return which tokens are at position 0 ``(row, pos)``.

        Raises
        ------
        XatlasError
            How many tokens went before can't be told: the cache was filled elsewhere, and does not count them.
        """
        if not self._counted:
            raise XatlasError(
                "this model's cache does not count its tokens, so where position 0 is can't be told: run the text "
                "from its beginning under the same intervene, or pass use_cache=False."
            )
        return (self._position == 0) & self._real

    def mask(self, positions: str) -> Tensor | None:
        """Return which tokens belong to ``all``, ``first`` or ``last`` (the newest) ``(row, pos)``.

        Raises
        ------
        XatlasError
            The class is another one.
        """
        if positions == "all":
            return self._real
        if positions == "first":
            return self.first()
        if positions == "last":
            newest = torch.where(self._real, self._position, -1).amax(1, keepdim=True)
            return (self._position == newest) & self._real
        raise XatlasError(f"while a text is run, the positions '{positions}' are not known: use all, first or last.")

    def mean(self, site: Site) -> Tensor:
        """Return the reference means ``(2, ...)``.

        Raises
        ------
        XatlasError
            The site's was not given.
        """
        if site not in self.means:
            raise XatlasError(f"no reference mean was given for {site}.")
        return self.means[site].to(self.model.device)

    def source(self, site: Site, name: str) -> Tensor:
        """Refuse: there is no other run.

        Raises
        ------
        XatlasError
            Always.
        """
        raise XatlasError("while a text is run there is no other run to take values from: use zero, mean or add.")

    def clean(self, site: Site) -> Tensor:
        """Refuse: there is no clean run beside this one.

        Raises
        ------
        XatlasError
            Always.
        """
        raise XatlasError("while a text is run there is no clean run beside it: a control needs a sweep.")


@contextmanager
def holding(
    model: HookedModel, interventions: Sequence[Intervention], means: Mapping[Site, Tensor], seed: int
) -> Iterator[None]:
    """Hold interventions until the ``with`` block ends.

    Raises
    ------
    XatlasError
        A site or head does not exist, or a change looks at another run.
    """
    scene = LiveScene(model, means, seed)
    hooks = []
    # Two edits may hook one module, where they run in the order of their hooks.
    for intervention in sorted(interventions, key=lambda each: forward_order(each.site.kind)):
        model.check(intervention)
        if intervention.change.runs() or intervention.change.reads():
            scene.source(intervention.site, "")
        for site in intervention.change.means(intervention.site):
            scene.mean(site)
        hooks += model.edit_hooks(intervention.site, _editor(intervention, scene))
    decoder = model.model.base_model
    handles = [
        decoder.register_forward_pre_hook(scene.enter, with_kwargs=True),
        decoder.register_forward_hook(scene.leave),
    ]
    try:
        with attached(hooks, every_thread=True):
            yield
    except ValueError as error:
        # generate() asks its cache for a length before the first forward; without attention there is none.
        if "get_seq_length" not in str(error) or "attention" in model.operator_types:
            raise
        told = (
            "this model has no attention layer, so Hugging Face's cache can't count its tokens: pass use_cache=False."
        )
        raise XatlasError(told) from None
    finally:
        for handle in handles:
            handle.remove()


def is_held(model: HookedModel) -> bool:
    """Whether interventions are held over a model's forward at this moment."""
    hooks = model.model.base_model._forward_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), LiveScene) for hook in hooks)


def _held(cache: Any) -> int | None:
    """Return how many tokens a cache holds; None where it holds some and does not count them."""
    with suppress(AttributeError, TypeError, ValueError):
        return int(cache.get_seq_length())
    with suppress(AttributeError, TypeError, ValueError):
        return None if cache.has_previous_state() else 0
    return None


def _editor(intervention: Intervention, scene: LiveScene) -> Editor:
    def change(value: Tensor) -> Tensor:
        scene.fit(*value.shape[:2])
        new = edit(intervention, value, scene)
        real = scene.real().reshape(*value.shape[:2], *[1] * (value.dim() - 2))
        return torch.where(real, new, value)

    return change
