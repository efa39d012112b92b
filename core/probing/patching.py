"""Patching between a prompt and its corrupted twin: exact recovery, and its gradient approximation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xatlas.contracts.adapter import Site
from xatlas.engine.schedule import Budget
from xatlas.engine.sweep import sweep
from xatlas.errors import unknown
from xatlas.interventions import Condition, FromRun, Intervention, RandomDirection
from xatlas.metrics import LogitDifference
from xatlas.model.hooks import Hook, attached, exclusive
from xatlas.prompts.reader import TokenPrompt, buckets
from xatlas.vocabulary import PATCH_MODES, READ_ONLY

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.contracts.probe import Inputs
    from xatlas.model import HookedModel
    from xatlas.probing.pairs import Pairs


_TWIN = "twin"
#: Sites behind the layer's operator: what is there at one position reaches others in later layers only.
_MIXED = frozenset({"operator_out", "resid_mid", "mlp_out", "resid_post"})


def check_patch(model: HookedModel, sites: Sequence[str]) -> None:
    """Refuse site kinds that the model does not have, or has for reading only.

    Raises
    ------
    XatlasError
        Names what is unknown, and what is valid.
    """
    kinds = {kind for layer in range(model.n_layers) for kind in model.adapter.hook_points(layer)} - READ_ONLY
    for kind in sites:
        if kind not in kinds:
            raise unknown("site kind", kind, kinds)


def recovery(
    model: HookedModel,
    pairs: Pairs,
    sites: Sequence[str],
    positions: Sequence[str],
    mode: str,
    inputs: Inputs,
    label: str,
    *,
    control: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Patch every layer, site and position class of every pair, one at a time.

    Parameters
    ----------
    model : HookedModel
        The model.
    pairs : Pairs
        What is patched.
    sites, positions : sequence of str
        Site kinds, and position classes or ``all``.
    mode : {"denoise", "noise"}
        Which run is patched with values of which.
    inputs : Inputs
        Seed, draws, checkpoint and progress.
    label : str
        Names the sweep.
    control : bool
        Whether the control is measured as well.

    Returns
    -------
    recovery, control : ndarray
        ``(prompt, layer, site, position)``: the change of the logit difference over the distance between clean
        and corrupt run, 1 where all of the answer moves; and the same for a random direction with the norm
        of what the patch changes, NaN without ``control``. NaN where a layer has no such site and where a
        pair has no such token.

    Raises
    ------
    XatlasError
        The mode is unknown.
    """
    if mode not in PATCH_MODES:
        raise unknown("mode", mode, PATCH_MODES)
    cells, conditions = _conditions(model, pairs, sites, positions, inputs.draws if control else 0)
    runs = [[pair.corrupt, pair.clean] for pair in pairs.pairs]
    into, source = (0, 1) if mode == "denoise" else (1, 0)
    values = sweep(
        model,
        [run[into] for run in runs],
        conditions,
        [LogitDifference(change=True)],
        runs={_TWIN: [run[source].ids for run in runs]},
        seed=inputs.seed,
        checkpoint=inputs.checkpoint,
        progress=inputs.progress,
        label=f"{label}, {mode}",
    )[0]
    values /= (pairs.distance if mode == "denoise" else -pairs.distance)[:, None]
    result = np.full((2, len(pairs), model.n_layers, len(sites), len(positions)), np.nan)
    for s, kind in enumerate(sites):
        result[: 1 + control, :, [site.layer for site in model.sites(kind)], s] = 0.0  # where none is measured
    at: dict[tuple[int, ...], list[int]] = {}
    for index, cell in enumerate(cells):
        at.setdefault(cell, []).append(index)
    for place, indices in at.items():
        target: Any = (place[0], slice(None), *place[1:])
        result[target] = values[:, indices].mean(1)
    result[np.broadcast_to(pairs.without_tokens(positions)[:, None, None], result.shape)] = np.nan
    return result[0], result[1]


def _conditions(
    model: HookedModel, pairs: Pairs, sites: Sequence[str], positions: Sequence[str], draws: int
) -> tuple[list[tuple[int, int, int, int]], list[Condition]]:
    """Return ``(control, layer, site, position)`` and the condition of every cell that can have an effect.

    By causality none has one before the first token in which the two runs differ, and none at other positions
    than the readout in the last layer.
    """
    same_start = all(pair.clean.ids[0] == pair.corrupt.ids[0] for pair in pairs.pairs)
    cells: list[tuple[int, int, int, int]] = []
    conditions: list[Condition] = []
    for s, kind in enumerate(sites):
        for site in model.sites(kind):
            for p, name in enumerate(positions):
                late = kind in _MIXED and site.layer == model.n_layers - 1
                if (late and name not in ("last", "all")) or (name == "first" and same_start):
                    continue
                patch = Intervention(site, FromRun(_TWIN), positions=name)
                cells.append((0, site.layer, s, p))
                conditions.append((patch,))
                for draw in range(draws):
                    cells.append((1, site.layer, s, p))
                    conditions.append((Intervention(site, RandomDirection((patch,), draw), positions=name),))
    return cells, conditions


def missing(model: HookedModel, pairs: Pairs, sites: Sequence[str], positions: Sequence[str]) -> dict[str, str]:
    """Return why values of :func:`recovery` are NaN."""
    found: dict[str, str] = {}
    for kind in sites:
        bare = [layer for layer in range(model.n_layers) if not model.has(Site(layer, kind))]
        if bare:
            found[f"site={kind} & layer={','.join(map(str, bare))}"] = (
                f"{len(bare)} of {model.n_layers} layers have no {kind}"
            )
    for name, empty in zip(positions, pairs.without_tokens(positions).T, strict=True):
        if empty.any():
            found[f"position {name}"] = f"{int(empty.sum())} of {len(pairs)} prompts have no token of this class"
    return found


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
