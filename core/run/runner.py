"""Doing jobs: what is missing is measured, checked against its probe's contract, and kept."""

from __future__ import annotations

import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from xatlas import manager
from xatlas.config import MeasureConfig, settings
from xatlas.contracts.probe import Inputs, ReadingProbe
from xatlas.errors import XatlasError
from xatlas.guard import calling, explain
from xatlas.loading.loader import load, pick_device
from xatlas.loading.names import Resolved
from xatlas.results.jobs import Job
from xatlas.results.store import Store
from xatlas.run.plan import Step
from xatlas.run.reporting import Failure, Outcome, Reporter, Silent, other_versions, provenance

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from xatlas.contracts.probe import Inputs, Probe
    from xatlas.model import HookedModel
    from xatlas.results.jobs import Job
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


log = logging.getLogger("xatlas")

T = TypeVar("T")


def run(
    steps: Iterable[Step],
    store: Store,
    config: MeasureConfig,
    reporter: Reporter | None = None,
    *,
    refresh: bool = False,
) -> Outcome:
    """Do the steps whose results the store lacks.

    Models are loaded one after the other, each once, and only when something of theirs is missing; torch
    is not imported otherwise. A step that fails does not stop those that don't rest on it.

    Parameters
    ----------
    steps : iterable of Step
        Model by model, each in dependency order.
    store : Store
        Where results are looked for and kept.
    config : MeasureConfig
        The ones that the steps were made with.
    reporter : Reporter, optional
        Hears how it goes.
    refresh : bool
        Do all of them again; a result that is there is replaced once the new one is.

    Returns
    -------
    Outcome
        What was measured, what was there, what failed.

    Raises
    ------
    XatlasError
        Nothing can be measured: there is no such device, or the store's folder can't be written to.
    """
    outcome = Outcome()
    missing = []
    for step in steps:
        if not refresh and store.has(step.job):
            outcome.reused.append(step)
        else:
            missing.append(step)
    others = other_versions(outcome.reused, store)
    if others:
        log.warning(others)
    if missing:
        # What would fail every step is said once, before the first.
        pick_device(config.device)
        store.prepare()
    # Consecutive steps only: sorting would pull a step ahead of one that it rests on.
    for _, group in groupby(missing, key=lambda step: (step.job.model, step.job.attention)):
        _Worker(store, config, reporter or Silent(), outcome, refresh).work(list(group))
    return outcome


