"""Exact patching: values of one run put into its twin, and how much of the answer moves with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.errors import unknown
from xatlas.interventions import Condition, FromRun, Intervention, RandomDirection
from xatlas.metrics import LogitDifference
from xatlas.sites import READ_ONLY, Site
from xatlas.sweep import sweep

if TYPE_CHECKING:
    from xatlas.measures.twins import Pairs
    from xatlas.model import HookedModel
    from xatlas.probe import Inputs

#: ``denoise`` puts clean values into the corrupt run, ``noise`` corrupt values into the clean run.
MODES = ("denoise", "noise")
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
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
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
