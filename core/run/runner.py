"""Doing jobs: what is missing is measured, checked against its probe's contract, and kept."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from xatlas.errors import XatlasError
from xatlas.loading import load, pick_device
from xatlas.probe import Inputs, ReadingProbe
from xatlas.run.outcome import Failure, Outcome, Reporter, Silent
from xatlas.run.plan import Settings, Step
from xatlas.run.provenance import provenance
from xatlas.store import Store

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.model import HookedModel

log = logging.getLogger("xatlas")


def run(steps: Iterable[Step], store: Store, settings: Settings, reporter: Reporter | None = None) -> Outcome:
    """Do the steps whose results the store lacks.

    Models are loaded one after the other, each once, and only when something of theirs is missing; torch
    is not imported otherwise. A step that fails does not stop those that don't rest on it.

    Parameters
    ----------
    steps : iterable of Step
        Model by model, each in dependency order.
    store : Store
        Where results are looked for and kept.
    settings : Settings
        The ones that the steps were made with.
    reporter : Reporter, optional
        Hears how it goes.

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
        if store.has(step.job):
            outcome.reused.append(step)
        else:
            missing.append(step)
    if missing:
        # What would fail every step is said once, before the first.
        pick_device(settings.device)
        store.prepare()
    # Consecutive steps only: sorting would pull a step ahead of one that it rests on.
    for _, group in groupby(missing, key=lambda step: (step.job.model, step.job.attention)):
        _Worker(store, settings, reporter or Silent(), outcome).work(list(group))
    return outcome


class _Worker:
    """Does the missing steps of one model."""

    def __init__(self, store: Store, settings: Settings, reporter: Reporter, outcome: Outcome) -> None:
        self.store = store
        self.settings = settings
        self.reporter = reporter
        self.outcome = outcome
        self.model: HookedModel | None = None
        self.checksum = ""
        self.about: dict[str, Any] = {}

    def work(self, steps: list[Step]) -> None:
        try:
            self._load(steps[0])
        except Exception as error:
            log.debug("loading %s failed", steps[0].job.model, exc_info=True)
            failure = Failure(steps[0].job.model, explain(error))
            self.outcome.failures.append(failure)
            self.reporter.fail(failure)
            return
        done = self._read_together(steps)
        for step in steps:
            if step.job.key not in done:
                self._attempt(step)
        self._unload()

    def _load(self, step: Step) -> None:
        self._unload()
        self.reporter.loading(step.job.model)
        self.model = load_hooked(step, self.settings)
        self.checksum = self.model.checksum()
        self.about = provenance(step, self.model, self.settings)

    def _unload(self) -> None:
        if self.model is None:
            return
        device = self.model.device
        self.model = None
        gc.collect()
        if device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _read_together(self, steps: Sequence[Step]) -> set[str]:
        """Feed all reading probes from one streamed pass; where that fails, each is tried alone later."""
        reading = [step for step in steps if isinstance(step.probe, ReadingProbe) and not step.needs]
        if len(reading) < 2 or self.model is None:
            return set()
        from xatlas.measures.reading import read_together

        started = time.perf_counter()
        for step in reading:
            self.reporter.start(step)
        probes = [step.probe for step in reading if isinstance(step.probe, ReadingProbe)]
        try:
            inputs = [self._inputs(step) for step in reading]
            results = read_together(probes, self.model, self.settings.suite, inputs)
        except Exception as error:
            log.debug("reading together failed: %s", explain(error))
            return set()
        for step, dataset in zip(reading, results, strict=True):
            try:
                self._keep(step, dataset, started)
            except Exception as error:
                self._fail(step, explain(error))
        return {step.job.key for step in reading}

    def _attempt(self, step: Step) -> None:
        lacking = [name for name, job in step.needs.items() if not self.store.has(job)]
        if lacking:
            self._fail(step, f"it rests on {', '.join(lacking)}, which could not be measured.")
            return
        try:
            with self.store.lock(step.job):
                if self.store.has(step.job):  # another run measured it while we waited
                    self.outcome.reused.append(step)
                    return
                self._measure(step)
        except Exception as error:
            log.debug("%s failed", step, exc_info=True)
            self._fail(step, explain(error))

    def _measure(self, step: Step) -> None:
        self.reporter.start(step)
        started = time.perf_counter()
        if self.model is None:  # the last probe changed it
            self._load(step)
        assert self.model is not None
        try:
            dataset = step.probe.measure(self.model, self.settings.suite, self._inputs(step))
        except BaseException:
            if step.probe.mutates:
                self._unload()
            raise
        if step.probe.mutates:
            self._unload()
        self._keep(step, dataset, started)

    def _keep(self, step: Step, dataset: xr.Dataset, started: float) -> None:
        from xatlas.schema import notes, validate

        validate(dataset, step.probe)
        if self.model is not None and self.model.checksum() != self.checksum:
            self._unload()
            raise XatlasError(
                "it changed the model's weights, so its result was thrown away; "
                "a probe that trains declares mutates = True."
            )
        seconds = time.perf_counter() - started
        self.store.write(step.job, dataset, {**self.about, "wall_time_s": round(seconds, 3)})
        self.outcome.measured.append(step)
        self.reporter.finish(step, seconds)
        dropped = notes(dataset, "dropped")
        if dropped:
            prompt, reason = next(iter(dropped.items()))
            log.warning("%s: prompts left out: %d, e.g. %s: %s", step, len(dropped), prompt, reason)

    def _inputs(self, step: Step) -> Inputs:
        return Inputs(
            results={name: self.store.read(job) for name, job in step.needs.items()},
            reference=self.settings.reference,
            seed=self.settings.seed,
            draws=self.settings.draws,
            checkpoint=self.store.checkpoint(step.job),
            progress=self.reporter.progress,
        )

    def _fail(self, step: Step, reason: str) -> None:
        failure = Failure(str(step), reason)
        self.outcome.failures.append(failure)
        self.reporter.fail(failure)


def load_hooked(step: Step, settings: Settings) -> HookedModel:
    """Load the step's model, hook it and prove its hook points; imports torch.

    Raises
    ------
    XatlasError
        It can't be loaded, no adapter fits it, or a check of its hook points fails.
    """
    from xatlas.model import HookedModel

    parts = load(step.model, device=settings.device, dtype=settings.dtype, attention=step.job.attention)
    return HookedModel(
        parts.model,
        parts.tokenizer,
        slug=step.model.slug,
        bos=settings.bos,
        chat_template=settings.chat_template,
        template_date=settings.template_date,
    )


def explain(error: BaseException) -> str:
    """Return one line about an error: ours as it is, others with their kind."""
    text = " ".join(str(error).split())
    if isinstance(error, XatlasError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
