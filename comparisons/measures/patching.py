"""What patching profiles are made of: recovery over layers, and what moves it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.comparisons.measures import summary
from xatlas.comparisons.measures.ranking import chances, leader
from xatlas.comparisons.measures.readings import Reading
from xatlas.errors import XatlasError
from xatlas.stats import Floats
from xatlas.vocabulary import PATCH_MODES, POSITION_CLASSES

if TYPE_CHECKING:
    import xarray as xr

SITES = ("resid_post", "operator_out", "mlp_out")
STREAM, OPERATOR, MLP = range(3)
SUBJECT, LAST = 1, 2


def check(main: Reading) -> None:
    """Refuse a result that was measured on fewer sites, positions or modes than profiles show.

    Raises
    ------
    XatlasError
        Names what is missing, and the command that measures it.
    """
    for dim, needed in (("site", SITES), ("position", POSITION_CLASSES), ("mode", PATCH_MODES)):
        missing = [name for name in needed if name not in main.dataset[dim].values]
        if missing:
            raise XatlasError(
                f"activation_patching of {main.model} was measured without the {dim} '{missing[0]}'; measure it "
                f"with: xatlas run {main.called} --probes activation_patching"
            )


def values(dataset: xr.Dataset, variable: str = "recovery") -> Floats:
    """Return ``(prompt, layer, site, position, mode)`` in the order of this file's names."""
    chosen = dataset[variable].sel(site=list(SITES), position=list(POSITION_CLASSES), mode=list(PATCH_MODES))
    return np.asarray(chosen.transpose("prompt", "layer", "site", "position", "mode").values, dtype=float)


def profiles(mains: Sequence[Reading]) -> dict[str, Any]:
    """Return ``recovery`` and ``control (model, site, position, mode, layer)`` with their intervals."""
    dims = ("model", "site", "position", "mode", "layer")
    found: dict[str, Any] = {}
    for name, variable, words in (
        ("recovery", "recovery", "family-macro share of the answer that moves with the patch"),
        ("control", "recovery_control", "the same for a random change of equal norm"),
    ):
        points: list[Any] = []
        lows: list[Any] = []
        highs: list[Any] = []
        for main in mains:
            point, draws = drawn(main, variable)
            for kept, array in zip((points, lows, highs), (point, *main.clusters.interval(draws)), strict=True):
                kept.append(np.moveaxis(array, 0, -1))
        stacked = [summary.stack(each) for each in (points, lows, highs)]
        found |= summary.with_interval(name, dims, stacked[0], (stacked[1], stacked[2]), "1", words)
    return found


@lru_cache(maxsize=16)
def drawn(main: Reading, variable: str) -> tuple[Floats, Floats]:
    """Return the family-macro average ``(layer, site, position, mode)`` and its draws."""
    array = values(main.dataset, variable)
    return main.clusters.macro(array), main.clusters.macro_draws(array)


def movers(mains: Sequence[Reading]) -> dict[str, Any]:
    """Return the layer whose operator moves most to the readout ``(model, mode)``, and how sure that is."""
    numbers = np.full((5, len(mains), len(PATCH_MODES)), np.nan)
    first = []
    for i, main in enumerate(mains):
        point, draws = drawn(main, "recovery")
        for m in range(len(PATCH_MODES)):
            best = leader(main.clusters, point[:, OPERATOR, LAST, m], draws[:, :, OPERATOR, LAST, m])
            if best is not None:
                numbers[:, i, m] = (
                    best.index,
                    best.probability,
                    best.margin,
                    best.tie,
                    _over_control(main, m, best.index),
                )
        first.append(chances(main.clusters, draws[:, :, OPERATOR, LAST, 0]))
    words = {
        "mover": ("layer", "layer whose operator's output at the readout recovers most"),
        "mover_p_rank1": ("1", "P(rank 1) over bootstrap draws"),
        "mover_margin": ("1", "its lead over the best of all others"),
        "mover_tie": ("1", "1 where the margin's interval contains 0"),
        "mover_p": ("1", "max-T sign flips of recovery over its control, all layers at once"),
    }
    found: dict[str, Any] = {
        name: (("model", "mode"), numbers[k], *said) for k, (name, said) in enumerate(words.items())
    }
    found["p_rank1"] = (("model", "layer"), summary.stack(first), "1", "P(rank 1) of each layer's operator, denoise")
    return found


def _over_control(main: Reading, mode: int, layer: int) -> float:
    effect, control = (values(main.dataset, name)[:, :, OPERATOR, LAST, mode] for name in VARIABLES)
    return float(main.clusters.max_t(effect - control)[layer])


VARIABLES = ("recovery", "recovery_control")


def channels(mains: Sequence[Reading]) -> list[str]:
    """Return the operator types of all models, and ``mlp``."""
    return [*sorted({str(kind) for main in mains for kind in main.dataset["operator_type"].values}), "mlp"]


def carried(mains: Sequence[Reading]) -> dict[str, Any]:
    """Return recovery at the readout per layer of each kind ``(model, channel, mode)``, and their difference.

    ``attention_over_others``: the mean attention layer's operator minus the mean other layer's.
    """
    names = channels(mains)
    found: dict[str, Any] = {}
    for name, variable in (("carried", "recovery"), ("carried_control", "recovery_control")):
        rows = np.full((3, len(mains), len(names), len(PATCH_MODES)), np.nan)
        apart = np.full((3, len(mains), len(PATCH_MODES)), np.nan)
        for i, main in enumerate(mains):
            point, draws = drawn(main, variable)
            types = main.dataset["operator_type"].values.astype(str)
            for c, channel in enumerate(names):
                layers = np.ones(len(types), bool) if channel == "mlp" else types == channel
                if layers.any():
                    site = MLP if channel == "mlp" else OPERATOR
                    rows[:, i, c] = _mean(main, point[layers][:, site, LAST], draws[:, layers][:, :, site, LAST])
            attends = types == "attention"
            if attends.any() and not attends.all():
                each = [array[..., OPERATOR, LAST, :] for array in (point, draws)]
                point_, draws_ = (a[..., attends, :].mean(-2) - a[..., ~attends, :].mean(-2) for a in each)
                apart[:, i] = point_, *main.clusters.interval(draws_)
        words = "mean recovery at the readout of one layer of this kind"
        found |= summary.with_interval(name, ("model", "channel", "mode"), rows[0], (rows[1], rows[2]), "1", words)
        other = name.replace("carried", "attention_over_others")
        words = "mean recovery at the readout of an attention layer's operator minus another layer's"
        found |= summary.with_interval(other, ("model", "mode"), apart[0], (apart[1], apart[2]), "1", words)
    p = [_apart_p(main) for main in mains]
    found["attention_over_others_p"] = (("model",), np.array(p), "1", "two-sided sign flips")
    return found


def _mean(main: Reading, point: Floats, draws: Floats) -> tuple[Floats, Floats, Floats]:
    low, high = main.clusters.interval(draws.mean(1))
    return point.mean(0), low, high


def _apart_p(main: Reading) -> float:
    attends = main.dataset["operator_type"].values.astype(str) == "attention"
    if attends.all() or not attends.any():
        return math.nan
    each = values(main.dataset)[:, :, OPERATOR, LAST, 0]
    apart = each[:, attends].mean(1) - each[:, ~attends].mean(1)
    return float(main.clusters.max_t(apart[:, None], alternative="two-sided")[0])
