"""Interventions held over Hugging Face's own forward and ``generate``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from xatlas.errors import XatlasError
from xatlas.interventions import edit
from xatlas.model.hooks import Editor, attached
from xatlas.sites import Site, forward_order

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.interventions import Intervention
    from xatlas.model import HookedModel


class LiveScene:
    """The scene of whatever is being run right now; told anew by every forward."""

    def __init__(self, model: HookedModel, means: Mapping[Site, Tensor], seed: int) -> None:
        self.model = model
        self.means = means
        self.seed = seed
        self._position = torch.zeros(0)
        self._real = torch.zeros(0)
        self._seen = 0

    def enter(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Read off a forward's arguments where its tokens stand; a hook on the decoder.

        Raises
        ------
        XatlasError
            The forward is given a cache, and the model has no attention layer to count its tokens.
        """
        given = next(v for v in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if v is not None)
        rows, length = given.shape[:2]
        self._refuse(kwargs)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            real = mask.bool()
            self._position = (real.cumsum(1) - 1)[:, -length:]
            self._real = real[:, -length:]
            self._warn(real)
        else:
            past = kwargs.get("past_key_values")
            seen = int(past.get_seq_length()) if past is not None else 0
            self._position = torch.arange(seen, seen + length, device=given.device).expand(rows, -1)
            self._real = torch.ones_like(self._position, dtype=torch.bool)

    def _refuse(self, kwargs: dict[str, Any]) -> None:
        if kwargs.get("past_key_values") is not None and "attention" not in self.model.operator_types:
            raise _no_attention()

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
        """Return which tokens are at position 0 ``(row, pos)``."""
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
    handle = model.model.base_model.register_forward_pre_hook(scene.enter, with_kwargs=True)
    try:
        with attached(hooks, every_thread=True):
            yield
    except ValueError as error:
        # generate() asks its cache for a length before the first forward; without attention there is none.
        if "get_seq_length" not in str(error) or "attention" in model.operator_types:
            raise
        raise _no_attention() from None
    finally:
        handle.remove()


def _no_attention() -> XatlasError:
    return XatlasError(
        "this model has no attention layer, so Hugging Face's cache can't count its tokens: pass use_cache=False."
    )


def _editor(intervention: Intervention, scene: LiveScene) -> Editor:
    def change(value: Tensor) -> Tensor:
        new = edit(intervention, value, scene)
        real = scene.real().reshape(*value.shape[:2], *[1] * (value.dim() - 2))
        return torch.where(real, new, value)

    return change
