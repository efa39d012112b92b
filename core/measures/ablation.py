"""Ablation kinds and their controls, laid out on a grid and measured in one sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from xatlas.errors import XatlasError, unknown
from xatlas.interventions import Change, Condition, FromRun, Mean, One, Zero, means_needed
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

    def add(self, name: str, cell: tuple[int, ...], *interventions: object) -> None:
        """Put a condition into a cell."""
        self.cells.append((name, cell))
        self.conditions.append(interventions)  # type: ignore[arg-type]

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
        return self._gather(values, tokens.prompts, runs)

    def _gather(
        self,
        values: np.ndarray,
        prompts: Sequence[TokenPrompt],
        runs: Mapping[str, Sequence[tuple[int, ...] | None]],
    ) -> Measured:
        lacking = np.zeros(values.shape[1:], dtype=bool)  # (prompt, condition)
        for index, condition in enumerate(self.conditions):
            for name in frozenset().union(*(part.change.runs() for part in condition)):
                lacking[:, index] |= [tokens is None for tokens in runs[name]]
        dropped: dict[str, str] = {}
        for row, count in enumerate((np.isnan(values[0]) & ~lacking).sum(1)):
            if count:
                told = f"logits were not finite in {count} of {len(self.conditions)} conditions"
                dropped[prompts[row].prompt.id] = told
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
        return Measured(arrays, dropped, undonated)


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
    """

    arrays: dict[str, np.ndarray]
    dropped: dict[str, str]
    undonated: int

    def absent(self) -> dict[str, str]:
        """Return why resample values are NaN, where they are."""
        if not self.undonated:
            return {}
        return {"resample": f"no donor of equal token length for {self.undonated} prompts"}
