"""Attribution patching: what patching would do to the answer, to first order, for all sites at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xatlas import Inputs, Probe, Suite, Variable, hookimpl
from xatlas.vocabulary import POSITION_CLASSES, Positions

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel


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
        """What is attributed.

        Parameters
        ----------
        sites : tuple of str
            Site kinds.
        positions : tuple of str
            Position classes: first, subject, last, other; all takes every position at once.
        least : float
            Logits by which the clean run must prefer the target and the corrupt run the foil.
        exact_prompts : int
            Prompts that are patched exactly as well; 0 for none.
        """

        sites: tuple[str, ...] = ("resid_post", "operator_out", "mlp_out")
        positions: tuple[Positions, ...] = POSITION_CLASSES
        least: float = 0.5
        exact_prompts: int = 12

    def n_conditions(self, size: Mapping[str, int], draws: int) -> float:
        """Return two forwards and a backward, and the cells of the prompts that are patched exactly."""
        chosen = self.parameters
        exact = min(chosen.exact_prompts, size["prompt"]) / max(1, size["prompt"])
        return float(3 + exact * size["layer"] * len(chosen.sites) * len(chosen.positions))

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``attribution (prompt, layer, site, position)`` and ``rank_correlation (site)``."""
        import numpy as np

        from xatlas.probing.means import noise_floor
        from xatlas.probing.pairs import read_pairs
        from xatlas.probing.patching import attribution, check_patch, missing, recovery
        from xatlas.schema import label, layer_coords, suite_coords

        chosen = self.parameters
        check_patch(model, chosen.sites)
        pairs = read_pairs(model, suite, chosen.least)
        guess = attribution(model, pairs, chosen.sites, chosen.positions)
        correlation = np.full(len(chosen.sites), np.nan)
        if chosen.exact_prompts > 0:
            some = pairs.take(chosen.exact_prompts)
            places = [pairs.pairs.index(pair) for pair in some.pairs]
            exact, _ = recovery(
                model, some, chosen.sites, chosen.positions, "denoise", inputs, self.name, control=False
            )
            correlation = _agreement(guess[places], exact)
        absent = missing(model, pairs, chosen.sites, chosen.positions)
        if np.isnan(correlation).any():
            absent["rank_correlation"] = "no prompt was patched exactly, or one side is constant"
        return label(
            self.variables,
            {"attribution": guess, "rank_correlation": correlation},
            {
                **suite_coords(pairs.tokens),
                **layer_coords(model.operator_types),
                "site": list(chosen.sites),
                "position": list(chosen.positions),
            },
            absent=absent,
            dropped=pairs.dropped,
            noise_floor=noise_floor(model, pairs.tokens.prompts),
        )


def _agreement(guess: Any, exact: Any) -> Any:
    """Return the mean rank correlation ``(site,)`` of two arrays ``(prompt, layer, site, position)``."""
    import numpy as np

    from xatlas.stats import correlate_ranks

    found = np.full((len(guess), guess.shape[2]), np.nan)
    for row, s in np.ndindex(*found.shape):
        pair = np.stack([guess[row, :, s].ravel(), exact[row, :, s].ravel()])
        cells = np.isfinite(pair).all(0) & (pair != 0).any(0)
        if cells.sum() > 2:
            found[row, s] = correlate_ranks(pair[0, cells], pair[1, cells])
    count = np.isfinite(found).sum(0)
    return np.divide(np.nansum(found, axis=0), count, out=np.full(found.shape[1], np.nan), where=count > 0)


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [AttributionPatching]
