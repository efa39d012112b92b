"""The engine: thousands of conditions in few walks over the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Checkpoint, NoCheckpoint, no_progress
from xatlas.engine.last_position import can_step, record_step
from xatlas.engine.schedule import (
    Budget,
    Runs,
    at_last,
    check_sweep,
    checkpoint_keys,
    condition_groups,
    kept_sites,
    most_prompts,
    prompt_groups,
)
from xatlas.engine.walk import BucketScene, Walk, tails
from xatlas.interventions import Condition
from xatlas.metrics import Metric, TokenLogits
from xatlas.model.hold import is_held
from xatlas.model.hooks import exclusive
from xatlas.prompts.reader import TokenPrompt

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from xatlas.engine.schedule import Budget
    from xatlas.engine.walk import BucketScene
    from xatlas.model import HookedModel
    from xatlas.prompts.reader import TokenPrompt


class Readout:
    """Turns final streams into metrics: only the positions that a metric reads are unembedded.

    Parameters
    ----------
    model : HookedModel
        The model.
    scene : BucketScene
        The bucket, with its clean run.
    metrics : sequence of Metric
        What is read; ``earliest`` is the first position that is.
    budget : Budget
        Bounds the logits that are held at once.
    """

    def __init__(self, model: HookedModel, scene: BucketScene, metrics: Sequence[Metric], budget: Budget) -> None:
        self.model = model
        self.metrics = metrics
        self.budget = budget
        prompts = scene.prompts
        self.pairs = sorted(
            {(row, p) for metric in metrics for row, prompt in enumerate(prompts) for p in metric.positions(prompt)}
        )
        self.rows = torch.tensor([row for row, _ in self.pairs], device=model.device, dtype=torch.long)
        self.earliest = min((p for _, p in self.pairs), default=scene.length - 1 + scene.offset) - scene.offset
        # counted from the end, for of a final stream there may be only that
        from_end = [p - scene.offset - scene.length for _, p in self.pairs]
        self.positions = torch.tensor(from_end, device=model.device, dtype=torch.long)
        self.final = scene.recorded.final[self.rows, self.positions]  # (token, d_model)
        self.weights = [_weights(metric, prompts, self.pairs) for metric in metrics]
        self.labels = torch.tensor([_label(prompts[row], p) for row, p in self.pairs], device=model.device)
        self.answer = torch.tensor([_or_none(prompts[row].answer) for row, _ in self.pairs], device=model.device)
        self.foil = torch.tensor([_or_none(prompts[row].foil_answer) for row, _ in self.pairs], device=model.device)

    def measure(self, finals: Sequence[Tensor], touched: Tensor) -> np.ndarray:
        """Return ``(metric, prompt, condition)`` for final streams ``(prompt, pos, d_model)``."""
        hidden = torch.stack([final[self.rows, self.positions] for final in finals])  # (condition, token, d_model)
        moved = touched[:, self.rows]  # (condition, token)
        per_token = np.full((len(self.metrics), len(finals), len(self.pairs)), np.nan)
        vocabulary = self.model.adapter.module(self.model.adapter.unembedding_path).weight.shape[0]
        at_once = max(1, self.budget.logit_bytes // (4 * vocabulary))
        for start in range(0, len(self.pairs), at_once):
            tokens = slice(start, start + at_once)
            clean = self.model.logits(self.final[tokens])
            group = max(1, at_once // clean.shape[0])
            for first in range(0, len(finals), group):
                some = slice(first, first + group)
                logits = self.model.logits(hidden[some, tokens])
                logits = torch.where(moved[some, tokens, None], logits, clean)
                view = TokenLogits(clean, logits, self.labels[tokens], self.answer[tokens], self.foil[tokens])
                bad = ~(view.lse.isfinite() & view.clean_lse.isfinite())
                for m, metric in enumerate(self.metrics):
                    numbers = metric.per_token(view).double().masked_fill(bad, torch.nan)
                    per_token[m, some, tokens] = numbers.cpu().numpy()
        return np.stack([_reduce(per_token[m], self.weights[m]) for m in range(len(self.metrics))])


def _weights(metric: Metric, prompts: Sequence[TokenPrompt], pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return ``(prompt, token)``: what each token's number is multiplied with; NaN rows without any."""
    weights = np.zeros((len(prompts), len(pairs)))
    place = {pair: i for i, pair in enumerate(pairs)}
    for row, prompt in enumerate(prompts):
        positions = metric.positions(prompt)
        for p in positions:
            weights[row, place[row, p]] = metric.weight(prompt)
        if not len(positions):
            weights[row] = np.nan
    return weights


