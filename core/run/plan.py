"""Names → jobs in dependency order, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xatlas import manager
from xatlas.config import MeasureConfig
from xatlas.contracts.probe import Probe, Requirement
from xatlas.errors import XatlasError, unknown
from xatlas.guard import calling
from xatlas.loading.names import Resolved
from xatlas.results.jobs import Job


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


def steps_for(model: Resolved, requirements: Iterable[Requirement], settings: MeasureConfig) -> list[Step]:
    """Return the steps that the requirements come to on one model, each after those it rests on.

    Parameters
    ----------
    model : Resolved
        The model.
    requirements : iterable of Requirement
        What is asked for; optional ones are passed over. The same job asked for twice is one step.
    settings : MeasureConfig
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


def check_model(model: Resolved, settings: MeasureConfig) -> None:
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
    settings: MeasureConfig,
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


def make_probe(requirement: Requirement, settings: MeasureConfig) -> Probe:
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


def job_for(model: Resolved, probe: Probe, settings: MeasureConfig, needs: Mapping[str, Job]) -> Job:
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
