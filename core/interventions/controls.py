"""The controls of ablations: a random change of equal norm, and the same change in a random subspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xatlas.errors import XatlasError
from xatlas.interventions.contract import Change, Intervention, Place, edit

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.sites import Site


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
