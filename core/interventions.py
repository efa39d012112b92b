"""What can be done to a site: interventions, ways to change a value, and the controls of ablations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError, unknown
from xatlas.files import sha256
from xatlas.vocabulary import POSITION_CLASSES, READ_ONLY, SITE_KINDS

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.contracts.adapter import Site


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
        generator = torch.Generator().manual_seed(int(sha256(text.encode())[:14], 16))
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


@dataclass(frozen=True)
class Zero(Change):
    """Set to zero."""

    replaces = True

    def __call__(self, value: Tensor, place: Place) -> Tensor:
        """Return zeros."""
        return value.new_zeros(value.shape)


@dataclass(frozen=True)
class One(Change):
    """Set to one: a factor of a product is bypassed."""

    replaces = True

    def __call__(self, value: Tensor, place: Place) -> Tensor:
        """Return ones."""
        return value.new_ones(value.shape)


@dataclass(frozen=True)
class Mean(Change):
    """Set to the mean over the reference tokens; position 0 has a mean of its own."""

    replaces = True
    needs_sweep = True

    def __call__(self, value: Tensor, place: Place) -> Tensor:
        """Return the mean of the token's kind of position."""
        means = place.pick(place.scene.mean(place.site)).to(value.dtype)
        first = place.scene.first().reshape(*value.shape[:2], *[1] * (value.dim() - 2))
        return means[0].where(first, means[1])

    def means(self, site: Site) -> frozenset[Site]:
        """Return the site itself."""
        return frozenset({site})


@dataclass(frozen=True)
class FromRun(Change):
    """Set to the value in another run: a donor's (resample) or the twin's (patch).

    Parameters
    ----------
    run : str
        Name of the run, as the sweep was given it.
    """

    run: str
    replaces = True
    needs_sweep = True

    def __call__(self, value: Tensor, place: Place) -> Tensor:
        """Return the other run's value."""
        return place.pick(place.scene.source(place.site, self.run))

    def runs(self) -> frozenset[str]:
        """Return the run's name."""
        return frozenset({self.run})


def ablation(kind: str, draw: int = 0) -> Change:
    """Return the change of an ablation kind.

    Parameters
    ----------
    kind : {"zero", "mean", "one", "resample"}
        What the value is set to: zero, its reference mean, one, or its value in a donor's run.
    draw : int
        Which of several donors ``resample`` takes.

    Raises
    ------
    XatlasError
        The kind is another one.
    """
    changes: dict[str, Change] = {"zero": Zero(), "mean": Mean(), "one": One(), "resample": FromRun(f"donor {draw}")}
    if kind not in changes:
        raise unknown("ablation", kind, changes)
    return changes[kind]


@dataclass(frozen=True, eq=False)
class Add(Change):
    """Add a vector.

    Parameters
    ----------
    vector : Tensor
        Broadcast over prompts and positions ``(d_model,)``, or one per prompt.
    """

    vector: Tensor

    def __call__(self, value: Tensor, place: Place) -> Tensor:
        """Return the sum."""
        return value + self.vector.to(value.device, value.dtype)


@dataclass(frozen=True)
class RandomDirection(Change):
    """The control of an ablation: a random direction with, at every token, the norm of its change.

    Parameters
    ----------
    of : tuple of Intervention
        The ablation, all at this layer; the norm is that of the summed changes at their sites.
    draw : int
        Which of several directions.
    """

    of: tuple[Intervention, ...]
    draw: int = 0
    needs_sweep = True

    def __call__(self, value: Tensor, place: Place) -> Tensor:
        """Return the value moved along the direction.

        Raises
        ------
        XatlasError
            There is no ablation to be the control of.
        """
        change: Tensor | None = None
        for intervention in self.of:
            clean = place.scene.clean(intervention.site)
            there = Place(place.scene, intervention.site, intervention.heads)
            part = there.pick(edit(intervention, clean, place.scene) - clean)
            change = part if change is None else change + part
        if change is None:
            raise XatlasError("a random direction needs the ablation that it controls.")
        norm = change.flatten(2).norm(dim=-1)  # (prompt, pos)
        direction = place.random(value.shape[2:], f"direction {self.draw}", value)
        direction = direction / direction.norm()
        moved: Tensor = value + direction * norm.reshape(*norm.shape, *[1] * direction.dim())
        return moved

    def reads(self) -> tuple[Intervention, ...]:
        """Return the ablation."""
        return self.of


@dataclass(frozen=True)
class InSubspace(Change):
    """Make a change only inside a random subspace of the whole value, as wide as one head.

    Parameters
    ----------
    change : Change
        What is done there.
    width : int
        Dimensions of the subspace.
    label : str
        Which subspace: the head it is the control of, and the draw.
    """

    change: Change
    width: int
    label: str
    needs_sweep = True

    def __call__(self, value: Tensor, place: Place) -> Tensor:
        """Return the value with its projection onto the subspace changed."""
        from torch.linalg import qr

        flat = value.flatten(2)
        basis, _ = qr(place.random((flat.shape[-1], self.width), self.label, flat).float())
        basis = basis.to(flat.dtype)  # (n_heads * d_head, width)
        difference = (self.change(value, place) - value).flatten(2)
        changed: Tensor = flat + difference @ basis @ basis.T
        return changed.reshape(value.shape)

    def inner(self) -> tuple[Change, ...]:
        """Return the change made in the subspace."""
        return (self.change,)

    def means(self, site: Site) -> frozenset[Site]:
        """Return what the change made in the subspace needs."""
        return self.change.means(site)
