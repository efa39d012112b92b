"""Interventions: a site, one way to change it, and positions; kinds of ablation and the controls of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError, unknown
from xatlas.files import sha256
from xatlas.vocabulary import POSITION_CLASSES, READ_ONLY, SITE_KINDS

if TYPE_CHECKING:
    from torch import Tensor


class InterventionContext(ABC):
    """What a change may read besides the value it changes: a block of prompts in one run."""

    def __init__(self, means: Mapping[Site, Tensor], seed: int, names: Sequence[str] = ()) -> None:
        self.means = means
        self.seed = seed
        self.names = names  # ids of the prompts

    @abstractmethod
    def mask(self, positions: str) -> Tensor | None:
        """Return which tokens belong to a position class ``(prompt, pos)``; None stands for all."""

    @abstractmethod
    def source(self, site: Site, name: str) -> Tensor:
        """Return the site's values in another run ``(prompt, pos, ...)``."""

    @abstractmethod
    def clean(self, site: Site) -> Tensor:
        """Return the site's values in the clean run ``(prompt, pos, ...)``."""

    def mean(self, site: Site) -> Tensor:
        """Return the reference means ``(2, ...)``: at position 0, and at all others."""
        if site not in self.means:
            raise XatlasError(f"no reference mean was given for {site}.")
        return self.means[site]


@dataclass(frozen=True)
class Target:
    """Where a change is made: a context, a site, and the heads picked there, or None for the whole site."""

    context: InterventionContext
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
        """Return standard normal numbers that depend on the seed, the target and ``label`` alone."""
        return self._draw(size, label).to(like.device, like.dtype)

    def random_by_prompt(self, size: Sequence[int], label: str, like: Tensor) -> Tensor:
        """Return numbers as :meth:`random` does ``(prompt, *size)``, each prompt's its own wherever it is run."""
        import torch

        drawn = [self._draw(size, f"{label}|{name}") for name in self.context.names]
        return torch.stack(drawn).to(like.device, like.dtype)

    def _draw(self, size: Sequence[int], label: str) -> Tensor:
        import torch

        text = f"{self.context.seed}|{self.site}|{self.heads}|{label}"
        generator = torch.Generator().manual_seed(int(sha256(text.encode())[:14], 16))
        return torch.randn(*size, generator=generator)


class Change(ABC):
    """One way to change a site's value."""

    #: Whether the new value is independent of the value it replaces.
    replaces: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, value: Tensor, target: Target) -> Tensor:
        """Return the new value, shaped as ``value`` ``(prompt, pos, ...)``, which is a copy and may be used up."""

    def reads(self) -> tuple[Intervention, ...]:
        """Return interventions whose sites' clean values the change needs."""
        return ()

    def reads_sites(self, site: Site) -> tuple[Site, ...]:
        """Return further sites of the layer whose clean values the change needs when made at ``site``."""
        return ()

    def runs(self) -> frozenset[str]:
        """Return the names of the other runs that the change needs."""
        return frozenset().union(*(part.change.runs() for part in self.reads()))

    def means(self, site: Site) -> frozenset[Site]:
        """Return the sites whose reference means the change needs when made at ``site``."""
        return means_needed([self.reads()])


@dataclass(frozen=True)
class Intervention:
    """One site, one way to change it, at some positions; what makes no sense is refused when it is made."""

    site: Site
    change: Change
    heads: tuple[int, ...] | None = None  # which heads, at a ``heads`` site; None changes the whole site
    positions: str = "all"  # or ``rest``, or a position class: ``first``, ``subject``, ``last``, ``other``

    def __post_init__(self) -> None:
        if self.site.kind in READ_ONLY:
            raise XatlasError(f"{self.site} can be read, not changed.")
        if self.heads is not None and self.site.kind in SITE_KINDS and self.site.kind != "heads":
            raise XatlasError(f"{self.site} has no heads: name heads only at a 'heads' site.")
        valid = ("all", *POSITION_CLASSES, "rest")
        if self.positions not in valid:
            raise XatlasError(f"unknown positions '{self.positions}'. Valid: {', '.join(valid)}.")


#: Interventions that are measured together.
Condition = tuple[Intervention, ...]


def edit(intervention: Intervention, value: Tensor, context: InterventionContext) -> Tensor:
    """Return a copy of ``value`` ``(prompt, pos, ...)``, changed at the intervention's heads and positions."""
    target = Target(context, intervention.site, intervention.heads)
    part = target.pick(value)
    new = intervention.change(part.clone(), target)
    if new.shape != part.shape:
        what = f"{type(intervention.change).__name__} at {intervention.site} returned the shape {tuple(new.shape)}"
        raise XatlasError(f"{what} instead of {tuple(part.shape)}.")
    return target.put(value, _at_positions(context, intervention.positions, new, part))


def _at_positions(context: InterventionContext, positions: str, new: Tensor, old: Tensor) -> Tensor:
    mask = context.mask(positions)
    return new if mask is None else new.where(mask.reshape(*old.shape[:2], *[1] * (old.dim() - 2)), old)


