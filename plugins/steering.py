"""Steering: what adding a direction to the stream at the readout position does, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas import Inputs, Intervention, Probe, Site, Suite, Variable, XatlasError, hookimpl
from xatlas.errors import unknown

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from xatlas import HookedModel
    from xatlas.probing.directions import Directions

SCALES = ("absolute", "relative")
#: Conditions that are handed to the engine at a time: they share its walks, and its lists stay short.
AT_ONCE = 4096
#: How many families a reference has, for estimates.
FAMILIES = 12


class Steering(Probe):
    """KL and logit change when a unit direction times a strength is added at the readout position.

    Definition: the vector is added to ``resid_post`` of one layer at the readout position; ``kl`` =
    KL(clean ‖ steered) of the next token there, ``delta_logit_diff`` the change of target minus foil logit.
    A relative strength is a multiple of the layer's median norm at that position over the suite's prompts; an
    absolute one is the same length in every layer, a multiple of the parameter ``unit`` (by default the median
    of those norms over layers). ``length`` holds what was added. At one absolute strength a random vector
    measures little but 1 / norm of the stream: hence both scales. Directions: ``family``, from the mean of the
    other families to the mean of one at the readout position on the reference, layer by layer, of unit length;
    a prompt of another family shows its off-task effect. They are kept in ``direction_vector``.

    Unit: nats; logits.

    Control: ``random``, at least 20 unit vectors of uniform direction, the same in every layer, whose label names
    the seed; ``matched``, as many with the covariance of the stream at the reference's readouts, which differences
    of means share and uniform vectors don't; and ``shuffled``, the family directions with the reference's family
    labels shuffled, which fall among the matched ones.

    Source: Turner et al. 2308.10248; Rimsky et al. 2312.06681; Pres et al. 2410.17245.
    """

    name = "steering"
    version = 2
    sites = ("resid_post",)
    uses_reference = True
    at_readout = True
    _cell = ("prompt", "layer", "direction", "strength", "scale")
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "kl": Variable(_cell, "nats", "KL(clean || steered)"),
        "delta_logit_diff": Variable(_cell, "logits", "change of the target's minus the foil's logit"),
        "length": Variable(("layer", "strength", "scale"), "1", "length of the vector that was added"),
        "median_norm": Variable(("layer",), "1", "median norm of the stream at the readout position"),
        "direction_vector": Variable(("direction", "layer", "d_model"), "1", "unit direction"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured.

        Parameters
        ----------
        strengths : tuple of float
            Multiples of the scale's unit; a negative one points away from the direction.
        random : int
            How many random directions.
        matched : int
            How many random directions with the stream's covariance.
        families : tuple of str
            Families whose directions are tried; all of the reference's when empty.
        shuffled : bool
            Whether the same families are tried with shuffled labels.
        unit : float or None
            Length of absolute strength 1; the median of the layers' median norms when none is given.
        """

        strengths: tuple[float, ...] = (-1.0, -0.25, 0.1, 0.25, 0.5, 1.0)
        random: int = 20
        matched: int = 20
        families: tuple[str, ...] = ()
        shuffled: bool = True
        unit: float | None = None

        def __post_init__(self) -> None:
            if not self.strengths or any(s == 0 or not math.isfinite(s) for s in self.strengths):
                raise XatlasError(
                    f"steering.strengths = {','.join(f'{s:g}' for s in self.strengths) or 'nothing'} does not fit: "
                    "it takes numbers other than 0, which changes nothing."
                )
            if len(set(self.strengths)) < len(self.strengths):
                raise XatlasError("steering.strengths holds a number twice: give each once.")
            for name in ("random", "matched"):
                if getattr(self, name) < 0:
                    raise XatlasError(
                        f"steering.{name} = {getattr(self, name)} does not fit: it takes a whole number from 0."
                    )
            if self.unit is not None and not (math.isfinite(self.unit) and self.unit > 0):
                raise XatlasError(f"steering.unit = {self.unit:g} does not fit: it takes a number above 0.")

    def n_conditions(self, size: Mapping[str, int], draws: int) -> float:
        """Return every direction at every strength and scale."""
        chosen = self.parameters
        named = (len(chosen.families) or FAMILIES) * (1 + chosen.shuffled)
        return float(size["layer"] * (chosen.random + chosen.matched + named) * len(chosen.strengths) * len(SCALES))

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``kl``, ``delta_logit_diff (prompt, layer, direction, strength, scale)`` and what was added."""
        import xarray as xr

        from xatlas.probing.directions import median_norms, readout_values
        from xatlas.probing.means import noise_floor
        from xatlas.schema import label, layer_coords, suite_coords

        tokens = model.read(suite)
        directions = self._directions(model, inputs)
        norms = median_norms(readout_values(model, tokens.prompts)).numpy()
        length = self._lengths(norms)
        values = _sweep(model, tokens.prompts, directions, length, self.parameters.strengths, inputs)
        kl = values.sel(metric="kl", drop=True)
        exists = xr.DataArray(~directions.vectors.isnan().any(-1).numpy(), dims=("direction", "layer"))
        lost = (kl.isnull() & exists).sum([dim for dim in kl.dims if dim != "prompt"]).values
        where = f"of {kl.isel(prompt=0).size} conditions{model.overflow}"
        told = {i: f"logits were not finite in {n} {where}" for i, n in enumerate(lost) if n}
        absent = directions.absent()
        foilless = sum(prompt.foil_answer is None for prompt in tokens.prompts)
        if foilless:
            absent["delta_logit_diff"] = f"{foilless} prompts have no foil"
        return label(
            self.variables,
            {
                "kl": kl,
                "delta_logit_diff": values.sel(metric="delta_logit_diff", drop=True),
                "length": length,
                "median_norm": norms,
                "direction_vector": directions.vectors.numpy(),
            },
            {
                **suite_coords(tokens),
                **layer_coords(model.operator_types),
                **directions.coords(),
                "strength": list(self.parameters.strengths),
                "scale": list(SCALES),
                "d_model": np.arange(model.d_model),
            },
            absent=absent,
            dropped=tokens.dropped | {tokens.prompts[i].prompt.id: reason for i, reason in told.items()},
            noise_floor=noise_floor(model, tokens.prompts),
        )

    def _lengths(self, norms: np.ndarray) -> np.ndarray:
        """Return what is added ``(layer, strength, scale)``, the direction's sense with it."""
        unit = float(np.median(norms)) if self.parameters.unit is None else self.parameters.unit
        units = np.stack([np.full_like(norms, unit), norms], axis=-1)  # (layer, scale)
        return np.asarray(units[:, None, :] * np.array(self.parameters.strengths, dtype=norms.dtype)[:, None])

    def _directions(self, model: HookedModel, inputs: Inputs) -> Directions:
        """Return all directions, the random ones first."""
        from xatlas.probing.directions import Directions, matched_direction, random_direction, readout_values

        found = Directions()
        seeds = range(1000 * inputs.seed, 1000 * inputs.seed + max(self.parameters.random, self.parameters.matched))
        for seed in seeds[: self.parameters.random]:
            vector = random_direction(model.d_model, seed).expand(model.n_layers, -1)
            found.add(f"random:{seed}", "random", "", f"standard normal numbers of torch's seed {seed}", vector)
        if inputs.reference is None:
            raise XatlasError("family directions need a reference suite: pass --reference FILE.")
        reference = model.read(inputs.reference).prompts
        values = readout_values(model, reference)
        where = f"suite {inputs.reference.name} ({inputs.reference.hash[:12]}), resid_post at the readout position"
        for seed in seeds[: self.parameters.matched]:
            recipe = f"centred values weighted with standard normal numbers of torch's seed {seed}; {where}"
            found.add(f"matched:{seed}", "matched", "", recipe, matched_direction(values, seed))
        self._add_families(found, values, [prompt.prompt.family for prompt in reference], where, inputs)
        if not found.labels:
            raise XatlasError("no direction is left: ask for random ones, or give a reference of several families.")
        return found

    def _add_families(self, found: Directions, values: Tensor, families: list[str], where: str, inputs: Inputs) -> None:
        """Add the families' directions, and those with shuffled labels."""
        from xatlas.probing.directions import contrasts, shuffle

        wanted = self.parameters.families or sorted(set(families))
        for family in wanted:
            if family not in families:
                named = inputs.reference.name if inputs.reference else ""
                raise unknown("family", family, set(families), f"They are those of '{named}'.")
        recipe = f"mean of the family minus mean of the rest; {where}"
        kinds = [("family", "", families, recipe)]
        if self.parameters.shuffled:
            shuffled = shuffle(families, inputs.seed)
            kinds.append(("shuffled", "shuffled:", shuffled, f"{recipe}; labels shuffled with seed {inputs.seed}"))
        for kind, prefix, labels, told in kinds:
            for family, vector in contrasts(values, labels).items():
                if family in wanted:
                    found.add(f"{prefix}{family}", kind, family, told, vector)


