"""Reading: one streamed capture pass that feeds all reading probes, and which prompts have a class of positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xatlas.engine.schedule import Budget
from xatlas.model import Capture
from xatlas.prompts.reader import buckets

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.contracts.probe import Inputs, ReadingProbe
    from xatlas.model import HookedModel
    from xatlas.prompts.reader import TokenPrompt
    from xatlas.suites import Suite


def read_together(
    probes: Sequence[ReadingProbe], model: HookedModel, suite: Suite, inputs: Sequence[Inputs]
) -> list[xr.Dataset]:
    """Run every prompt once and show each probe the sites that it declares; return a dataset for each."""
    for probe, given in zip(probes, inputs, strict=True):
        probe.start(model, suite, given)
    prompts = model.read(suite).prompts
    wanted = [[site for kind in probe.sites for site in model.sites(kind)] for probe in probes]
    every = sorted({site for sites in wanted for site in sites})
    budget = Budget.for_device(model.device)
    lengths = [len(prompt.ids) for prompt in prompts]
    row = 4 * model.d_model * max(1, len(every))
    most = {n: max(1, min(budget.tile_tokens // n, budget.stream_bytes // (row * n))) for n in set(lengths)}
    done = 0
    for group in buckets(lengths, most):
        rows = tuple(prompts[i] for i in group)
        values = model.capture(model.tokens(rows), every)
        for probe, sites in zip(probes, wanted, strict=True):
            # A copy each, free of inference mode: what one probe does to it in place is not shown to the next.
            shown = {site: values[site].clone() for site in sites}
            probe.update(Capture(rows, tuple(int(i) for i in group), shown))
        done += len(group)
        inputs[0].progress("reading", done, len(prompts))
    return [probe.finish() for probe in probes]


def without_tokens(prompts: Sequence[TokenPrompt], positions: Iterable[str]) -> dict[str, np.ndarray]:
    """Return position class → which prompts have no token of it ``(prompt,)``; all have one of ``all``."""
    return {
        name: np.array([name != "all" and not prompt.positions(name) for prompt in prompts], dtype=bool)
        for name in positions
    }


def absent_positions(without: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return why values are NaN at position classes that :func:`without_tokens` finds missing."""
    counts = {name: (int(missing.sum()), len(missing)) for name, missing in without.items()}
    return {
        f"position {name}": f"{count} of {total} prompts have no token of this class"
        for name, (count, total) in counts.items()
        if count
    }
