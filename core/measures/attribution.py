"""Gradients at sites: what first-order patching needs, in one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from xatlas.model.hooks import Hook, attached, exclusive
from xatlas.prompts import TokenPrompt, buckets
from xatlas.sites import Site
from xatlas.sweep.budget import Budget

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.measures.twins import Pairs
    from xatlas.model import HookedModel

#: Tensors as large as the stream that a layer keeps for the backward pass, roughly.
_KEPT = 32


@exclusive
def gradients(
    model: HookedModel, prompts: Sequence[TokenPrompt], sites: Sequence[Site]
) -> dict[Site, tuple[Tensor, Tensor]]:
    """Return sites' values and the gradient of target's minus foil's logit at the readout by each of them.

    Parameters
    ----------
    model : HookedModel
        The model; its weights need no gradient and get none.
    prompts : sequence of TokenPrompt
        Of equal length, ending at the readout position.
    sites : sequence of Site
        Where.

    Returns
    -------
    dict of Site to pair of Tensor
        Value and gradient, each ``(prompt, pos, ...)`` as the site kind says.
    """
    values: dict[Site, Tensor] = {}
    leaves: dict[Site, Tensor] = {}
    final: list[Tensor] = []
    hooks = [hook for site in dict.fromkeys(sites) for hook in _leaf(model, site, values, leaves)]
    hooks.append(model.hook(Site(model.n_layers - 1, "resid_post"), final.append))
    with torch.inference_mode(False), torch.enable_grad():
        with attached(hooks):
            model.run(model.tokens(prompts))
        logits = model.logits(final[0][:, -1])  # (prompt, vocabulary)
        rows = range(len(prompts))
        target = logits[rows, [prompt.answer for prompt in prompts]]
        foil = logits[rows, [prompt.foil_answer for prompt in prompts]]
        # prompts don't meet in a batch: the gradient of the sum is each one's own
        found = torch.autograd.grad((target - foil).sum(), list(leaves.values()))
    return {site: (values[site], gradient) for site, gradient in zip(leaves, found, strict=True)}


def _leaf(model: HookedModel, site: Site, values: dict[Site, Tensor], leaves: dict[Site, Tensor]) -> list[Hook]:
    """Return the hooks that make a site's value something to differentiate by: zeros are added to it."""

    def read(value: Tensor) -> None:
        values[site] = value.detach()

    def add_nothing(value: Tensor) -> Tensor:
        leaves[site] = torch.zeros_like(value, requires_grad=True)
        return value + leaves[site]

    edited = model.point(site).edit_as or site.kind  # what is added there is added to the site itself
    return [model.hook(site, read), model.hook(Site(site.layer, edited), add_nothing)]


def attribution(model: HookedModel, pairs: Pairs, sites: Sequence[str], positions: Sequence[str]) -> np.ndarray:
    """Return gradient × (clean − corrupt) at the corrupt run, summed over the tokens of each position class.

    Parameters
    ----------
    model : HookedModel
        The model.
    pairs : Pairs
        Batched by length: two forwards and one backward per batch, whatever the number of sites.
    sites, positions : sequence of str
        Site kinds, and position classes or ``all``.

    Returns
    -------
    ndarray
        ``(prompt, layer, site, position)``, over the distance between clean and corrupt logit difference. NaN
        where a layer has no such site and where a pair has no such token.
    """
    result = np.full((len(pairs), model.n_layers, len(sites), len(positions)), np.nan)
    wanted = [(site, s) for s, kind in enumerate(sites) for site in model.sites(kind)]
    lengths = [len(pair.clean.ids) for pair in pairs.pairs]
    row = model.n_layers * model.d_model * 4 * _KEPT
    budget = Budget.for_device(model.device).stream_bytes
    for group in buckets(lengths, {n: max(1, budget // (row * n)) for n in set(lengths)}):
        some = [pairs.pairs[i] for i in group]
        clean = model.capture(model.tokens([pair.clean for pair in some]), [site for site, _ in wanted])
        there = gradients(model, [pair.corrupt for pair in some], [site for site, _ in wanted])
        masks = torch.tensor(np.array([[_tokens(pair.clean, name) for name in positions] for pair in some]))
        masks = masks.to(model.device, torch.float64)  # (prompt, position, pos)
        for site, s in wanted:
            corrupt, gradient = there[site]
            per_token = (gradient * (clean[site] - corrupt)).flatten(2).double().sum(-1)  # (prompt, pos)
            summed = torch.einsum("rp,rcp->rc", per_token, masks)
            result[group, site.layer, s] = summed.cpu().numpy()
    result /= pairs.distance[:, None, None, None]
    result[np.broadcast_to(pairs.without_tokens(positions)[:, None, None], result.shape)] = np.nan
    return result


def _tokens(prompt: TokenPrompt, positions: str) -> list[bool]:
    chosen = range(len(prompt.ids)) if positions == "all" else prompt.positions(positions)
    return [p in chosen for p in range(len(prompt.ids))]
