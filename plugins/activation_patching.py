"""Activation patching: how much of the answer moves with one value, from the clean into the corrupted run and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xatlas import Inputs, Probe, Suite, Variable, hookimpl
from xatlas.vocabulary import PATCH_MODES, POSITION_CLASSES, PatchMode, Positions

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel
    from xatlas.interventions import Condition
    from xatlas.metrics import Metric


class ActivationPatching(Probe):
    """How much of the answer moves when one site's value at some positions comes from the other run.

    Definition: a clean and a corrupted prompt are run; LD is the logit of the prompt's target minus that of its
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

    Control: ``recovery_control``, a random direction of each prompt's own with, at every token, the norm of the
    change that the patch makes, added at the same site and positions.

    Source: Heimersheim & Nanda 2404.15255.
    """

    name = "activation_patching"
    version = 3
    sites = ("operator_out",)
    _cell = ("prompt", "layer", "site", "position", "mode")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "recovery": Variable(_cell, "1", "share of the logit difference that moves with the patch"),
        "recovery_control": Variable(_cell, "1", "the same for a random change of equal norm"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is patched."""

        sites: tuple[str, ...] = ("resid_post", "operator_out", "mlp_out")  # site kinds
        positions: tuple[Positions, ...] = POSITION_CLASSES  # "all" patches every position at once
        modes: tuple[PatchMode, ...] = PATCH_MODES
        least: float = 0.5  # logits by which the clean run must prefer the target and the corrupted run the foil

    def planned(self, model: HookedModel, suite: Suite, draws: int) -> tuple[Sequence[Condition], Sequence[Metric]]:
        """Return every cell with its controls, in both modes, as if no pair were dropped."""
        from xatlas.metrics import LogitDifference
        from xatlas.probing.patching import NO_PAIRS, Patching

        chosen = self.parameters
        grid = Patching(model, NO_PAIRS, chosen.sites, chosen.positions).grid()
        return grid.conditions * len(chosen.modes), [LogitDifference()]

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``recovery (prompt, layer, site, position, mode)`` and its control."""
        import xarray as xr

        from xatlas.probing.patching import Patching, read_pairs

        chosen = self.parameters
        patching = Patching(model, read_pairs(model, suite, chosen.least), chosen.sites, chosen.positions)
        modes = [patching.recovery(mode, inputs, self.name) for mode in chosen.modes]
        arrays = {name: xr.concat([mode[name] for mode in modes], "mode") for name in self.variables}
        return patching.dataset(self.variables, arrays, mode=list(chosen.modes))


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [ActivationPatching]
