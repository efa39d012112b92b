"""Names → jobs in dependency order, before anything heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from xatlas import manager
from xatlas.contracts.probe import Probe, Requirement
from xatlas.errors import XatlasError, unknown
from xatlas.guard import calling
from xatlas.loading.names import Resolved
from xatlas.results.jobs import Job
from xatlas.suites import Suite, read_suite
from xatlas.vocabulary import TEMPLATE_DATE, BosHabit, check_date, check_setting


def find_suite(name: str) -> Suite:
    """Return the suite of that name, or the one in the JSON-lines file of that path.

    Raises
    ------
    XatlasError
        There is neither, or the file is off.
    """
    known = manager.suites()
    if name in known:
        try:
            with calling(known[name].load):
                return known[name].load()
        except XatlasError as error:
            if error.__cause__ is None:
                raise
            raise XatlasError(f"the suite '{name}' could not be made ({error}).") from error.__cause__
    if name.endswith((".jsonl", ".json")) or "/" in name or os.path.isfile(name):
        return read_suite(name)
    raise unknown("suite", name, known, "A path to a JSON-lines file works too.")


def default_suite(role: Literal["measure", "reference"]) -> str:
    """Return the name of the suite that is used when none is named.

    Raises
    ------
    XatlasError
        No plugin offers one.
    """
    for name, spec in manager.suites().items():
        if spec.default_for == role:
            return name
    raise XatlasError(f"no suite is the default to {role}: name one.")


def larger_suite(suite: Suite) -> Suite | None:
    """Return the smallest suite with a name that holds all prompts of ``suite`` and more; None if there is none."""
    ids = {prompt.id for prompt in suite}
    loaded = (find_suite(name) for name, spec in manager.suites().items() if spec.default_for != "reference")
    larger = [other for other in loaded if len(other) > len(suite) and ids <= {prompt.id for prompt in other}]
    return min(larger, key=len, default=None)


#: Generators take 64 bits, and probes count their own seeds on from this one.
LARGEST_SEED = 10**15


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Settings:
    """How to measure: what all jobs of one command share.

    Parameters
    ----------
    suite : Suite
        What is measured on.
    reference : Suite or None
        Where means and donors come from.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``; no part of a job.
    dtype, attention, bos : str
        As in :class:`xatlas.results.jobs.Job`.
    chat_template : bool
        Wrap prompts in the model's chat template.
    template_date : str
        Date that a chat template is rendered with, ``YYYY-MM-DD``.
    seed, draws : int
        As in :class:`xatlas.results.jobs.Job`.
    parameters : mapping of str to mapping
        Probe → its parameters that differ from what is required or default.

    Raises
    ------
    XatlasError
        A value is not one that exists.
    """

    suite: Suite
    reference: Suite | None = None
    device: str = "auto"
    dtype: str = "float32"
    attention: str = "sdpa"
    bos: BosHabit = "always"
    chat_template: bool = False
    template_date: str = TEMPLATE_DATE
    seed: int = 0
    draws: int = 1
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_setting("dtype", self.dtype)
        check_setting("attention implementation", self.attention)
        check_setting("BOS habit", self.bos)
        check_setting("device", self.device)
        check_date(self.template_date)
        if not _is_whole(self.draws) or self.draws < 1:
            raise XatlasError(f"draws = {self.draws!r} does not fit: it takes a whole number from 1.")
        if not _is_whole(self.seed) or abs(self.seed) > LARGEST_SEED:
            raise XatlasError(f"seed = {self.seed!r:.40} does not fit: it takes a whole number up to 10^15.")
        for probe, given in self.parameters.items():
            cls = manager.pick("probe", probe, manager.probes())
            values, default = cls(**given).canonical_parameters(), cls().canonical_parameters()
            for name, value in values.items():
                if isinstance(value, list) and (
                    len(set(map(str, value))) < len(value) or (default[name] and not value)
                ):
                    raise XatlasError(f"{probe}.{name} = {given[name]!r} does not fit: it takes values, none twice.")


@dataclass(frozen=True)
class Step:
    """A job, and what is needed to do it.

    Parameters
    ----------
    job : Job
        What is measured.
    probe : Probe
        With its parameters.
    model : Resolved
        Where the model lies.
    needs : mapping of str to Job
        Probe → the job whose result it rests on.
    """

    job: Job
    probe: Probe
    model: Resolved
    needs: Mapping[str, Job] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.job.probe} on {self.job.model}"


def steps_for(model: Resolved, requirements: Iterable[Requirement], settings: Settings) -> list[Step]:
    """Return the steps that the requirements come to on one model, each after those it rests on.

    Parameters
    ----------
    model : Resolved
        The model.
    requirements : iterable of Requirement
        What is asked for; optional ones are passed over. The same job asked for twice is one step.
    settings : Settings
        How to measure.

    Returns
    -------
    list of Step
        None twice.

    Raises
    ------
    XatlasError
        An unknown probe or parameter, probes that require each other in a circle, or a model that could
        not be measured.
    """
    check_model(model, settings)
    steps: dict[str, Step] = {}
    for requirement in requirements:
        if not requirement.optional:
            _add(steps, model, requirement, settings, ())
    return list(steps.values())


def check_model(model: Resolved, settings: Settings) -> None:
    """Refuse, before weights are read, a model that could not be measured.

    Raises
    ------
    XatlasError
        No adapter fits its architecture, or a chat template is asked for that it does not have.
    """
    known = manager.adapters()
    if model.architecture not in known:
        hint = f"'{model.name}' needs an adapter that names its hook points: docs/adapters.md shows how to write one."
        raise unknown("architecture", model.architecture, known, hint)
    if settings.chat_template and not model.chat_template:
        raise XatlasError(f"'{model.name}' has no chat template: leave --chat-template out.")


def _add(
    steps: dict[str, Step],
    model: Resolved,
    requirement: Requirement,
    settings: Settings,
    above: tuple[str, ...],
) -> Step:
    if requirement.probe in above:
        circle = " → ".join((*above, requirement.probe))
        raise XatlasError(f"probes require each other in a circle: {circle}.")
    with calling(manager.probes().get(requirement.probe)):
        probe = make_probe(requirement, settings)
        inputs = [inner for inner in probe.requires if not inner.optional]
    needs = {inner.probe: _add(steps, model, inner, settings, (*above, requirement.probe)).job for inner in inputs}
    job = job_for(model, probe, settings, needs)
    return steps.setdefault(job.key, Step(job, probe, model, needs))


def make_probe(requirement: Requirement, settings: Settings) -> Probe:
    """Return the required probe; what the user set goes before what is required.

    Raises
    ------
    XatlasError
        The probe or one of the parameters is unknown.
    """
    given = {**requirement.parameters, **settings.parameters.get(requirement.probe, {})}
    return manager.pick("probe", requirement.probe, manager.probes())(**given)


def adapter_name(architecture: str) -> str:
    """Return which adapter, in which version, names the hook points of an architecture."""
    adapter = manager.adapters()[architecture]
    return f"{adapter.__module__}.{adapter.__qualname__} {adapter.version}"


def job_for(model: Resolved, probe: Probe, settings: Settings, needs: Mapping[str, Job]) -> Job:
    """Write down one measurement; what the probe does not depend on stays out of it."""
    reference = settings.reference if probe.uses_reference else None
    # Only eager attention computes a pattern that can be read.
    attention = "eager" if "attention_pattern" in probe.sites else settings.attention
    return Job(
        model=model.slug,
        weights=model.identity,
        probe=probe.name,
        version=probe.version,
        adapter=adapter_name(model.architecture),
        parameters=probe.canonical_parameters(),
        suite=settings.suite.hash if probe.measures_on == "suite" else None,
        reference=None if reference is None else reference.hash,
        inputs={name: job.key for name, job in sorted(needs.items())},
        dtype=settings.dtype,
        attention=attention,
        bos=settings.bos,
        chat_template=settings.chat_template,
        template_date=settings.template_date if settings.chat_template else None,
        seed=settings.seed,
        draws=settings.draws,
    )