def _reduce(per_token: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ``(prompt, condition)`` from ``(condition, token)``; another prompt's NaN stays its own."""
    result = np.full((weights.shape[0], per_token.shape[0]), np.nan)
    for row, weight in enumerate(weights):
        used = weight != 0
        if not np.isnan(weight).any():
            result[row] = per_token[:, used] @ weight[used]
    return result


def _label(prompt: TokenPrompt, position: int) -> int:
    """Return the target's token after ``position``, or -1."""
    index = position - (prompt.n_text - 1)
    return prompt.target_ids[index] if 0 <= index < len(prompt.target_ids) else -1


def _or_none(token: int | None) -> int:
    return -1 if token is None else token


@exclusive
def sweep(
    model: HookedModel,
    prompts: Sequence[TokenPrompt],
    conditions: Sequence[Condition],
    metrics: Sequence[Metric],
    *,
    runs: Runs | None = None,
    means: Mapping[Site, Tensor] | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[str, int, int], None] = no_progress,
    label: str = "sweep",
) -> np.ndarray:
    """Measure every condition on every prompt.

    Prompts are bucketed by exact token length, so nothing is padded; each bucket is run clean once, and the
    conditions then walk through the layers together, from where each first differs from the clean run.

    Parameters
    ----------
    model : HookedModel
        The model.
    prompts : sequence of TokenPrompt
        What is run.
    conditions : sequence of Condition
        What is done; each is a tuple of interventions measured together.
    metrics : sequence of Metric
        What is read off the logits.
    runs : mapping of str to sequence, optional
        Tokens of other runs, by prompt, for changes that look at them; all of the prompt's length.
    means : mapping of Site to Tensor, optional
        Reference means ``(2, ...)``.
    seed : int
        Seed of random directions.
    budget : Budget, optional
        Memory; halved, for all that follows, whenever the device runs out.
    checkpoint : Checkpoint, optional
        Keeps finished buckets.
    progress : callable
        Called with the number of finished prompts.
    label : str
        Names the sweep in progress and checkpoint.

    Returns
    -------
    ndarray of float64
        ``(metric, prompt, condition)``. NaN where the metric does not apply, where a run is missing, and
        where logits were not finite.

    Raises
    ------
    XatlasError
        A site or head does not exist, a mean or run is missing, or a run has another length than its prompt.
    """
    runs, means = dict(runs or {}), dict(means or {})
    check_sweep(model, prompts, conditions, runs, means)
    means = {site: mean.to(model.device) for site, mean in means.items()}
    checkpoint = NoCheckpoint() if checkpoint is None else checkpoint
    budget = budget or Budget.for_device(model.device)
    if all(set(metric.positions(prompt)) <= {prompt.readout} for metric in metrics for prompt in prompts):
        # Nothing after the readout position is read, and by causality nothing there matters before it.
        runs = {n: [t and t[: p.readout + 1] for t, p in zip(run, prompts, strict=True)] for n, run in runs.items()}
        prompts = [replace(prompt, ids=prompt.ids[: prompt.readout + 1]) for prompt in prompts]
    result = np.full((len(metrics), len(prompts), len(conditions)), np.nan)
    done = 0
    groups = list(prompt_groups(model, prompts, runs, budget))
    keys = None
    if not isinstance(checkpoint, NoCheckpoint) and not is_held(model):  # the key knows not what is held
        keys = checkpoint_keys(model, label, groups, prompts, runs, (conditions, metrics, means, seed))
    for number, group in enumerate(groups):
        saved = None if keys is None else checkpoint.load(keys[number])
        if saved is None:
            part = _Part(model, [prompts[i] for i in group], {n: [r[i] for i in group] for n, r in runs.items()})
            values, budget = part.measure_within(budget, conditions, metrics, means, seed)
            if keys is not None:
                checkpoint.save(keys[number], {"values": values})
        else:
            values = saved["values"]
        result[:, group] = values
        done += len(group)
        progress(label, done, len(prompts))
    return result