def means_needed(conditions: Iterable[Condition]) -> frozenset[Site]:
    """Return the sites whose reference means a list of conditions needs."""
    return frozenset().union(*(part.change.means(part.site) for condition in conditions for part in condition))


@dataclass(frozen=True)
class Zero(Change):
    """Set to zero."""

    replaces = True

    def __call__(self, value: Tensor, target: Target) -> Tensor:
        return value.new_zeros(value.shape)


@dataclass(frozen=True)
class One(Change):
    """Set to one: a factor of a product is bypassed."""

    replaces = True

    def __call__(self, value: Tensor, target: Target) -> Tensor:
        return value.new_ones(value.shape)


@dataclass(frozen=True)
class Mean(Change):
    """Set to the mean over the reference tokens; position 0 has a mean of its own."""

    replaces = True

    def __call__(self, value: Tensor, target: Target) -> Tensor:
        first, others = target.pick(target.context.mean(target.site)).to(value.dtype)
        return _at_positions(target.context, "first", first.expand_as(value), others.expand_as(value))

    def means(self, site: Site) -> frozenset[Site]:
        return frozenset({site})


@dataclass(frozen=True)
class FromRun(Change):
    """Set to the value in another run, named as the sweep was given it: a donor's, or the other text's of a pair."""

    run: str
    replaces = True

    def __call__(self, value: Tensor, target: Target) -> Tensor:
        return target.pick(target.context.source(target.site, self.run))

    def runs(self) -> frozenset[str]:
        return frozenset({self.run})


def ablation(kind: str) -> Change:
    """Return the change of an ablation kind."""
    changes: dict[str, Change] = {"zero": Zero(), "mean": Mean(), "one": One(), "resample": FromRun("donor")}
    if kind not in changes:
        raise unknown("ablation", kind, changes)
    return changes[kind]


@dataclass(frozen=True, eq=False)
class Add(Change):
    """Add a vector: one for all prompts and positions ``(d_model,)``, or one per prompt."""

    vector: Tensor

    def __call__(self, value: Tensor, target: Target) -> Tensor:
        return value + self.vector.to(value.device, value.dtype)


@dataclass(frozen=True)
class RandomDirection(Change):
    """The control of an ablation: a random direction for each prompt with, at every token, the norm of its change.

    It has the covariance of ``sample``, since a combination of centred rows with standard normal weights has it
    whatever they are; without a sample it is uniform. Where a sample does not vary there is no direction: NaN.
    """

    of: tuple[Intervention, ...]  # the ablation, all at this layer; the norm is that of the summed changes
    draw: int = 0  # which of several directions
    sample: Tensor | None = field(default=None, compare=False)  # centred values (row, ...) of the site or its stream

    def __call__(self, value: Tensor, target: Target) -> Tensor:
        if not self.of:
            raise XatlasError("a random direction needs the ablation that it controls.")
        changes = []
        for part in self.of:
            clean = target.context.clean(part.site)
            change = edit(part, clean, target.context) - clean
            changes.append(Target(target.context, part.site, part.heads).pick(change))
        norm = sum(changes[1:], changes[0]).flatten(2).norm(dim=-1)  # (prompt, pos)
        label, like = f"direction {self.draw}", value[:0].float()
        if self.sample is None:
            direction = target.random_by_prompt(value.shape[2:], label, like)
        else:
            rows = target.pick(self.sample).to(like)  # (row, ...)
            weights = target.random_by_prompt(rows.shape[:1], label, like)
            direction = (weights @ rows.flatten(1)).reshape(-1, *rows.shape[1:])
        direction = direction / direction.flatten(1).norm(dim=-1).reshape(-1, *[1] * (direction.dim() - 1))
        norm = norm.reshape(*norm.shape, *[1] * (value.dim() - 2))
        moved: Tensor = value + (direction[:, None].to(value.dtype) * norm).where(norm != 0, 0)
        return moved

    def reads(self) -> tuple[Intervention, ...]:
        return self.of


@dataclass(frozen=True)
class InSubspace(Change):
    """Make a change only inside a random subspace of the whole value: the control of one head."""

    change: Change
    width: int  # dimensions of the subspace: those of one head
    label: str  # which subspace: the head it is the control of, and the draw

    def __call__(self, value: Tensor, target: Target) -> Tensor:
        from torch.linalg import qr

        flat = value.flatten(2)
        basis, _ = qr(target.random((flat.shape[-1], self.width), self.label, flat).float())
        basis = basis.to(flat.dtype)  # (n_heads * d_head, width)
        difference = (self.change(value.clone(), target) - value).flatten(2)  # it may work in place
        changed: Tensor = flat + difference @ basis @ basis.T
        return changed.reshape(value.shape)

    def reads(self) -> tuple[Intervention, ...]:
        return self.change.reads()

    def reads_sites(self, site: Site) -> tuple[Site, ...]:
        return self.change.reads_sites(site)

    def runs(self) -> frozenset[str]:
        return self.change.runs()

    def means(self, site: Site) -> frozenset[Site]:
        return self.change.means(site)