class _Worker:
    """Does the missing steps of one model."""

    def __init__(
        self, store: Store, config: MeasureConfig, reporter: Reporter, outcome: Outcome, refresh: bool
    ) -> None:
        self.store = store
        self.config = config
        self.reporter = reporter
        self.outcome = outcome
        self.refresh = refresh
        self.model: HookedModel | None = None
        self.state: State | None = None
        self.clean: Tensor | None = None  # logits of the first load
        self.about: dict[str, Any] = {}

    def work(self, steps: list[Step]) -> None:
        try:
            self._load(steps[0])
        except Exception as error:
            self._fail(steps[0].job.model, error)
            return
        done = self._read_together(steps)
        for step in steps:
            if step.job.key not in done:
                self._attempt(step)
        self._unload()

    def _load(self, step: Step) -> None:
        from xatlas.run.isolation import State

        self._unload()
        self.reporter.loading(step.job.model)
        with calling(manager.adapters().get(step.model.architecture)):
            self.model = load_model(step.model, vars(self.config) | {"attention": step.job.attention})
            self.state = State(self.model)
        if self.clean is not None and not self.state.agrees(self.clean):
            self._unload()
            raise XatlasError(
                "the model gives other logits now that it is loaded again: a probe before has changed something that "
                "only a new process can set right."
            )
        self.clean = self.state.logits
        self.about = provenance(step, self.model, self.config)

    def _unload(self) -> None:
        if self.model is None:
            return
        device = self.model.device
        self.model = self.state = None
        gc.collect()
        if device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _read_together(self, steps: Sequence[Step]) -> set[str]:
        """Feed all reading probes from one streamed pass; where that fails, each is tried alone later."""
        reading = [step for step in steps if isinstance(step.probe, ReadingProbe) and not step.needs]
        if len(reading) < 2:
            return set()
        from xatlas.probing.reading import read_together

        def measure(model: HookedModel, suite: Suite, inputs: list[Inputs]) -> list[xr.Dataset]:
            return read_together(probes, model, suite, inputs)

        started = time.perf_counter()
        probes = [deepcopy(step.probe) for step in reading if isinstance(step.probe, ReadingProbe)]
        self.reporter.start(reading[0])
        try:
            results = self._isolated(reading, measure)
        except Exception as error:
            log.debug("reading together failed: %s", error, exc_info=error.__cause__ or error)
            return set()
        for step, dataset in zip(reading, results, strict=True):
            if step is not reading[0]:
                self.reporter.start(step)
            try:
                self._keep(step, dataset, started)
            except Exception as error:
                self._fail(str(step), error)
        return {step.job.key for step in reading}

    def _attempt(self, step: Step) -> None:
        lacking = [name for name, job in step.needs.items() if not self._there(job)]
        if lacking:
            self._fail(str(step), XatlasError(f"it rests on {', '.join(lacking)}, which could not be measured."))
            return
        try:
            with self.store.lock(step.job):
                if self._there(step.job):  # another run measured it while we waited
                    self.outcome.reused.append(step)
                    return
                self._measure(step)
        except Exception as error:
            self._fail(str(step), error)

    def _there(self, job: Job) -> bool:
        return any(step.job == job for step in self.outcome.measured) if self.refresh else self.store.has(job)

    def _measure(self, step: Step) -> None:
        def measure(model: HookedModel, suite: Suite, inputs: list[Inputs]) -> xr.Dataset:
            return step.probe.measure(model, suite, inputs[0])

        self.reporter.start(step)
        started = time.perf_counter()
        self._keep(step, self._isolated([step], measure), started)

    def _isolated(self, steps: Sequence[Step], measure: Callable[[HookedModel, Suite, list[Inputs]], T]) -> T:
        """Let probes measure the model; one that it is not the same afterwards is loaded again for the next."""
        from xatlas.run.isolation import isolated

        if self.model is None or self.state is None:
            self._load(steps[0])
        assert self.model is not None
        assert self.state is not None
        state, probes = self.state, [step.probe for step in steps]
        try:
            with isolated(probes, state, self.config.suite, [self._inputs(step) for step in steps]) as (
                suite,
                inputs,
            ):
                return measure(self.model, suite, inputs)
        finally:
            if state.lost or any(probe.mutates for probe in probes):
                self._unload()

    def _keep(self, step: Step, dataset: xr.Dataset, started: float) -> None:
        from xatlas.schema import notes, validate

        validate(dataset, step.probe, self.model, self.config.suite)
        seconds = time.perf_counter() - started
        self.store.write(step.job, dataset, {**self.about, "wall_time_s": round(seconds, 3)})
        self.outcome.measured.append(step)
        self.reporter.finish(step, seconds)
        dropped = notes(dataset, "dropped")
        if dropped:
            prompt, reason = next(iter(dropped.items()))
            log.warning("%s: prompts left out: %d, e.g. %s: %s", step, len(dropped), prompt, reason)

    def _inputs(self, step: Step) -> Inputs:
        checkpoint = self.store.checkpoint(step.job)
        if self.refresh:  # parts of another run may be another version's
            shutil.rmtree(checkpoint.folder, ignore_errors=True)
        return Inputs(
            results={name: self.store.read(job) for name, job in step.needs.items()},
            reference=self.config.reference,
            seed=self.config.seed,
            draws=self.config.draws,
            checkpoint=checkpoint,
            progress=self.reporter.progress,
        )

    def _fail(self, what: str, error: Exception) -> None:
        log.debug("%s failed", what, exc_info=error.__cause__ or error)
        failure = Failure(what, explain(error))
        self.outcome.failures.append(failure)
        self.reporter.fail(failure)


def load_model(model: Resolved, given: Mapping[str, Any]) -> HookedModel:
    """Load a model, hook it and prove its hook points; settings that are not given have their default."""
    from xatlas.model import HookedModel

    def of(part: str) -> dict[str, Any]:
        chosen = [each for each in settings("of_model") if each.metadata["of_model"] == part]
        return {each.name: given.get(each.name, each.default) for each in chosen}

    with calling(manager.adapters().get(model.architecture)):
        parts = load(model, **of("weights"))
        return HookedModel(parts.model, parts.tokenizer, slug=model.slug, **of("texts"))
