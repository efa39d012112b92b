"""Ablation kinds and their controls, laid out on a grid and measured in one sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.errors import XatlasError, unknown
from xatlas.interventions import Change, Condition, FromRun, Intervention, Mean, One, Zero, means_needed
from xatlas.measures.means import choose_donors, reference_means
from xatlas.sweep import sweep

if TYPE_CHECKING:
    from xatlas.metrics import Metric
    from xatlas.model import HookedModel
    from xatlas.probe import Inputs
    from xatlas.prompts import TokenPrompt, TokenSuite

#: What activations can be replaced by.
ABLATIONS = ("zero", "mean", "resample", "one")


def ablation(kind: str, draw: int = 0) -> Change:
    """Return the change of an ablation kind; ``draw`` picks the donor of ``resample``.

    Raises
    ------
    XatlasError
        The kind is unknown.
    """
    changes: dict[str, Change] = {"zero": Zero(), "mean": Mean(), "one": One(), "resample": FromRun(f"donor {draw}")}
    if kind not in changes:
        raise unknown("ablation", kind, changes)
    return changes[kind]


@dataclass
class Grid:
    """Conditions laid out as the cells of named arrays; several conditions in a cell are averaged.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Name → shape of each array, prompts left out.
    """

    shapes: Mapping[str, tuple[int, ...]]
    cells: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)

    def add(self, name: str, cell: tuple[int, ...], *interventions: Intervention) -> None:
        """Put a condition into a cell."""
        self.cells.append((name, cell))
        self.conditions.append(interventions)

    def measure(
        self, model: HookedModel, tokens: TokenSuite, metrics: Sequence[Metric], inputs: Inputs, label: str
    ) -> Measured:
        """Sweep all conditions and gather them.

        Raises
        ------
        XatlasError
            A mean or a donor is needed and no reference was given, or the reference is too short.
        """
        runs: dict[str, Sequence[tuple[int, ...] | None]] = {}
        means = {}
        needed = means_needed(self.conditions)
        names = frozenset().union(*(part.change.runs() for condition in self.conditions for part in condition))
        if needed or names:
            if inputs.reference is None:
                raise XatlasError("mean and resample ablation need a reference suite: pass --reference FILE.")
            reference = model.read(inputs.reference)
            means = reference_means(model, reference, needed).values if needed else {}
            donors = choose_donors(tokens.prompts, reference, inputs.seed, inputs.draws) if names else []
            runs = {f"donor {draw}": donor for draw, donor in enumerate(donors)}
        values = sweep(
            model,
            tokens.prompts,
            self.conditions,
            metrics,
            runs=runs,
            means=means,
            seed=inputs.seed,
            checkpoint=inputs.checkpoint,
            progress=inputs.progress,
            label=label,
        )
        return self._gather(values, tokens.prompts, runs, metrics, model.overflow)

    def _gather(
        self,
        values: np.ndarray,
        prompts: Sequence[TokenPrompt],
        runs: Mapping[str, Sequence[tuple[int, ...] | None]],
        metrics: Sequence[Metric],
        overflow: str,
    ) -> Measured:
        unread = np.array([[not metric.positions(prompt) for prompt in prompts] for metric in metrics])
        lacking = np.zeros(values.shape[1:], dtype=bool)  # (prompt, condition)
        for index, condition in enumerate(self.conditions):
            for name in frozenset().union(*(part.change.runs() for part in condition)):
                lacking[:, index] |= [tokens is None for tokens in runs[name]]
        dropped: dict[str, str] = {}
        infinite = (np.isnan(values) & ~lacking & ~unread[..., None]).any(0)  # (prompt, condition)
        for row, count in enumerate(infinite.sum(1)):
            if count:
                where = f"{count} of {len(self.conditions)} conditions"
                dropped[prompts[row].prompt.id] = f"logits were not finite in {where}{overflow}"
        arrays = {}
        for name, shape in self.shapes.items():
            total = np.zeros((len(values), len(prompts), *shape))
            count = np.zeros(total.shape)
            for index, (owner, cell) in enumerate(self.cells):
                if owner == name:
                    at: tuple[Any, ...] = (..., *cell)
                    present = ~np.isnan(values[..., index])
                    present |= ~lacking[:, index]  # only a missing run may be averaged away
                    total[at] += np.where(present, values[..., index], 0)
                    count[at] += present
            arrays[name] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        undonated = int((np.array([[t is None for t in run] for run in runs.values()]).all(0)).sum()) if runs else 0
        told = {str(metric): int(count) for metric, count in zip(metrics, unread.sum(1), strict=True) if count}
        return Measured(arrays, dropped, undonated, told)


@dataclass(frozen=True)
class Measured:
    """What a grid's sweep gave.

    Parameters
    ----------
    arrays : dict of str to ndarray
        Name → ``(metric, prompt, ...)``; NaN where no condition stands.
    dropped : dict of str to str
        Prompts whose logits were not finite, and in how many conditions.
    undonated : int
        Prompts that no donor fits.
    unread : dict of str to int
        Metric → in how many prompts there is no position that it is read at.
    """

    arrays: dict[str, np.ndarray]
    dropped: dict[str, str]
    undonated: int
    unread: dict[str, int]

    def absent(self, *resampled: str) -> dict[str, str]:
        """Return why values are NaN; ``resampled`` says what is named where there is no donor, if anything."""
        told = "prompts have no position that it is read at"
        # a metric of several scopes is a dimension of its own
        found = {name.removeprefix("kl, "): f"{count} {told}" for name, count in self.unread.items()}
        if self.undonated:
            told = f"no donor of equal token length, other family and other target for {self.undonated} prompts"
            found |= dict.fromkeys(resampled, told)
        return found
