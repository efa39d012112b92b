"""What training probes are built from: a probe names settings, and the rest is done here."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xatlas.contracts.probe import Inputs, Probe, Variable
from xatlas.errors import XatlasError
from xatlas.files import sha256

if TYPE_CHECKING:
    import xarray as xr

    from xatlas.model import HookedModel
    from xatlas.plugins.training.data import Example
    from xatlas.plugins.training.measure import HeldOut
    from xatlas.plugins.training.trainer import Run
    from xatlas.suites import Suite

_CURVE = ("setting", "seed", "step", "family")
#: What every training probe measures along the run.
SHARED: dict[str, Variable] = {
    "heldout_loss": Variable(_CURVE, "nats", "negative log-likelihood per response token"),
    "kl_shift": Variable(_CURVE, "nats", "KL(base || tuned) per response token"),
    "accuracy": Variable(_CURVE, "1", "share of prompts that greedy decoding answers with the response"),
    "parameters": Variable(("setting",), "1", "trained parameters"),
    "modules": Variable(("setting",), "1", "modules that have LoRA weights"),
}
#: Fewest held-out prompts of other families: where the suite has fewer, the reference's are added.
LEAST_OTHERS = 100


@dataclass(frozen=True)
class Setting:
    """One way to train: which modules, and how."""

    strategy: str
    run: Run


@dataclass
class _Task:
    """What the runs of one job share."""

    model: HookedModel
    inputs: Inputs
    examples: Sequence[Example]
    held: HeldOut
    measures: tuple[str, ...]
    total: int  # steps of all runs
    done: int = 0
    start: dict[str, np.ndarray] | None = None  # what is measured before training, the same whatever is trained

    @cached_property
    def effects(self) -> list[float]:
        """The effects of the layers on the train split."""
        from xatlas.plugins.training.targets import layer_effects

        kept = self.inputs.checkpoint.load("layer-effects")
        if kept is None:
            kept = {"kl": np.array(layer_effects(self.model, self.inputs))}
            self.inputs.checkpoint.save("layer-effects", kept)
        return [float(effect) for effect in kept["kl"]]


class TrainingProbe(Probe):
    """A probe that fine-tunes the model in several settings, each from several training seeds.

    A subclass declares ``variables``, ``Parameters`` like :class:`TrainingProbe.Parameters`, and names its settings. A
    setting that the architecture lacks, or that diverges, is absent with the reason. Each finished run is kept.
    Refused while measuring: without the extra ``train``, and where no setting can be trained.
    """

    replicate: ClassVar = "seed"
    mutates: ClassVar[bool] = True
    uses_reference: ClassVar[bool] = True
    sites: ClassVar[tuple[str, ...]] = ("resid_post",)
    variables = SHARED
    check_parameters: ClassVar[Mapping[str, Any]] = {"seeds": 1, "steps": 2, "points": 1, "batch": 2}

    @dataclass(frozen=True)
    class Parameters:
        """What is trained, and how often it is measured."""

        seeds: int = 5  # of the LoRA weights, the order of the examples, random layers
        steps: int = 100
        points: int = 4  # equal parts that it is measured after, besides before, a quarter and half of the first one
        rank: int = 8
        learning_rate: float = 1e-3
        batch: int = 8
        data: str = "transfer"  # families of the transfer suites, as a list in quotes, or all

    def canonical_parameters(self) -> dict[str, Any]:
        """Return the parameters; what is trained on and held out by its contents."""
        from xatlas.plugins.training.data import named_by_contents

        return super().canonical_parameters() | {"data": named_by_contents(self.parameters.data)}

    @abstractmethod
    def settings(self) -> Mapping[str, Setting]:
        """Return label → what is trained; the runs' seeds are filled in."""

    def run(self, **changed: Any) -> Run:
        """Return the run that the parameters ask for, with some of it changed."""
        from xatlas.plugins.training.trainer import Run

        asked = self.parameters
        usual = {name: getattr(asked, name) for name in ("steps", "rank", "learning_rate", "batch")}
        return Run(**usual | changed)

    def training_runs(self) -> tuple[int, int]:
        """Return how many runs :meth:`measure` makes, and how many steps all of them take."""
        lengths = [max(points) for points in _longest(self.settings(), self.parameters.points).values()]
        return self.parameters.seeds * len(lengths), self.parameters.seeds * sum(lengths)

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Train every setting from every seed, and return what held-out prompts say before, along and after."""
        from xatlas.plugins.training.data import needed, of_prompts, split
        from xatlas.plugins.training.measure import HeldOut

        settings = self.settings()
        methods = {setting.run.method for setting in settings.values()}
        for package in ("trl", "datasets", *(["bitsandbytes"] if "qlora" in methods else [])):
            needed(package)
        taught, own = split(model, self.parameters.data)
        others = of_prompts(model, suite)
        if len(others) < LEAST_OTHERS and inputs.reference is not None:
            others += of_prompts(model, inputs.reference.first_templates(min(2, inputs.reference.most_templates)))
        trained = {example.family for example in own}
        held = HeldOut(model, own + [example for example in others if example.family not in trained])
        seeds = [inputs.seed + number for number in range(self.parameters.seeds)]
        groups = _longest(settings, self.parameters.points)
        measures = tuple(name for name, variable in self.variables.items() if variable.dims == _CURVE)
        task = _Task(model, inputs, taught, held, measures, self.training_runs()[1])
        found, why = {}, {}
        for setting, points in groups.items():
            for seed in seeds:
                try:
                    found[setting, seed] = _run(task, setting, seed, points)
                except XatlasError as error:
                    why[setting, seed] = str(error)
                task.done += max(points)
        if not found:
            raise XatlasError(f"no setting can be trained: {next(iter(why.values()))}")
        return self._dataset(settings, seeds, held.families, trained, found, why)

    def _dataset(
        self,
        settings: Mapping[str, Setting],
        seeds: list[int],
        families: list[str],
        trained: set[str],
        found: Mapping[tuple[Setting, int], Mapping[str, np.ndarray]],
        why: Mapping[tuple[Setting, int], str],
    ) -> xr.Dataset:
        from xatlas.schema import cells, label

        points = {name: _points(setting.run.steps, self.parameters.points) for name, setting in settings.items()}
        steps = sorted({step for own in points.values() for step in own})
        curves = [name for name, variable in self.variables.items() if variable.dims == _CURVE]
        shape = (len(settings), len(seeds), len(steps), len(families))
        arrays: dict[str, np.ndarray] = {name: np.full(shape, np.nan) for name in curves}
        arrays |= {name: np.full(len(settings), np.nan) for name in ("modules", "parameters")}
        layers, absent = np.full(shape[:2], "", dtype=object), {}
        for place, (name, setting) in enumerate(settings.items()):
            for column, seed in enumerate(seeds):
                kept = found.get((_stepless(setting), seed))
                if kept is None:
                    absent[cells(setting=[name], seed=[seed])] = why[_stepless(setting), seed]
                    continue
                own, rows = np.isin(steps, points[name]), np.isin(kept["steps"], points[name])
                for curve in curves:
                    arrays[curve][place, column, own] = kept[curve][rows]
                for size in ("modules", "parameters"):
                    arrays[size][place] = float(kept[size])
                layers[place, column] = ",".join(map(str, kept["layers"].tolist()))
            if not np.isfinite(arrays["modules"][place]):
                absent[f"setting {name}"] = why[_stepless(setting), seeds[0]]
            if other := [step for step in steps if step not in points[name]]:
                absent[cells(setting=[name], step=other)] = "not measured at this step, or trained for fewer"
        if "preference" in curves and np.isnan(arrays["preference"]).any():
            absent["preference"] = "no prompt of the family has a rejected response"
        about = {name: ("setting", [getattr(s.run, name) for s in settings.values()]) for name in _ABOUT}
        about["strategy"] = ("setting", [setting.strategy for setting in settings.values()])
        coords = {"setting": list(settings), "seed": seeds, "step": steps, "family": families, **about}
        coords["trained"] = ("family", [family in trained for family in families])
        coords["layers"] = (("setting", "seed"), layers.astype(str))
        return label(self.variables, arrays, coords, absent=absent)


#: Settings of a run that coordinates hold.
_ABOUT = ("method", "rank", "learning_rate", "steps")


def _points(steps: int, count: int) -> list[int]:
    """Return the steps after which a run is measured, the first before any; what is learnt soon is met early."""
    return sorted({round(steps * place / count) for place in (0, 0.25, 0.5, *range(1, count + 1))})


def _stepless(setting: Setting) -> Setting:
    return replace(setting, run=replace(setting.run, steps=1))


def _longest(settings: Mapping[str, Setting], count: int) -> dict[Setting, list[int]]:
    """Return setting → steps that are measured, once for those that differ in length alone: the rate is constant."""
    found: dict[Setting, set[int]] = {}
    for setting in settings.values():
        found.setdefault(_stepless(setting), set()).update(_points(setting.run.steps, count))
    return {setting: sorted(points) for setting, points in found.items()}


def _run(task: _Task, setting: Setting, seed: int, points: list[int]) -> dict[str, np.ndarray]:
    """Train once, or return what was kept of it."""
    from xatlas.plugins.training.targets import by_strategy
    from xatlas.plugins.training.trainer import Progress, lora, train

    run = replace(setting.run, steps=max(points), seed=seed)
    key = sha256(json.dumps([setting.strategy, str(run), points, task.measures]).encode())[:24]
    kept = task.inputs.checkpoint.load(key)
    if kept is not None:
        return kept
    targets = by_strategy(task.model, setting.strategy, lambda: task.effects, seed)
    rows: dict[int, dict[str, np.ndarray]] = {}

    def watch(step: int) -> None:
        if step == 0 and run.method != "qlora":  # whose four bits are another model
            task.start = rows[0] = task.start or task.held.measure(tuned.model, task.measures)
        elif step in points:
            rows[step] = task.held.measure(tuned.model, task.measures)

    def progress(now: Progress) -> None:
        text = f"{setting.strategy} {run.method}, seed {seed}: {now}"
        task.inputs.progress(text, task.done + now.step, task.total)

    with lora(task.model, targets, run) as tuned:
        watch(0)
        train(tuned, task.examples, run, progress=progress, watch=watch)
        sizes = {"modules": np.array(tuned.modules), "parameters": np.array(tuned.parameters)}
    found = {name: np.stack([rows[step][name] for step in points]) for name in task.measures}
    found |= sizes | {"steps": np.array(points), "layers": np.array(targets.layers)}
    task.inputs.checkpoint.save(key, found)
    return found
