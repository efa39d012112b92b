"""Doing jobs: what is missing is measured, checked against its probe's contract, and kept."""

from __future__ import annotations

import gc
import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from typing import TYPE_CHECKING, Any

from xatlas import __version__, manager
from xatlas.config import MeasureConfig, settings
from xatlas.contracts.probe import Inputs, Probe, ReadingProbe
from xatlas.errors import XatlasError
from xatlas.loading.loader import load, pick_device
from xatlas.loading.model_names import Resolved
from xatlas.manager import calling, explain
from xatlas.results.jobs import Job
from xatlas.results.store import Store, read_entry
from xatlas.run.plan import Plan, Step
from xatlas.run.reporting import Failure, Report, Reporter, ReporterChoice, reporting
from xatlas.text import say_on_stderr

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from xatlas.model import HookedModel
    from xatlas.run.isolation import State
    from xatlas.suites import Suite

log = logging.getLogger("xatlas")


def run(plan: Plan, store: Store, reporter: ReporterChoice = None, *, refresh: bool = False) -> Report:
    """Do the steps of a plan whose results the store lacks; with ``refresh`` all of them.

    Models are loaded one after the other, each once, and only when something of theirs is missing; torch is not
    imported otherwise. A step that fails does not stop those that don't rest on it.
    """
    report, missing = Report(plan), []
    for step in plan.steps:
        if not refresh and store.has(step.job):
            report.reused.append(step)
        else:
            missing.append(step)
    _warn_of_other_versions(report.reused, store)
    if missing:
        pick_device(plan.config.device)
        store.prepare()
    with reporting(reporter, len(missing)) as shown:
        # Consecutive steps only: sorting would pull a step ahead of one that it rests on.
        for _, group in groupby(missing, key=lambda step: (step.job.model, _loaded_with(step, plan.config))):
            _Worker(store, shown, report, refresh).work(list(group))
    return report


@dataclass
class _Worker:
    store: Store
    reporter: Reporter
    report: Report
    refresh: bool
    model: HookedModel | None = None
    state: State | None = None
    clean: Tensor | None = None  # logits of the first load
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> MeasureConfig:
        return self.report.plan.config

    def work(self, steps: list[Step]) -> None:
        try:
            self._load(steps[0])
        except Exception as error:
            self._fail(steps[0].job.model, error)
            return
        alone, together = steps, [step for step in steps if isinstance(step.probe, ReadingProbe) and not step.needs]
        if len(together) > 1:
            try:
                self._measure(together)
                alone = [step for step in steps if step not in together]
            except Exception as error:  # each is tried alone
                log.debug("reading together failed: %s", error, exc_info=error.__cause__ or error)
        for step in alone:
            self._attempt(step)
        self._unload()

    def _load(self, step: Step) -> None:
        from xatlas.run.isolation import State

        self._unload()
        self.reporter.loading(step.job.model)
        self.model = load_model(step.model, vars(self.config) | {"attention": _loaded_with(step, self.config)})
        with calling(manager.adapters().get(step.model.architecture)):
            self.state = State(self.model)
        if self.clean is not None and not self.state.agrees(self.clean):
            self._unload()
            what = "a probe before has changed something that only a new process can set right."
            raise XatlasError(f"the model gives other logits now that it is loaded again: {what}")
        self.clean = self.state.logits
        self.provenance = provenance(step.model, self.model, self.config)

    def _unload(self) -> None:
        import torch

        if self.model is None:
            return
        self.model = self.state = None
        gc.collect()
        torch.cuda.empty_cache()  # does nothing elsewhere

    def _attempt(self, step: Step) -> None:
        try:
            lacking = [name for name, needed in step.needs.items() if not self._there(needed.job)]
            if lacking:
                raise XatlasError(f"it rests on {', '.join(lacking)}, which could not be measured.")
            with self.store.lock(step.job):
                if self._there(step.job):  # another run measured it while we waited
                    self.report.reused.append(step)
                    return
                self._measure([step])
        except Exception as error:
            self._fail(str(step), error)

    def _measure(self, steps: Sequence[Step]) -> None:
        """Measure and keep a step, or feed the reading probes of several from one streamed pass."""
        from xatlas.probing.reading import read_together

        started = time.perf_counter()
        probes: list[Any] = [step.probe for step in steps]
        self.reporter.start(steps[0])
        with self._isolated(steps) as (model, suite, inputs):
            if len(steps) == 1:
                results = [probes[0].measure(model, suite, inputs[0])]
            else:
                results = read_together(deepcopy(probes), model, suite, inputs)
        for step, dataset in zip(steps, results, strict=True):
            if step is not steps[0]:
                self.reporter.start(step)
            try:
                self._keep(step, dataset, started)
            except Exception as error:
                self._fail(str(step), error)

    def _there(self, job: Job) -> bool:
        return any(step.job == job for step in self.report.measured) if self.refresh else self.store.has(job)

    @contextmanager
    def _isolated(self, steps: Sequence[Step]) -> Iterator[tuple[HookedModel, Suite, list[Inputs]]]:
        """Let probes measure the model; one that it is not the same afterwards is loaded again for the next."""
        from xatlas.run.isolation import isolated

        if self.model is None or self.state is None:
            self._load(steps[0])
        assert self.model is not None
        assert self.state is not None
        state, probes = self.state, [step.probe for step in steps]
        try:
            with isolated(probes, state, self.config.suite, list(map(self._inputs, steps))) as (suite, own):
                yield self.model, suite, own
        finally:
            if state.lost or any(probe.mutates for probe in probes):
                self._unload()

    def _inputs(self, step: Step) -> Inputs:
        # A suite's first templates are the beginning of all of it: what is kept of one is kept for the other.
        whole = self.config.suite.whole
        job = step.job if whole is None or step.job.suite is None else replace(step.job, suite=whole.hash)
        checkpoint = self.store.checkpoint(job)
        if self.refresh:  # parts of another run may be another version's
            checkpoint.drop()
        return Inputs(
            results={name: self.store.read(needed.job) for name, needed in step.needs.items()},
            reference=self.config.reference,
            seed=self.config.seed,
            draws=self.config.draws,
            checkpoint=checkpoint,
            progress=self.reporter.progress,
        )

    def _keep(self, step: Step, dataset: xr.Dataset, started: float) -> None:
        from xatlas.schema import notes, validate

        validate(dataset, step.probe, self.model, self.config.suite)
        seconds = time.perf_counter() - started
        self.store.write(step.job, dataset, {**self.provenance, "wall_time_s": round(seconds, 3)})
        self.report.measured.append(step)
        self.reporter.finish(step, seconds)
        dropped = notes(dataset, "dropped")
        if dropped:
            prompt, reason = next(iter(dropped.items()))
            log.warning("%s: prompts left out: %d, e.g. %s: %s", step, len(dropped), prompt, reason)

    def _fail(self, what: str, error: Exception) -> None:
        log.debug("%s failed", what, exc_info=error.__cause__ or error)
        failure = Failure(what, explain(error))
        self.report.failures.append(failure)
        self.reporter.fail(failure)


