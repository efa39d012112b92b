"""The ways to change a site: zero, one, mean, another run's value, a vector added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xatlas.interventions.contract import Change, Place
from xatlas.sites import Site

if TYPE_CHECKING:
    from torch import Tensor


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
