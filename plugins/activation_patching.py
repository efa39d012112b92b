"""Activation patching: how much of the answer moves with one value, from a prompt into its twin and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xatlas import Inputs, Probe, Suite, Variable, hookimpl
from xatlas.vocabulary import PATCH_MODES, POSITION_CLASSES, PatchMode, Positions

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel


class ActivationPatching(Probe):
    """How much of the answer moves when one site's value at some positions comes from the other run.

    Definition: a prompt and its corrupt twin are run; LD is the logit of the prompt's target minus that of its
    foil, at the readout. ``denoise`` puts clean values into the corrupt run: recovery =
    (LD_patched - LD_corrupt) / (LD_clean - LD_corrupt). ``noise`` puts corrupt values into the clean run:
    recovery = (LD_clean - LD_patched) / (LD_clean - LD_corrupt), so that 1 is a full loss. 0 is no effect in
    both; neither end is a bound. Denoising finds what suffices, noising what is needed. Pairs are dropped
    and counted unless they are of equal token length, with the subject at the same tokens, and the clean run
    prefers the target, the corrupt run the foil, by ``least`` logits each: nothing is divided by almost 0.
    Mind the whole stream: at the readout, behind the last layer, patching ``resid_post`` is 1 by construction, and
    so it is at the differing tokens before the first. What says something is the layer at which one takes over
    from the other, and ``operator_out`` and ``mlp_out``, which are what a layer does.

    Unit: 1 (share of the distance between the two runs).

    Control: ``recovery_control``, a random direction with, at every token, the norm of the change that the
    patch makes, added at the same site and positions.

    Source: Heimersheim & Nanda 2404.15255.
    """

    name = "activation_patching"
    version = 2
    sites = ("operator_out",)
    _cell = ("prompt", "layer", "site", "position", "mode")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "recovery": Variable(_cell, "1", "share of the logit difference that moves with the patch"),
        "recovery_control": Variable(_cell, "1", "the same for a random change of equal norm"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is patched.

        Parameters
        ----------
        sites : tuple of str
            Site kinds.
        positions : tuple of str
            Position classes: first, subject, last, other; all patches every position at once.
        modes : tuple of str
            denoise, noise.
        least : float
            Logits by which the clean run must prefer the target and the corrupt run the foil.
        """

        sites: tuple[str, ...] = ("resid_post", "operator_out", "mlp_out")
        positions: tuple[Positions, ...] = POSITION_CLASSES
        modes: tuple[PatchMode, ...] = PATCH_MODES
        least: float = 0.5

    def n_conditions(self, size: Mapping[str, int], draws: int) -> float:
        """Return every cell with its control, in both modes."""
        chosen = self.parameters
        return size["layer"] * len(chosen.sites) * len(chosen.positions) * len(chosen.modes) * (1 + draws)

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``recovery (prompt, layer, site, position, mode)`` and its control."""
        import numpy as np

        from xatlas.probing.means import noise_floor
        from xatlas.probing.pairs import read_pairs
        from xatlas.probing.patching import check_patch, missing, recovery
        from xatlas.schema import label, layer_coords, suite_coords

        chosen = self.parameters
        check_patch(model, chosen.sites)
        pairs = read_pairs(model, suite, chosen.least)
        measured = [
            recovery(model, pairs, chosen.sites, chosen.positions, mode, inputs, self.name) for mode in chosen.modes
        ]
        return label(
            self.variables,
            {
                "recovery": np.stack([patched for patched, _ in measured], axis=-1),
                "recovery_control": np.stack([moved for _, moved in measured], axis=-1),
            },
            {
                **suite_coords(pairs.tokens),
                **layer_coords(model.operator_types),
                "site": list(chosen.sites),
                "position": list(chosen.positions),
                "mode": list(chosen.modes),
            },
            absent=missing(model, pairs, chosen.sites, chosen.positions),
            dropped=pairs.dropped,
            noise_floor=noise_floor(model, pairs.tokens.prompts),
        )


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [ActivationPatching]
