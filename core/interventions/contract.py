"""The contract of interventions: what a change is shown, what it returns, and how one is made at a site."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from xatlas.errors import XatlasError
from xatlas.prompts import POSITION_CLASSES
from xatlas.sites import READ_ONLY, SITE_KINDS, Site

# torch is imported where it is used: plugins import this module when they are registered.
if TYPE_CHECKING:
    from torch import Tensor


class Scene(Protocol):
    """What a change may look at besides the value it changes: one block of prompts in one run."""

    seed: int

    def first(self) -> Tensor:
        """Return which tokens are at position 0 ``(prompt, pos)``."""
        ...

    def mask(self, positions: str) -> Tensor | None:
        """Return which tokens belong to a position class ``(prompt, pos)``; None stands for all."""
        ...

    def mean(self, site: Site) -> Tensor:
        """Return the reference means ``(2, ...)``: at position 0, and at all others."""
        ...

    def source(self, site: Site, name: str) -> Tensor:
        """Return the site's values in another run ``(prompt, pos, ...)``."""
        ...

    def clean(self, site: Site) -> Tensor:
        """Return the site's values in the clean run ``(prompt, pos, ...)``."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a change is made: a scene, a site, and the heads picked there."""

    scene: Scene
    site: Site
    heads: tuple[int, ...] | None

    @property
    def _index(self) -> slice | list[int]:
        """The heads as an index; a slice where they are neighbours, for it copies nothing and waits for no device."""
        heads = list(self.heads or ())
        neighbours = bool(heads) and heads[0] >= 0 and heads == list(range(heads[0], heads[-1] + 1))
        return slice(heads[0], heads[-1] + 1) if neighbours else heads

    def pick(self, tensor: Tensor) -> Tensor:
        """Return the picked heads of a tensor ``(..., n_heads, d_head)``; all of it without heads."""
        return tensor if self.heads is None else tensor[..., self._index, :]

    def put(self, tensor: Tensor, value: Tensor) -> Tensor:
        """Return ``tensor`` with the picked heads replaced."""
        if self.heads is None:
            return value
        result = tensor.clone()
        result[..., self._index, :] = value
        return result

    def random(self, size: Sequence[int], label: str, like: Tensor) -> Tensor:
        """Return standard normal numbers that depend on the seed, the place and ``label`` alone."""
        import torch

        text = f"{self.scene.seed}|{self.site}|{self.heads}|{label}"
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))
        return torch.randn(*size, generator=generator).to(like.device, like.dtype)


class Change(ABC):
    """One way to change a site's value."""

    #: Whether the new value is independent of the value it replaces.
    replaces: ClassVar[bool] = False
    #: Whether it needs other runs or reference means, which exist only inside a sweep.
    needs_sweep: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, value: Tensor, place: Place) -> Tensor:
        """Return the new value, shaped as ``value`` ``(prompt, pos, ...)``, which is a copy and may be used up."""

    def reads(self) -> tuple[Intervention, ...]:
        """Return interventions whose sites' clean values the change looks at."""
        return ()

    def looks_at(self, site: Site) -> tuple[Site, ...]:
        """Return further sites of the layer whose clean values the change needs when made at ``site``."""
        return ()

    def inner(self) -> tuple[Change, ...]:
        """Return changes that this one is made of."""
        return tuple(intervention.change for intervention in self.reads())

    def runs(self) -> frozenset[str]:
        """Return the names of the other runs that the change looks at."""
        return frozenset().union(*(change.runs() for change in self.inner()))

    def means(self, site: Site) -> frozenset[Site]:
        """Return the sites whose reference means the change looks at when made at ``site``."""
        read = [intervention.change.means(intervention.site) for intervention in self.reads()]
        return frozenset().union(*read)


@dataclass(frozen=True)
class Intervention:
    """One site, one way to change it, at some positions.

    Parameters
    ----------
    site : Site
        Where.
    change : Change
        How.
    heads : tuple of int, optional
        Which heads, at a ``heads`` site; None changes the whole site.
    positions : str
        ``all``, or a position class: ``first``, ``subject``, ``last``, ``other``.

    Raises
    ------
    XatlasError
        The site can only be read, heads are named where there are none, or positions are unknown.
    """

    site: Site
    change: Change
    heads: tuple[int, ...] | None = None
    positions: str = "all"

    def __post_init__(self) -> None:
        if self.site.kind in READ_ONLY:
            raise XatlasError(f"{self.site} can be read, not changed.")
        if self.heads is not None and self.site.kind in SITE_KINDS and self.site.kind != "heads":
            raise XatlasError(f"{self.site} has no heads: name heads only at a 'heads' site.")
        if self.positions not in ("all", *POSITION_CLASSES):
            raise XatlasError(f"unknown positions '{self.positions}'. Valid: all, {', '.join(POSITION_CLASSES)}.")


#: Interventions that are measured together.
Condition = tuple[Intervention, ...]


def edit(intervention: Intervention, value: Tensor, scene: Scene) -> Tensor:
    """Return ``value`` of the intervention's site, changed at its heads and positions.

    Parameters
    ----------
    intervention : Intervention
        What is changed, and how.
    value : Tensor
        ``(prompt, pos, ...)`` as the site kind says.
    scene : Scene
        What the change may look at.

    Returns
    -------
    Tensor
        Shaped as ``value``, which is left as it is.

    Raises
    ------
    XatlasError
        The change returned a value of another shape.
    """
    place = Place(scene, intervention.site, intervention.heads)
    part = place.pick(value)
    new = intervention.change(part.clone(), place)
    if new.shape != part.shape:
        raise XatlasError(
            f"{type(intervention.change).__name__} at {intervention.site} returned the shape "
            f"{tuple(new.shape)} instead of {tuple(part.shape)}."
        )
    mask = scene.mask(intervention.positions)
    if mask is not None:
        new = new.where(mask.reshape(*part.shape[:2], *[1] * (part.dim() - 2)), part)
    return place.put(value, new)


def means_needed(conditions: Iterable[Condition]) -> frozenset[Site]:
    """Return the sites whose reference means a list of conditions needs."""
    return frozenset().union(*(part.change.means(part.site) for condition in conditions for part in condition))
