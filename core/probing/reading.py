"""One streamed capture pass that feeds all reading probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xatlas.engine.schedule import Budget
from xatlas.model import Capture
from xatlas.prompts.reader import buckets

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.contracts.probe import Inputs, ReadingProbe
    from xatlas.model import HookedModel
    from xatlas.suites import Suite


def read_together(
    probes: Sequence[ReadingProbe], model: HookedModel, suite: Suite, inputs: Sequence[Inputs]
) -> list[xr.Dataset]:
    """Run every prompt once and show each probe the sites that it declares.

    Parameters
    ----------
    probes : sequence of ReadingProbe
        Fed in turn.
    model : HookedModel
        The model.
    suite : Suite
        What is run.
    inputs : sequence of Inputs
        One for each probe.

    Returns
    -------
    list of Dataset
        One for each probe.
    """
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
            # A copy each but for the last: what one does to it in place is not shown to the next.
            shown = {site: values[site] if probe is probes[-1] else values[site].clone() for site in sites}
            probe.update(Capture(rows, tuple(int(i) for i in group), shown))
        done += len(group)
        inputs[0].progress("reading", done, len(prompts))
    return [probe.finish() for probe in probes]
