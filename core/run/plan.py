"""The plan of a command: which jobs answer what is asked, in which order, at what cost; before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xatlas import manager
from xatlas.config import MeasureConfig
from xatlas.contracts.comparison import Comparison
from xatlas.contracts.probe import Probe, Requirement
from xatlas.errors import XatlasError, no_adapter, unknown
from xatlas.loading.model_files import read_json
from xatlas.loading.model_names import Resolved
from xatlas.manager import calling
from xatlas.results.jobs import Job


@dataclass(frozen=True)
class Step:
    """A job, and what is needed to do it."""

    job: Job
    probe: Probe  # with its parameters
    model: Resolved
    needs: Mapping[str, Step] = field(default_factory=dict)  # probe → the step whose result it rests on

    def __str__(self) -> str:
        return f"{self.job.probe} on {self.job.model}"


@dataclass(eq=False, repr=False)
class Plan:
    """What a command measures and compares: made once, and passed on to all that work on it.

    What can't be measured is refused: unknown names, circles of probes, models without adapter, parameters of what
    nobody asks for.
    """

    models: Sequence[Resolved]  # shown in this order
    config: MeasureConfig
    comparisons: Sequence[Comparison] = ()
    probes: Sequence[str] = ()  # measured besides what comparisons require
    twins: Sequence[Resolved] = ()  # untrained: all is measured on these, too

    def __post_init__(self) -> None:
        self._answers: dict[tuple[str, str, str], Step] = {}
        asked = [needed for comparison in self.comparisons for needed in comparison.requires]
        asked += [Requirement(name) for name in self.probes]
        steps: dict[str, Step] = {}
        for model in [*self.models, *self.twins]:
            check_model(model, self.config)
            for requirement in asked:
                if not requirement.optional:
                    _add(steps, self.answer(model, requirement))
        #: Model by model, each after those that it rests on, none twice.
        self.steps = list(steps.values())
        used = {requirement.probe for requirement in asked} | {step.job.probe for step in self.steps}
        for probe, given in self.config.parameters.items():
            if given and probe not in used:
                raise XatlasError(f"'{probe}' would not be measured: setting its parameters does nothing.")

    def answer(self, model: Resolved, requirement: Requirement, above: tuple[str, ...] = ()) -> Step:
        """Return the step whose result answers a requirement, an optional one too, on a model."""
        name = requirement.probe
        asked = (model.slug, name, repr(sorted(requirement.parameters.items())))
        if asked not in self._answers:
            if name in above:
                raise XatlasError(f"probes require each other in a circle: {' → '.join((*above, name))}.")
            with calling(manager.probes().get(name)):
                given = {**requirement.parameters, **self.config.parameters.get(name, {})}  # the user's own go before
                probe = manager.pick("probe", name, manager.probes())(**given)
                inner = [each for each in probe.requires if not each.optional]
            needs = {each.probe: self.answer(model, each, (*above, name)) for each in inner}
            self._answers[asked] = Step(self._job(model, probe, needs), probe, model, needs)
        return self._answers[asked]

    def _job(self, model: Resolved, probe: Probe, needs: Mapping[str, Step]) -> Job:
        """Write down one measurement; what the probe does not depend on stays out of it."""
        adapter = manager.adapters()[model.architecture]
        settings = self.config.keyed()
        # only eager attention computes a pattern that can be read
        if "attention_pattern" in probe.sites or not adapter.supports_sdpa:
            settings["attention"] = "eager"
        reference = self.config.reference if probe.uses_reference else None
        return Job(
            model=model.slug,
            weights=model.identity,
            probe=probe.name,
            version=probe.version,
            adapter=f"{adapter.__module__}.{adapter.__qualname__} {adapter.version}",
            parameters=probe.canonical_parameters(),
            suite=self.config.suite.hash if probe.measures_on == "suite" else None,
            reference=None if reference is None else reference.hash,
            inputs={name: step.job.key for name, step in sorted(needs.items())},
            **settings,
        )


def _add(steps: dict[str, Step], step: Step) -> None:
    for needed in step.needs.values():
        _add(steps, needed)
    steps.setdefault(step.job.key, step)


def check_model(model: Resolved, config: MeasureConfig) -> None:
    """Refuse, before weights are read, a model without an adapter, or without the chat template that is asked for."""
    known = manager.adapters()
    if model.architecture not in known:
        fault = no_adapter(model.architecture, known, read_json(model.folder / "config.json"))
        raise XatlasError(f"'{model.name}': {fault}")
    if config.chat_template and not model.chat_template:
        raise XatlasError(f"'{model.name}' has no chat template: leave --chat-template out.")


def pick_comparisons(names: Sequence[str] | None) -> list[str]:
    """Return the names of comparisons, each once; None: those that are made by default."""
    known = manager.comparisons()
    if names is None:
        return [name for name, comparison in known.items() if comparison.default]
    for name in names:
        manager.pick("comparison", name, known)
    # Each once: a claim made twice would be counted twice when p-values are adjusted.
    return list(dict.fromkeys(names))


def part_parameters(
    given: Mapping[str, Mapping[str, Any]], comparisons: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Part parameters into those of probes and those of comparisons; a name that is both takes what each knows."""
    registries: list[Mapping[str, type[Probe] | type[Comparison]]] = [manager.probes(), manager.comparisons()]
    parted: tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]] = ({}, {})
    for owner, values in given.items():
        kinds = [kind for kind, registry in enumerate(registries) if owner in registry]
        if not kinds:
            what = "probe or comparison" if comparisons else "probe"
            raise unknown(what, owner, [*registries[0], *(registries[1] if comparisons else ())])
        for name, value in values.items():
            takers = [kind for kind in kinds if name in registries[kind][owner]().canonical_parameters()]
            if owner not in comparisons:  # the probe's, where it knows it
                takers = takers[:1]
            for kind in takers or kinds[:1]:  # who is given what it does not know says so
                parted[kind].setdefault(owner, {})[name] = value
    for owner in parted[1]:
        if owner not in comparisons:
            raise XatlasError(f"'{owner}' is a comparison that is not asked for: setting its parameters does nothing.")
    return parted
