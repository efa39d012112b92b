"""Directions in the stream: random ones of two kinds, and what sets one family's readout apart from the rest."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from xatlas.contracts.adapter import Site
from xatlas.prompts.reader import buckets

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.model import HookedModel
    from xatlas.prompts.reader import TokenPrompt


#: Tokens that are captured at a time.
_AT_ONCE = 2048


@dataclass
class Directions:
    """Directions ``(layer, d_model)`` with their names, kinds, families and recipes."""

    labels: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    families: list[str] = field(default_factory=list)
    recipes: list[str] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)

    def add(self, label: str, kind: str, family: str, recipe: str, vector: Tensor) -> None:
        """Keep one more direction ``(layer, d_model)``."""
        self.labels.append(label)
        self.kinds.append(kind)
        self.families.append(family)
        self.recipes.append(recipe)
        self.rows.append(vector)

    @cached_property
    def vectors(self) -> Tensor:
        """All of them ``(direction, layer, d_model)``."""
        return torch.stack(self.rows)

    def coords(self) -> dict[str, Any]:
        """Return the coordinates of the ``direction`` dimension."""
        return {
            "direction": self.labels,
            "direction_kind": ("direction", self.kinds),
            "direction_family": ("direction", self.families),
            "recipe": ("direction", self.recipes),
        }

    def absent(self) -> dict[str, str]:
        """Return why values are NaN, where they are."""
        missing = self.vectors.isnan().any(-1).any(-1)
        gone = [label for label, lost in zip(self.labels, missing.tolist(), strict=True) if lost]
        return {f"direction={label}": "in some layers there is nothing to tell apart" for label in gone}


def random_direction(width: int, seed: int) -> Tensor:
    """Return a unit vector ``(width,)`` of uniform direction; the same seed gives the same one anywhere."""
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit: Tensor = drawn / drawn.norm()
    return unit.float()


def matched_direction(values: Tensor, seed: int) -> Tensor:
    """Return a random unit direction for each layer ``(layer, d_model)``, spread as the values themselves are.

    A stream varies far more in some directions than in others, and every difference of means lies mostly in those.
    A uniform direction hardly does, so it is no control for a difference of means; this one is: a combination of
    centred values with standard normal weights has, whatever it is drawn from, the covariance of the values.

    Parameters
    ----------
    values : Tensor
        ``(layer, prompt, d_model)``.
    seed : int
        Of the weights, which are the same in every layer.

    Returns
    -------
    Tensor
        A layer whose values are all the same has no direction: its row is NaN.
    """
    weights = torch.randn(values.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centred = values.double() - values.double().mean(1, keepdim=True)
    return _units(torch.einsum("p,lpd->ld", weights, centred))


def _units(vectors: Tensor) -> Tensor:
    """Return vectors ``(layer, d_model)`` at unit length; NaN for a vector of zeros."""
    norm = vectors.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, vectors / norm, torch.nan).float()


@torch.inference_mode()
def readout_values(model: HookedModel, prompts: Sequence[TokenPrompt], kind: str = "resid_post") -> Tensor:
    """Return a site kind's clean values at the readout position ``(layer, prompt, d_model)``, float32.

    Parameters
    ----------
    model : HookedModel
        The model.
    prompts : sequence of TokenPrompt
        What is run; nothing behind the readout position is.
    kind : str
        A site kind ``(batch, pos, d_model)`` that every layer has.
    """
    sites = [Site(layer, kind) for layer in range(model.n_layers)]
    result = torch.empty(model.n_layers, len(prompts), model.d_model)
    lengths = [prompt.readout + 1 for prompt in prompts]
    for group in buckets(lengths, {length: max(1, _AT_ONCE // length) for length in set(lengths)}):
        rows = [int(i) for i in group]
        ids = torch.tensor([prompts[i].ids[: prompts[i].readout + 1] for i in rows], device=model.device)
        values = model.capture(ids, sites)
        for layer, site in enumerate(sites):
            result[layer, rows] = values[site][:, -1].float().cpu()
    return result


def median_norms(values: Tensor) -> Tensor:
    """Return each layer's median norm ``(layer,)`` of values ``(layer, prompt, d_model)``."""
    norms: Tensor = values.norm(dim=-1)
    return norms.quantile(0.5, dim=-1)


def contrasts(values: Tensor, families: Sequence[str]) -> dict[str, Tensor]:
    """Return family → unit direction from the mean of all other prompts to the family's mean.

    Parameters
    ----------
    values : Tensor
        ``(layer, prompt, d_model)``.
    families : sequence of str
        The family of each prompt.

    Returns
    -------
    dict of str to Tensor
        ``(layer, d_model)``, sorted by family; empty when there is no rest. Where the two means are the same
        there is no direction, and the layer's row is NaN.
    """
    found = {}
    for family in sorted(set(families)):
        own = torch.tensor([other == family for other in families])
        if own.all():
            continue
        found[family] = _units(values[:, own].double().mean(1) - values[:, ~own].double().mean(1))
    return found


def shuffle(families: Sequence[str], seed: int) -> list[str]:
    """Return the labels in a random order: as many of each, on other prompts."""
    shuffled = list(families)
    random.Random(f"families {seed}").shuffle(shuffled)
    return shuffled
