"""The contract that comparison authors implement. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from xatlas.contracts.parameters import build, canonical

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from xatlas.contracts.probe import Requirement


Verdict = Literal["supported", "not supported", "undecided", "artefact"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence that a comparison states, with what it rests on.

    Parameters
    ----------
    sentence : str
        What is said, the number included.
    value, low, high : float
        The number and its 95 % interval.
    control : float
        The same number for the control.
    p : float
        Raw p-value; the compare run adjusts it across comparisons.
    verdict : str
        ``supported``, ``not supported``, ``undecided`` or ``artefact``.
    model : str
        Slug of the model it is about; empty for one about several.
    p_adjusted : float or None
        Filled in by the compare run.
    """

    sentence: str
    value: float
    low: float
    high: float
    control: float
    p: float
    verdict: Verdict
    model: str = ""
    p_adjusted: float | None = None


class Comparison(ABC):
    """Lines up results of several models and says what differs.

    Parameters
    ----------
    **parameters
        Values for the fields of :attr:`Parameters`.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    #: One sentence for ``xatlas comparisons``.
    summary: ClassVar[str]
    #: Whether ``compare`` runs it when no comparison is named; False where the probes it requires cost much.
    default: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Parameters:
        """No parameters."""

    def __init__(self, **parameters: Any) -> None:
        self.parameters: Any = build(self.Parameters, parameters, self.name)

    def canonical_parameters(self) -> dict[str, Any]:
        """Return every parameter with its value, JSON-ready."""
        return canonical(self.parameters)

    @property
    @abstractmethod
    def requires(self) -> tuple[Requirement, ...]:
        """Probes with parameters that ``compare`` reads; optional ones feed sensitivity rows."""

    @abstractmethod
    def compare(self, tree: xr.DataTree) -> xr.Dataset:
        """Reduce ``/{model}/{probe}`` to a dataset with a ``model`` dimension."""

    @abstractmethod
    def plot(self, dataset: xr.Dataset) -> Figure:
        """Draw what :meth:`compare` returned."""

    @abstractmethod
    def findings(self, dataset: xr.Dataset) -> list[Finding]:
        """Return sentences, each with a number, an interval, a control and a verdict."""

    @abstractmethod
    def table(self, dataset: xr.Dataset) -> list[dict[str, str | float]]:
        """Return the rows that the command line prints, one or more per model."""
