"""One probe on a model in memory, without jobs and without a store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xatlas import manager

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.model import HookedModel
    from xatlas.probe import Inputs, Probe
    from xatlas.suites import Suite


def measure_directly(probe: Probe, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
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

    Returns
    -------
    Dataset
        Of the probe itself.

    Raises
    ------
    XatlasError
        A required probe is unknown, or a dataset is off its probe's contract.
    """
    from xatlas.schema import validate

    results = {}
    for needed in probe.requires:
        if not needed.optional:
            inner = manager.pick("probe", needed.probe, manager.probes())(**needed.parameters)
            results[needed.probe] = measure_directly(inner, model, suite, inputs)
    with model.lock:  # a probe may run the Hugging Face model itself
        dataset = probe.measure(model, suite, replace(inputs, results=results))
    validate(dataset, probe)
    return dataset