def _loaded_with(step: Step, config: MeasureConfig) -> str:
    """Return the attention to load a model with: probes that read patterns get them in a pass of their own."""
    return config.attention if isinstance(step.probe, ReadingProbe) else step.job.attention


def load_model(model: Resolved, given: Mapping[str, Any]) -> HookedModel:
    """Load a model, hook it and prove its hook points; settings that are not given have their default."""
    from xatlas.model import HookedModel

    def of(part: str) -> dict[str, Any]:
        chosen = [each for each in settings("of_model") if each.metadata["of_model"] == part]
        return {each.name: given.get(each.name, each.default) for each in chosen}

    adapter, weights = manager.adapters().get(model.architecture), of("weights")
    if adapter is not None and not adapter.supports_sdpa and weights["attention"] == "sdpa":
        say_on_stderr(f"{model.architecture} has no sdpa attention: loaded with eager attention.")
        weights["attention"] = "eager"
    with calling(adapter):
        parts = load(model, **weights)
        return HookedModel(parts.model, parts.tokenizer, slug=model.slug, **of("texts"))


def measure_in_memory(
    probe: Probe,
    model: HookedModel,
    suite: Suite,
    inputs: Inputs,
    reporter: Reporter | None = None,
    state: State | None = None,
) -> xr.Dataset:
    """Measure a probe, registered or not, and first what it requires; results are validated, and nothing is stored.

    ``inputs`` need no results: those of required probes are put in. A probe that mutates changes the model's weights.
    """
    from xatlas.run.isolation import State, isolated
    from xatlas.schema import validate

    state, reporter = state or State(model), reporter or Reporter()
    results = {}
    for needed in probe.requires:
        if not needed.optional:
            inner = manager.pick("probe", needed.probe, manager.probes())(**needed.parameters)
            results[needed.probe] = measure_in_memory(inner, model, suite, inputs, reporter, state)
    title, started = f"{probe.name} on {model.slug}", time.perf_counter()
    reporter.start(title)
    try:
        with isolated([probe], state, suite, [replace(inputs, results=results)]) as (own, given):
            dataset = probe.measure(model, own, given[0])
        validate(dataset, probe, model, suite)
    except XatlasError as error:
        anew = " The model must be loaded anew: no further number of it can be trusted." if state.lost else ""
        fault = XatlasError(f"probe '{probe.name}' failed: {error}{anew}") if state.changed else error
        reporter.fail(Failure(title, str(fault)))
        raise fault from (error if state.changed else error.__cause__)
    reporter.finish(title, time.perf_counter() - started)
    return dataset


def provenance(named: Resolved, model: HookedModel, config: MeasureConfig) -> dict[str, Any]:
    """Return how and on what results are measured, JSON-ready."""
    import torch

    left_out = {"folder", "lora", "chat_template"}
    return {
        "model": {name: value for name, value in asdict(named).items() if name not in left_out},
        "suite": _about_suite(model, config.suite),
        "reference": None if config.reference is None else _about_suite(model, config.reference),
        "versions": {
            "xatlas": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy", "xarray")},
        },
        "platform": platform.platform(),
        "device": str(model.device),
        "device_name": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "",
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def _about_suite(model: HookedModel, suite: Suite) -> dict[str, Any]:
    try:
        tokens = model.read(suite).hash  # of the tokens that it is run as
    except XatlasError:  # the model can't read it
        tokens = None
    return {"name": suite.name, "hash": suite.hash, "prompts": len(suite), "tokens": tokens}


def _warn_of_other_versions(steps: Sequence[Step], store: Store) -> None:
    """Say in one line which results other minor versions of torch or transformers gave."""

    def minor(number: str) -> list[str]:
        return str(number).split(".")[:2]

    now = {name: version(name) for name in ("torch", "transformers")}
    found: dict[str, list[str]] = {}
    for step in steps:
        held = read_entry(store.file(step.job)).provenance.get("versions") or {}
        odd = [f"{name} {held[name]}" for name in now if name in held and minor(held[name]) != minor(now[name])]
        if odd:
            found.setdefault(", ".join(odd), []).append(str(step))
    if found:
        others = "; ".join(f"with {versions}: {', '.join(names)}" for versions, names in found.items())
        here = ", ".join(f"{name} {number}" for name, number in now.items())
        log.warning(f"reused, but measured {others}. Here is {here}; --refresh (refresh=True) measures them again.")
