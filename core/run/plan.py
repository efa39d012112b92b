"""The plan of a command: which jobs answer what is asked, in which order, at what cost; before anything is loaded."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from xatlas import manager
from xatlas.config import MeasureConfig
from xatlas.contracts.comparison import Comparison
from xatlas.contracts.probe import Probe, Requirement
from xatlas.errors import XatlasError, unknown
from xatlas.loading.model_files import read_json, tensor_shapes, weight_files
from xatlas.loading.names import Resolved
from xatlas.manager import calling
from xatlas.results.jobs import Job
from xatlas.vocabulary import DTYPE_BYTES

WORKING_MEMORY = 1.5e9  # bytes that the engine may take besides the weights
EFFICIENCY = 0.7  # share of the matrix-multiply rate that a sweep reaches
CHARACTERS_PER_TOKEN = 3.5  # roughly, where no tokenizer is at hand
OVERHEAD = 2e-4  # seconds that a condition costs per prompt, however small the model


@dataclass(frozen=True)
class Step:
    """A job, and what is needed to do it."""

    job: Job
    probe: Probe  # with its parameters
    model: Resolved
    needs: Mapping[str, Step] = field(default_factory=dict)  # probe → the step whose result it rests on

    def __str__(self) -> str:
        return f"{self.job.probe} on {self.job.model}"


class Plan:
    """What a command measures and compares: made once, and passed on to all that work on it.

    Models are shown in the order given; probes are measured besides what the comparisons require, and all of it on
    untrained ``twins`` too, which are shown by comparisons that use them. What can't be
    measured is refused: unknown names, probes in a circle, models without adapter, parameters of what nobody asks for.
    """

    def __init__(
        self,
        models: Iterable[Resolved],
        config: MeasureConfig,
        comparisons: Iterable[Comparison] = (),
        probes: Sequence[str] = (),
        twins: Iterable[Resolved] = (),
    ) -> None:
        self.models, self.config, self.comparisons = list(models), config, list(comparisons)
        self.twins = list(twins)
        self._answers: dict[tuple[str, str, str], Step] = {}
        asked = [needed for comparison in self.comparisons for needed in comparison.requires]
        asked += [Requirement(name) for name in probes]
        steps: dict[str, Step] = {}
        for model in [*self.models, *self.twins]:
            check_model(model, config)
            for requirement in asked:
                if not requirement.optional:
                    _add(steps, self.answer(model, requirement))
        #: Model by model, each after those that it rests on, none twice.
        self.steps = list(steps.values())
        used = {requirement.probe for requirement in asked} | {step.job.probe for step in self.steps}
        for probe, given in config.parameters.items():
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
        if "attention_pattern" in probe.sites:  # only eager attention computes one that can be read
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
        hint = f"'{model.name}' needs an adapter that names its hook points: docs/adapters.md shows how to write one."
        raise unknown("architecture", model.architecture, known, hint)
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
            for kind in takers or kinds[:1]:  # who is given what it does not know says so
                parted[kind].setdefault(owner, {})[name] = value
    for owner in parted[1]:
        if owner not in comparisons:
            raise XatlasError(f"'{owner}' is a comparison that is not asked for: setting its parameters does nothing.")
    return parted


def model_size(folder: Path) -> dict[str, int]:
    """Return how many parameters (and of those in embeddings), layers, heads and groups of them a model's files say."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    config = {**config, **(text if isinstance(text, dict) else {})}

    def count(key: str, default: int = 1) -> int:
        value = config.get(key)
        return value if isinstance(value, int) and value > 0 else default

    shapes = {name: shape for file in weight_files(folder) for name, shape in tensor_shapes(file).items()}
    sizes = {name: math.prod(shape) for name, shape in (shapes or _shapes_by_config(folder)).items()}
    heads = count("num_attention_heads")
    return {
        "parameters": sum(sizes.values()),
        "embedding": sum(size for name, size in sizes.items() if "embed" in name or "lm_head" in name),
        "layer": count("num_hidden_layers"),
        "head": heads,
        "kv_group": count("num_key_value_heads", heads),
    }


@cache
def _shapes_by_config(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of a model whose weights are not here, by making it without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # whatever the class made of the config
        raise XatlasError(
            f"no model can be made of {folder / 'config.json'} ({type(error).__name__}: {error}); "
            f"fetch the model to plan with it."
        ) from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def estimate(step: Step, config: MeasureConfig) -> tuple[float, float]:
    """Return about how many minutes on this processor, and GB at the peak, a step will take; within a factor of 2–3."""
    size, suite = model_size(step.model.folder), config.suite
    tokens = float(len(suite))
    if not step.probe.at_readout:
        tokens += sum(len(prompt.text) + len(prompt.target or "") for prompt in suite) / CHARACTERS_PER_TOKEN
    conditions = step.probe.n_conditions({"prompt": len(suite), **size}, config.draws)
    # A change in layer l is run through the layers from l on: half of them on average.
    flops = 2 * (size["parameters"] - size["embedding"]) * tokens * (1 + conditions / 2)
    seconds = flops / (EFFICIENCY * _multiply_rate()) + OVERHEAD * len(suite) * conditions
    return seconds / 60, (size["parameters"] * DTYPE_BYTES[config.dtype] + WORKING_MEMORY) / 1e9


@cache
def _multiply_rate() -> float:
    """Measure how many floating-point operations a second this processor multiplies matrices with."""
    import numpy as np

    a = np.ones((512, 512), dtype=np.float32)
    a @ a
    best = math.inf
    for _ in range(20):  # short and often: the best one was not disturbed by other processes
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * 512**3 / best
