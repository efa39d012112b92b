"""The contract that comparison authors implement. Imports no torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from xatlas.contracts.parameters import Parameterised

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from xatlas.contracts.probe import Requirement


Verdict = Literal["supported", "refuted", "undecided", "artefact"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence that a comparison states, with what it rests on."""

    sentence: str  # what is said, the number included
    value: float
    low: float  # the 95 % interval
    high: float
    control: float  # the same number for the control
    p: float  # raw
    verdict: Verdict
    model: str = ""  # slug of the model it is about; empty for one about several
    p_adjusted: float | None = None  # for the other claims of this comparison about the same model or pair
    reason: str = ""  # why it is not supported, in words
    name: str = ""  # of the claim
    model_other: str = ""  # the second of a pair
    control_low: float = math.nan  # its 95 % interval
    control_high: float = math.nan
    settings: int = 0  # other settings under which it was estimated, and how many of them agree
    agree: int = 0
    alike: int = 0  # how many of these have a number in the interval, too; where it is in nats, none is compared
    depends_on: str = ""  # what those that disagree vary
    learnt: bool | None = None  # beyond every untrained twin; None where there are none
    short: str = ""  # what is said, in a few words without numbers; what it is about, where it is not supported
    against: str = ""  # what p is against, in words
    descriptive: bool = False  # number and interval of what was chosen by looking: the verdict rests on p
    unit: str = "network"  # what the test is of: a network, the layers of a type, or an architecture


class Comparison(Parameterised, ABC):
    """Lines up results of several models and says what differs."""

    #: One sentence for ``xatlas comparisons``.
    summary: ClassVar[str]
    #: Whether ``compare`` runs it when no comparison is named; False where the probes it requires cost much.
    default: ClassVar[bool] = True
    #: Whether the tree may hold untrained twins of its models, which :func:`xatlas.twins.twins` tells from them.
    uses_twins: ClassVar[bool] = False

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
