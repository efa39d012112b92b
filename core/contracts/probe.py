"""The contract that probe authors implement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from xatlas.contracts.parameters import Parameterised

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from xatlas.interventions import Condition
    from xatlas.metrics import Metric
    from xatlas.model import Capture, HookedModel
    from xatlas.suites import Suite


@dataclass(frozen=True, slots=True)
class Variable:
    """What a probe promises of one of its variables."""

    dims: tuple[str, ...]  # in order
    units: str  # "nats", "1", …
    long_name: str  # what it is, in a few words


@dataclass(frozen=True, slots=True)
class Requirement:
    """Results of a probe that a comparison, or another probe, rests on."""

    probe: str
    parameters: Mapping[str, Any] = field(default_factory=dict)  # those that differ from the defaults
    optional: bool = False  # used when the atlas holds it, never run for its own sake


class Checkpoint:
    """Keeps finished parts of a long job, so that a killed run loses only the running one; this base keeps nothing."""

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays saved under ``key``, or None."""
        return None

    def save(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep ``arrays`` under ``key``, whole or not at all."""


def no_progress(label: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Inputs:
    """What a measurement is given besides the model and the suite."""

    results: Mapping[str, xr.Dataset] = field(default_factory=dict)  # of the required probes, by name
    reference: Suite | None = None  # where mean ablation's means and the donors of resample ablation come from
    seed: int = 0  # of every random choice
    draws: int = 4  # random directions of a control
    checkpoint: Checkpoint = field(default_factory=Checkpoint)  # keeps finished parts
    progress: Callable[[str, int, int], None] = no_progress  # (label, done, total); called often, cheap


class Probe(Parameterised, ABC):
    """One measure of a model, defined once for every architecture.

    A subclass names itself, says which site kinds it needs and what its variables are, and returns a
    labelled dataset. Its docstring gives definition, unit, control and source: ``xatlas explain`` prints it.
    """

    #: Site kinds that the model's adapter must offer on at least one layer.
    sites: ClassVar[tuple[str, ...]] = ()
    #: What the job's key depends on besides the model.
    measures_on: ClassVar[Literal["suite", "model", "tests"]] = "suite"
    #: What is repeated: values are kept per replicate, comparisons reduce.
    replicate: ClassVar[Literal["prompt", "seed"] | None] = "prompt"
    #: Training probes have the model to themselves: nothing else is measured on the weights that they leave.
    mutates: ClassVar[bool] = False
    #: Whether the values of weights are read; else shapes are enough, and a config without weights is measured too.
    needs_weights: ClassVar[bool] = True
    #: Whether means or donors of the reference split are used; then its hash enters the key.
    uses_reference: ClassVar[bool] = False
    #: Parameters that :func:`xatlas.check_probe` measures with, where the defaults take long.
    check_parameters: ClassVar[Mapping[str, Any]] = {}
    #: Variables that the dataset holds; an instance may leave out what its parameters don't ask for.
    variables: Mapping[str, Variable]

    @property
    def requires(self) -> tuple[Requirement, ...]:
        """Results of other probes that :meth:`measure` receives in ``inputs.results``."""
        return ()

    def planned(self, model: HookedModel, suite: Suite, draws: int) -> tuple[Sequence[Condition], Sequence[Metric]]:
        """Return what :meth:`measure` will sweep: the conditions of every prompt, and what is read of them.

        For estimates, so it may be about that; by default nothing. The ``model``'s modules are there, its weights are
        not: they have shapes, and no values.
        """
        return (), ()

    def training_runs(self) -> tuple[int, int] | None:
        """Return how many runs :meth:`measure` trains, and the steps of all of them; None if it trains nothing.

        Plans name them, for their minutes are not estimated.
        """
        return None

    @abstractmethod
    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Measure ``model`` on ``suite`` and return the dataset that :attr:`variables` promises."""


class ReadingProbe(Probe):
    """A probe that only reads sites of clean runs.

    The runner captures the sites of all reading probes of a job list in one streamed pass and feeds each
    through :meth:`start`, :meth:`update` and :meth:`finish`. Used alone, :meth:`measure` runs that pass.
    """

    @abstractmethod
    def start(self, model: HookedModel, suite: Suite, inputs: Inputs) -> None:
        """Prepare; called once, before the first batch."""

    @abstractmethod
    def update(self, capture: Capture) -> None:
        """Take in one captured batch of prompts of equal length."""

    @abstractmethod
    def finish(self) -> xr.Dataset:
        """Return the dataset; called once, after the last batch."""

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Run the capture pass for this probe alone."""
        from xatlas.probing.reading import read_together

        return read_together([self], model, suite, [inputs])[0]
