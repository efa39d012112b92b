"""Attribution patching: what patching would do to the answer, to first order, for all sites at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xatlas import Inputs, Probe, Suite, Variable, hookimpl
from xatlas.vocabulary import POSITION_CLASSES, Positions

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel
    from xatlas.interventions import Condition
    from xatlas.metrics import Metric


class AttributionPatching(Probe):
    """Gradient of the answer by a site's value, times what a patch would change it by.

    Definition: ``attribution`` = gradient of LD (the target's minus the foil's logit at the readout) at the
    corrupt run × (clean - corrupt value), summed over the class's tokens, over (LD_clean - LD_corrupt): the
    first-order guess of ``denoise`` recovery, with the same pairs and the same filter as
    ``activation_patching``. Two forwards and one backward serve all sites of a batch. The guess can be far off
    where a saturated softmax or a norm bends, so ``rank_correlation`` says how far to trust it: Spearman's
    over layers and positions, in each of ``exact_prompts`` prompts spread over the suite, then their mean;
    cells that are exactly 0 in both by causality are left out.

    Unit: 1 (share of the distance between the two runs).

    Control: ``rank_correlation`` to the exact patching of the same cells, measured in the same run.

    Source: Kramar et al. (AtP*) 2403.00745.
    """

    name = "attribution_patching"
    version = 2
    sites = ("operator_out",)
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "attribution": Variable(
            ("prompt", "layer", "site", "position"), "1", "gradient x (clean - corrupt), over the logit distance"
        ),
        "rank_correlation": Variable(("site",), "1", "rank correlation with exact patching, mean over a subset"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is attributed."""

        sites: tuple[str, ...] = ("resid_post", "operator_out", "mlp_out")  # site kinds
        positions: tuple[Positions, ...] = POSITION_CLASSES  # "all" takes every position at once
        least: float = 0.5  # logits by which the clean run must prefer the target and the corrupted run the foil
        exact_prompts: int = 12  # prompts that are patched exactly as well

    def planned(self, model: HookedModel, suite: Suite, draws: int) -> tuple[Sequence[Condition], Sequence[Metric]]:
        """Return the share of the cells that makes up for exact patching of a share of the prompts."""
        from xatlas.metrics import LogitDifference
        from xatlas.probing.patching import NO_PAIRS, Patching

        chosen = self.parameters
        cells = Patching(model, NO_PAIRS, chosen.sites, chosen.positions).grid(control=False).conditions
        share = min(1, chosen.exact_prompts / len(suite))
        return cells[:: round(1 / share)] if share > 0 else (), [LogitDifference()]

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``attribution (prompt, layer, site, position)`` and ``rank_correlation (site)``."""
        import numpy as np
        import xarray as xr

        from xatlas.probing.patching import Patching, read_pairs

        chosen = self.parameters
        pairs = read_pairs(model, suite, chosen.least)
        patching = Patching(model, pairs, chosen.sites, chosen.positions)
        guess, absent = patching.attribution(), {}
        correlation = xr.full_like(guess["site"], np.nan, dtype=float)
        if chosen.exact_prompts > 0:
            some = replace(patching, pairs=pairs.take(chosen.exact_prompts))
            correlation = _agreement(guess, some.recovery("denoise", inputs, self.name, control=False)["recovery"])
        if correlation.isnull().any():
            absent["rank_correlation"] = "no prompt was patched exactly, or one side is constant"
        arrays = {"attribution": guess, "rank_correlation": correlation}
        return patching.dataset(self.variables, arrays, absent=absent)


def _agreement(guess: xr.DataArray, exact: xr.DataArray) -> xr.DataArray:
    """Return the rank correlation over layers and positions, its mean over the prompts of ``exact``: ``(site,)``."""
    import numpy as np
    import xarray as xr

    from xatlas.stats import correlate_ranks

    def correlate(one: np.ndarray, other: np.ndarray) -> float:
        pair = np.stack([one.ravel(), other.ravel()])
        cells = np.isfinite(pair).all(0) & (pair != 0).any(0)
        return float(correlate_ranks(pair[0, cells], pair[1, cells])) if cells.sum() > 2 else np.nan

    some = guess.sel(prompt=exact["prompt"])
    cell = [["layer", "position"]] * 2
    found: xr.DataArray = xr.apply_ufunc(correlate, some, exact, input_core_dims=cell, vectorize=True)
    return found.mean("prompt")


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [AttributionPatching]
