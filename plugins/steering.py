"""Steering: what adding a direction to the stream at the readout position does, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from xatlas import Inputs, Intervention, Probe, Site, Suite, Variable, XatlasError, hookimpl
from xatlas.errors import unknown

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from xatlas import HookedModel
    from xatlas.interventions import Condition
    from xatlas.metrics import Metric
    from xatlas.prompts.reader import TokenPrompt

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
        """What is measured."""

        strengths: tuple[float, ...] = (-1.0, -0.25, 0.1, 0.25, 0.5, 1.0)  # of the scale's unit; negative points away
        random: int = 20  # random directions
        matched: int = 20  # random directions with the stream's covariance
        families: tuple[str, ...] = ()  # whose directions are tried; all of the reference's when empty
        shuffled: bool = True  # the same families with shuffled labels, too
        unit: float | None = None  # length of absolute strength 1; by default the median of the layers' median norms

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

    def planned(self, model: HookedModel, suite: Suite, draws: int) -> tuple[Sequence[Condition], Sequence[Metric]]:
        """Return every direction at every strength and scale, as if the reference had the usual families."""
        import torch

        from xatlas.interventions import Add
        from xatlas.metrics import KL, LogitDifference

        chosen, added = self.parameters, Add(torch.zeros(model.d_model))
        named = (len(chosen.families) or FAMILIES) * (1 + chosen.shuffled)
        count = (chosen.random + chosen.matched + named) * len(chosen.strengths) * len(SCALES)
        each = [(Intervention(site, added, positions="last"),) for site in model.sites("resid_post")]
        return each * count, [KL(), LogitDifference()]

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Return ``kl``, ``delta_logit_diff (prompt, layer, direction, strength, scale)`` and what was added."""

        from xatlas.probing.directions import median_norms, readout_values
        from xatlas.probing.means import noise_floor
        from xatlas.schema import label, layer_coords, suite_coords

        tokens = model.read(suite)
        vectors = self._directions(model, inputs)
        norms = median_norms(readout_values(model, tokens.prompts)).numpy()
        length = self._lengths(norms)
        measured = self._sweep(model, tokens.prompts, vectors, length, inputs)
        exists = vectors.notnull().all("d_model")
        lost = (measured["kl"].isnull() & exists).sum(("layer", "direction", "strength", "scale")).values
        cells = measured["kl"].isel(prompt=0).size
        dropped = {
            prompt.prompt.id: f"logits were not finite in {count} of {cells} conditions{model.overflow}"
            for prompt, count in zip(tokens.prompts, lost, strict=True)
            if count
        }
        gone = vectors["direction"].values[~exists.all("layer").values]
        absent = {f"direction={name}": "in some layers there is nothing to tell apart" for name in gone}
        foilless = sum(prompt.foil_answer is None for prompt in tokens.prompts)
        if foilless:
            absent["delta_logit_diff"] = f"{foilless} prompts have no foil"
        made = {str(name): values for array in (vectors, length) for name, values in array.coords.items()}
        arrays = {**measured, "length": length, "median_norm": norms, "direction_vector": vectors}
        return label(
            self.variables,
            arrays,
            suite_coords(tokens) | layer_coords(model.operator_types) | made,
            absent=absent,
            dropped=tokens.dropped | dropped,
            noise_floor=noise_floor(model, tokens.prompts),
        )

    def _lengths(self, norms: np.ndarray) -> xr.DataArray:
        """Return what is added ``(layer, strength, scale)``, the direction's sense with it."""
        import xarray as xr

        unit = float(np.median(norms)) if self.parameters.unit is None else self.parameters.unit
        units = np.stack([np.full_like(norms, unit), norms], axis=-1)  # (layer, scale)
        strengths = np.array(self.parameters.strengths)
        values = units[:, None, :] * strengths.astype(norms.dtype)[:, None]
        return xr.DataArray(values, {"strength": strengths, "scale": list(SCALES)}, ("layer", "strength", "scale"))

    def _directions(self, model: HookedModel, inputs: Inputs) -> xr.DataArray:
        """Return ``(direction, layer, d_model)`` with kinds, families and recipes; the random ones first."""
        import torch
        import xarray as xr

        from xatlas.probing.directions import contrasts, matched_direction, random_direction, readout_values, shuffle

        chosen = self.parameters
        if inputs.reference is None:
            raise XatlasError("family directions need a reference suite: pass --reference FILE.")
        reference = model.read(inputs.reference).prompts
        values = readout_values(model, reference)
        families = [prompt.prompt.family for prompt in reference]
        wanted = chosen.families or sorted(set(families))
        for family in wanted:
            if family not in families:
                raise unknown("family", family, set(families), f"They are those of '{inputs.reference.name}'.")
        where = f"suite {inputs.reference.name} ({inputs.reference.hash[:12]}), resid_post at the readout position"
        found: list[tuple[str, str, str, str, Tensor]] = []  # label, kind, family, recipe, vector
        first = 1000 * inputs.seed
        for seed in range(first, first + chosen.random):
            vector = random_direction(model.d_model, seed).expand(model.n_layers, -1)
            found.append((f"random:{seed}", "random", "", f"standard normal numbers of torch's seed {seed}", vector))
        for seed in range(first, first + chosen.matched):
            recipe = f"centred values weighted with standard normal numbers of torch's seed {seed}; {where}"
            found.append((f"matched:{seed}", "matched", "", recipe, matched_direction(values, seed)))
        recipe = f"mean of the family minus mean of the rest; {where}"
        found += [(f, "family", f, recipe, v) for f, v in contrasts(values, families).items() if f in wanted]
        if chosen.shuffled:
            recipe += f"; labels shuffled with seed {inputs.seed}"
            made = contrasts(values, shuffle(families, inputs.seed))
            found += [(f"shuffled:{f}", "shuffled", f, recipe, v) for f, v in made.items() if f in wanted]
        if not found:
            raise XatlasError("no direction is left: ask for random ones, or give a reference of several families.")
        labels, kinds, of, recipes, vectors = zip(*found, strict=True)
        coords = {"direction_kind": kinds, "direction_family": of, "recipe": recipes}
        return xr.DataArray(
            torch.stack(vectors).numpy(),
            {"direction": list(labels), **{name: ("direction", list(each)) for name, each in coords.items()}},
            ["direction", "layer", "d_model"],
        ).assign_coords(d_model=np.arange(model.d_model))

    def _sweep(
        self,
        model: HookedModel,
        prompts: Sequence[TokenPrompt],
        vectors: xr.DataArray,
        length: xr.DataArray,
        inputs: Inputs,
    ) -> dict[str, xr.DataArray]:
        """Return ``kl`` and ``delta_logit_diff (prompt, layer, direction, strength, scale)``, float32."""
        import torch
        import xarray as xr

        from xatlas.interventions import Add
        from xatlas.metrics import KL, LogitDifference
        from xatlas.sweep import named_sweep

        labels = [vectors["direction"].values.tolist(), self.parameters.strengths, SCALES]
        units, lengths = torch.from_numpy(vectors.values).to(model.device), length.values
        size = max(1, AT_ONCE // math.prod(map(len, labels)))
        parts = [range(start, min(start + size, model.n_layers)) for start in range(0, model.n_layers, size)]
        measured = []
        for number, layers in enumerate(parts):

            def progress(name: str, done: int, total: int, part: int = number) -> None:
                inputs.progress(name, part * total + done, len(parts) * total)

            conditions, cells = [], []
            for layer, (d, direction), (s, strength), (c, scale) in product(layers, *map(enumerate, labels)):
                added = Add(units[d, layer] * float(lengths[layer, s, c]))
                conditions.append((Intervention(Site(layer, "resid_post"), added, positions="last"),))
                cells.append({"layer": layer, "direction": direction, "strength": strength, "scale": scale})
            values = named_sweep(
                model,
                prompts,
                conditions,
                {"kl": KL(), "delta_logit_diff": LogitDifference()},
                cells,
                seed=inputs.seed,
                checkpoint=inputs.checkpoint,
                progress=progress,
                label=f"steering, layers {layers[0]} to {layers[-1]}",
            )
            measured.append(values.astype("float32"))
        every = xr.concat(measured, "layer")
        return {str(name): every.sel(metric=name, drop=True) for name in every["metric"].values}


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [Steering]
