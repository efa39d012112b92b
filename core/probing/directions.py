"""Directions in the stream: random ones of two kinds, and what sets one family's readout apart from the rest."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from xatlas.contracts.adapter import Site
from xatlas.model import HookedModel
from xatlas.prompts.reader import TokenPrompt, buckets

#: Tokens that are captured at a time.
_AT_ONCE = 2048


def random_direction(width: int, seed: int) -> Tensor:
    """Return a unit vector ``(width,)`` of uniform direction; the same seed gives the same one anywhere."""
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return _units(drawn)


def matched_direction(values: Tensor, seed: int) -> Tensor:
    """Return a random unit direction ``(layer, d_model)`` with the covariance of ``values (layer, prompt, d_model)``.

    Differences of means lie mostly where a stream varies most, and uniform directions hardly do: this is the control
    for them. A combination of centred values with standard normal weights has the covariance of the values. Where
    they are all the same, the layer's row is NaN.
    """
    weights = torch.randn(values.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centred = values.double() - values.double().mean(1, keepdim=True)
    return _units(torch.einsum("p,lpd->ld", weights, centred))


def contrasts(values: Tensor, families: Sequence[str]) -> dict[str, Tensor]:
    """Return family → unit direction ``(layer, d_model)`` from the mean of all other prompts to the family's mean.

    ``values`` are ``(layer, prompt, d_model)``. A family without any rest is left out; where the two means are the
    same there is no direction, and the layer's row is NaN.
    """
    found = {}
    for family in sorted(set(families)):
        own = torch.tensor([other == family for other in families])
        if not own.all():
            found[family] = _units(values[:, own].double().mean(1) - values[:, ~own].double().mean(1))
    return found


def _units(vectors: Tensor) -> Tensor:
    """Return vectors ``(..., d_model)`` at unit length, in float32; NaN for a vector of zeros."""
    norm = vectors.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, vectors / norm, torch.nan).float()


def shuffle(families: Sequence[str], seed: int) -> list[str]:
    """Return the labels in a random order: as many of each, on other prompts."""
    shuffled = list(families)
    random.Random(f"families {seed}").shuffle(shuffled)
    return shuffled


@torch.inference_mode()
def readout_values(model: HookedModel, prompts: Sequence[TokenPrompt], kind: str = "resid_post") -> Tensor:
    """Return the clean values ``(layer, prompt, d_model)`` of a site kind at the readout, float32."""
    sites = [Site(layer, kind) for layer in range(model.n_layers)]
    result = torch.empty(model.n_layers, len(prompts), model.d_model)
    lengths = [prompt.readout + 1 for prompt in prompts]
    for group in buckets(lengths, lambda length: _AT_ONCE // length):
        rows = group.tolist()
        ids = torch.tensor([prompts[i].ids[: prompts[i].readout + 1] for i in rows], device=model.device)
        values = model.capture(ids, sites)
        for layer, site in enumerate(sites):
            result[layer, rows] = values[site][:, -1].float().cpu()
    return result


def median_norms(values: Tensor) -> Tensor:
    """Return each layer's median norm ``(layer,)`` of values ``(layer, prompt, d_model)``."""
    norms: Tensor = values.norm(dim=-1)
    return norms.quantile(0.5, dim=-1)