def named_sweep(
    model: HookedModel,
    prompts: Sequence[TokenPrompt],
    conditions: Sequence[Condition],
    metrics: Mapping[str, Metric],
    cells: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> xr.DataArray:
    """Measure every condition on every prompt, as :func:`sweep` does, and name every axis.

    Parameters
    ----------
    model, prompts, conditions
        As in :func:`sweep`.
    metrics : mapping of str to Metric
        What is read off the logits, by name.
    cells : sequence of mapping, optional
        What each condition is: ``{dimension: label}``, of the same dimensions for all. Conditions of one cell are
        averaged (draws of donors and of directions).
    **options
        The keywords of :func:`sweep`.

    Returns
    -------
    DataArray
        ``(metric, prompt, condition)``, with the names of metrics and the ids of prompts; given cells,
        ``(metric, prompt, ...)`` with their dimensions in the place of ``condition``, labels in the order in which
        they first come, and NaN in cells that no condition is of.

    Raises
    ------
    XatlasError
        As :func:`sweep`.
    """
    import xarray as xr

    names = {"metric": list(metrics), "prompt": [prompt.prompt.id for prompt in prompts]}
    values = sweep(model, prompts, conditions, list(metrics.values()), **options)
    if cells is None:
        return xr.DataArray(values, names, ("metric", "prompt", "condition"))
    labels = {dim: list(dict.fromkeys(cell[dim] for cell in cells)) for dim in (cells[0] if cells else ())}
    members: dict[tuple[int, ...], list[int]] = {}
    for index, cell in enumerate(cells):
        members.setdefault(tuple(labels[dim].index(cell[dim]) for dim in labels), []).append(index)
    result = np.full((*values.shape[:2], *map(len, labels.values())), np.nan)
    for place, indices in members.items():
        target: Any = (..., *place)
        result[target] = values[:, :, indices].mean(-1)
    return xr.DataArray(result, names | labels, ("metric", "prompt", *labels))


class _Part:
    """One bucket of a sweep."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Sequence[TokenPrompt],
        runs: Mapping[str, Sequence[tuple[int, ...] | None]],
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.runs = runs

    def measure_within(
        self,
        budget: Budget,
        conditions: Sequence[Condition],
        metrics: Sequence[Metric],
        means: Mapping[Site, Tensor],
        seed: int,
    ) -> tuple[np.ndarray, Budget]:
        """Measure, with half the budget again and again while memory runs out; return the budget that did."""
        while True:
            try:
                return self.measure(budget, conditions, metrics, means, seed), budget
            except torch.OutOfMemoryError:
                budget = budget.halved()
                torch.cuda.empty_cache()
            except RuntimeError as error:
                if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
                    raise
                budget = budget.halved()

    @torch.inference_mode()
    def measure(
        self,
        budget: Budget,
        conditions: Sequence[Condition],
        metrics: Sequence[Metric],
        means: Mapping[Site, Tensor],
        seed: int,
    ) -> np.ndarray:
        """Return ``(metric, prompt, condition)``."""
        most = most_prompts(self.model, len(self.prompts[0].ids), len(self.runs), budget)
        pieces = []
        for start in range(0, len(self.prompts), most):
            rows = slice(start, start + most)
            values = np.full((len(metrics), len(self.prompts[rows]), len(conditions)), np.nan)
            alone, whole = self._split(conditions, metrics)
            for chosen, step in ((alone, True), (whole, False)):
                if chosen:
                    some = [conditions[i] for i in chosen]
                    scene = self._scene(rows, some, budget, means, seed, step)
                    values[:, :, chosen] = _measure_scene(self.model, scene, some, metrics, budget)
            self._blank_missing(values, rows, conditions)
            pieces.append(values)
        return np.concatenate(pieces, axis=1)

    def _split(self, conditions: Sequence[Condition], metrics: Sequence[Metric]) -> tuple[list[int], list[int]]:
        """Tell conditions that need only the last position recomputed from the others."""
        last = len(self.prompts[0].ids) - 1
        read = {p for metric in metrics for prompt in self.prompts for p in metric.positions(prompt)}
        possible = read <= {last} and can_step(self.model, last + 1)
        possible = possible and all(prompt.readout == last for prompt in self.prompts)
        alone: list[int] = []
        whole: list[int] = []
        for index, condition in enumerate(conditions):
            local = possible and all(at_last(part) for part in condition)
            (alone if local else whole).append(index)
        return alone, whole

    def _scene(
        self,
        rows: slice,
        conditions: Sequence[Condition],
        budget: Budget,
        means: Mapping[Site, Tensor],
        seed: int,
        step: bool,
    ) -> BucketScene:
        """Record the clean pass over the prompts and over every distinct other run."""
        prompts = self.prompts[rows]
        ids = [prompt.ids for prompt in prompts]
        place = {tokens: row for row, tokens in enumerate(ids)}
        chosen: dict[str, Tensor] = {}
        for name, run in self.runs.items():
            index = []
            for own, tokens in zip(prompts, run[rows], strict=True):
                tokens = own.ids if tokens is None else tokens
                if tokens not in place:
                    place[tokens] = len(ids)
                    ids.append(tokens)
                index.append(place[tokens])
            chosen[name] = torch.tensor(index, device=self.model.device)
        run_ids = torch.tensor(ids, device=self.model.device)
        sites = kept_sites(self.model, conditions, len(ids) if step else run_ids.numel(), budget)
        clean, past = record_step(self.model, run_ids, sites) if step else (self.model.record(run_ids, sites), None)
        return BucketScene(self.model, prompts, clean, chosen, means, seed, past)

    def _blank_missing(self, values: np.ndarray, rows: slice, conditions: Sequence[Condition]) -> None:
        """Set to NaN what looks at a run that a prompt doesn't have."""
        for name, run in self.runs.items():
            missing = [row for row, tokens in enumerate(run[rows]) if tokens is None]
            users = [i for i, condition in enumerate(conditions) if any(name in p.change.runs() for p in condition)]
            if missing and users:
                values[:, np.ix_(missing, users)[0], np.ix_(missing, users)[1]] = np.nan


def _measure_scene(
    model: HookedModel,
    scene: BucketScene,
    conditions: Sequence[Condition],
    metrics: Sequence[Metric],
    budget: Budget,
) -> np.ndarray:
    """Return ``(metric, prompt, condition)`` of one scene."""
    reader = Readout(model, scene, metrics, budget)
    wanted = tails(model, scene.length - reader.earliest)
    values = np.full((len(metrics), len(scene.prompts), len(conditions)), np.nan)
    for chosen in condition_groups(model, scene, conditions, budget):
        walk = Walk(model, scene, [conditions[i] for i in chosen], budget.tile_tokens, wanted)
        finals = dict(walk.run())
        values[:, :, chosen] = reader.measure([finals[i] for i in range(len(chosen))], walk.touched)
    return values
