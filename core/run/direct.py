"""One probe on a model in memory, without a store."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xatlas import manager
from xatlas.errors import XatlasError
from xatlas.loading.names import Resolved
from xatlas.run.outcome import Failure, Reporter, Silent
from xatlas.run.plan import Step
from xatlas.store.jobs import Job

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.model import HookedModel
    from xatlas.probe import Inputs, Probe
    from xatlas.run.isolation import State
    from xatlas.suites import Suite


def measure_directly(
    probe: Probe,
    model: HookedModel,
    suite: Suite,
    inputs: Inputs,
    reporter: Reporter | None = None,
    state: State | None = None,
) -> xr.Dataset:
    """Measure a probe, and first what it requires; each result is validated, nothing is stored.

    Parameters
    ----------
    probe : Probe
        Registered or not.
    model : HookedModel
        A model with a tokenizer; a probe that mutates changes its weights.
    suite : Suite
        What is measured on.
    inputs : Inputs
        Reference, seed and draws; the results of other probes are put in here.
    reporter : Reporter, optional
        Hears how it goes.
    state : State, optional
        How the model was found, where that is known.

    Returns
    -------
    Dataset
        Of the probe itself.

    Raises
    ------
    XatlasError
        A required probe is unknown, a probe fails or leaves the model changed, or a dataset is off its probe's
        contract.
    """
    from xatlas.run.isolation import State

    state, reporter = state or State(model), reporter or Silent()
    results = {}
    for needed in probe.requires:
        if not needed.optional:
            inner = manager.pick("probe", needed.probe, manager.probes())(**needed.parameters)
            results[needed.probe] = measure_directly(inner, model, suite, inputs, reporter, state)
    job = Job(model.slug, "", probe.name, probe.version, parameters=probe.canonical_parameters(), seed=inputs.seed)
    held = Resolved(model.slug, model.slug, Path(), "", type(model.model).__name__, "a model in memory")
    step, started = Step(job, probe, held), time.perf_counter()
    reporter.start(step)
    try:
        dataset = _measure(probe, model, suite, replace(inputs, results=results), state)
    except XatlasError as error:
        reporter.fail(Failure(str(step), str(error)))
        raise
    reporter.finish(step, time.perf_counter() - started)
    return dataset


def _measure(probe: Probe, model: HookedModel, suite: Suite, inputs: Inputs, state: State) -> xr.Dataset:
    from xatlas.run.isolation import isolated
    from xatlas.schema import validate

    try:
        with isolated([probe], state, suite, [inputs]) as (own, given):
            dataset = probe.measure(model, own, given[0])
    except XatlasError as error:
        if not state.changed:
            raise
        anew = " The model must be loaded anew: no further number of it can be trusted." if state.lost else ""
        raise XatlasError(f"probe '{probe.name}' failed: {error}{anew}") from error
    validate(dataset, probe, model, suite)
    return dataset