def _progress(
    report: Callable[[str, int, int], None], part: int, parts: int, label: str, done: int, total: int
) -> None:
    """Report how much of all parts is done."""
    report(label, part * total + done, parts * total)


def _sweep(
    model: HookedModel,
    prompts: Sequence[Any],
    directions: Directions,
    length: np.ndarray,
    strengths: Sequence[float],
    inputs: Inputs,
) -> xr.DataArray:
    """Return ``(metric, prompt, layer, direction, strength, scale)``, float32; ``length (layer, strength, scale)``."""
    import torch
    import xarray as xr

    from xatlas.interventions import Add
    from xatlas.metrics import KL, LogitDifference
    from xatlas.sweep import named_sweep

    lengths = torch.from_numpy(length)
    dims = {"direction": directions.labels, "strength": strengths, "scale": SCALES}
    size = max(1, AT_ONCE // math.prod(map(len, dims.values())))  # layers of a part
    parts = [range(start, min(start + size, model.n_layers)) for start in range(0, model.n_layers, size)]
    found = []
    for number, layers in enumerate(parts):
        conditions = []
        for layer in layers:
            added = directions.vectors[:, layer, None, None, :] * lengths[layer, None, :, :, None]
            for vector in added.flatten(0, 2).to(model.device):
                conditions.append((Intervention(Site(layer, "resid_post"), Add(vector), positions="last"),))
        measured = named_sweep(
            model,
            prompts,
            conditions,
            {"kl": KL(), "delta_logit_diff": LogitDifference()},
            [dict(zip(("layer", *dims), labels, strict=True)) for labels in product(layers, *dims.values())],
            seed=inputs.seed,
            checkpoint=inputs.checkpoint,
            progress=partial(_progress, inputs.progress, number, len(parts)),
            label=f"steering, layers {layers[0]} to {layers[-1]}",
        )
        found.append(measured.astype(np.float32))
    return xr.concat(found, "layer")


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [Steering]
