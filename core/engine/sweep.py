"""The engine: thousands of conditions in few walks over the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Checkpoint, no_progress
from xatlas.engine.schedule import Budget, Runs, buckets_of, check_sweep, checkpoint_keys, kept_sites, up_to_readout
from xatlas.engine.walk import (
    BucketContext,
    Walk,
    is_last_position,
    needed_positions,
    runs_last_position,
)
from xatlas.interventions import Condition
from xatlas.metrics import Metric, TokenLogits
from xatlas.model import HookedModel
from xatlas.model.holding import is_held
from xatlas.model.hooks import exclusive, record_last_position
from xatlas.prompts.reader import TokenPrompt


@exclusive
def sweep(
    model: HookedModel,
    prompts: Sequence[TokenPrompt],
    conditions: Sequence[Condition],
    metrics: Sequence[Metric],
    *,
    runs: Runs | None = None,  # tokens of other runs, by prompt, for changes that read them; all of its length
    means: Mapping[Site, Tensor] | None = None,  # reference means (2, ...)
    seed: int = 0,  # of random directions
    budget: Budget | None = None,  # memory; halved, for all that follows, whenever the device runs out
    checkpoint: Checkpoint | None = None,  # keeps finished buckets
    progress: Callable[[str, int, int], None] = no_progress,  # called with the number of finished prompts
    label: str = "sweep",  # names the sweep in progress and checkpoint
) -> np.ndarray:
    """Measure every condition on every prompt.

    Prompts are bucketed by exact token length, so nothing is padded, and by blocks of templates, so that a longer
    sweep finds what a shorter one kept; each bucket is run clean once, and the conditions then walk through the layers
    together, from where each first differs from the clean run.

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
    prompts = up_to_readout(prompts, metrics)
    runs = {n: [t and t[: len(p.ids)] for t, p in zip(run, prompts, strict=True)] for n, run in runs.items()}
    task = _Sweep(model, conditions, metrics, means, seed, budget or Budget.for_device(model.device))
    groups = buckets_of(model, prompts, task.budget, len(runs))
    parts = [([prompts[i] for i in group], {n: [run[i] for i in group] for n, run in runs.items()}) for group in groups]
    keys = None
    if checkpoint is not None and type(checkpoint) is not Checkpoint and not is_held(model):
        # the key does not cover what is held
        contents = [[some, sorted(theirs.items())] for some, theirs in parts]
        keys = checkpoint_keys(model, label, [conditions, metrics, sorted(means.items()), seed], contents)
    keeps = Checkpoint() if checkpoint is None or keys is None else checkpoint
    result = np.full((len(metrics), len(prompts), len(conditions)), np.nan)
    done = 0
    for group, part, key in zip(groups, parts, keys or [""] * len(groups), strict=True):
        saved = keeps.load(key)
        if saved is None:
            saved = {"values": task.measure(*part)}
            keeps.save(key, saved)
        result[:, group] = saved["values"]
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
    """Measure every condition on every prompt, as :func:`sweep` does with the same keywords, and name every axis.

    ``cells`` says what each condition is, ``{dimension: label}``, of the same dimensions for all; conditions of one
    cell (draws of donors and of directions) are averaged.

    Returns
    -------
    DataArray
        ``(metric, prompt, condition)``, with the names of metrics and the ids of prompts; given cells,
        ``(metric, prompt, ...)`` with their dimensions in the place of ``condition``, labels in the order in which
        they first come, and NaN in cells that no condition is of.
    """
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


@dataclass
class _Sweep:
    """What one sweep measures in every bucket, and its budget, halved whenever memory runs out."""

    model: HookedModel
    conditions: Sequence[Condition]
    metrics: Sequence[Metric]
    means: Mapping[Site, Tensor]
    seed: int
    budget: Budget

    def measure(self, prompts: Sequence[TokenPrompt], runs: Runs) -> np.ndarray:
        """Return ``(metric, prompt, condition)`` of prompts of equal length."""
        while True:
            try:
                most = self.budget.most_prompts(self.model, len(prompts[0].ids), len(runs))
                pieces = [slice(start, start + most) for start in range(0, len(prompts), most)]
                found = [self._piece(prompts[piece], {n: run[piece] for n, run in runs.items()}) for piece in pieces]
                return np.concatenate(found, axis=1)
            except RuntimeError as error:
                on_cpu = "not enough memory" in str(error) or "can't allocate memory" in str(error)
                if not on_cpu and not isinstance(error, torch.OutOfMemoryError):
                    raise
                self.budget = self.budget.halved()
                if self.model.device.type == "cuda":
                    torch.cuda.empty_cache()

    @torch.inference_mode()
    def _piece(self, prompts: Sequence[TokenPrompt], runs: Runs) -> np.ndarray:
        values = np.full((len(self.metrics), len(prompts), len(self.conditions)), np.nan)
        possible = runs_last_position(self.model, prompts, self.metrics)
        short = [possible and all(is_last_position(part) for part in condition) for condition in self.conditions]
        for last_only in (True, False):
            chosen = [i for i, at_last in enumerate(short) if at_last == last_only]
            if not chosen:
                continue
            context = self._context(prompts, runs, [self.conditions[i] for i in chosen], last_only)
            readout = Readout(context, self.metrics, self.budget.logit_bytes)
            needed = needed_positions(self.model, context.length - readout.earliest)
            # Walks hold as many conditions as the budget has room for, by the layer where each begins.
            most = max(1, self.budget.stream_bytes // (len(prompts) * context.length * self.model.d_model * 4))
            chosen.sort(key=lambda i: min(part.site.layer for part in self.conditions[i]))
            for start in range(0, len(chosen), most):
                group = chosen[start : start + most]
                walk = Walk(context, [self.conditions[i] for i in group], self.budget.tile_tokens, needed)
                values[:, :, group] = readout.measure(list(walk.run()), walk.touched)
        for name, run in runs.items():  # a prompt without the run has no number where a change reads it
            missing = [tokens is None for tokens in run]
            users = [any(name in part.change.runs() for part in condition) for condition in self.conditions]
            if any(users):
                values[:, np.outer(missing, users)] = np.nan
        return values

    def _context(
        self, prompts: Sequence[TokenPrompt], runs: Runs, conditions: Sequence[Condition], last_only: bool
    ) -> BucketContext:
        """Record the clean pass over the prompts and over every distinct other run."""
        ids = [prompt.ids for prompt in prompts]
        place = {tokens: row for row, tokens in enumerate(ids)}
        rows: dict[str, Tensor] = {}
        for name, run in runs.items():
            index = []
            for prompt, tokens in zip(prompts, run, strict=True):
                tokens = prompt.ids if tokens is None else tokens
                if tokens not in place:
                    place[tokens] = len(ids)
                    ids.append(tokens)
                index.append(place[tokens])
            rows[name] = torch.tensor(index, device=self.model.device)
        every = torch.tensor(ids, device=self.model.device)
        sites = kept_sites(self.model, conditions, len(ids) if last_only else every.numel(), self.budget)
        if last_only:
            clean, cache = record_last_position(self.model, every, sites)
        else:
            clean, cache = self.model.record(every, sites), None
        return BucketContext(self.model, prompts, clean, rows, conditions, self.means, self.seed, cache)


class Readout:
    """Turns final streams into metrics: only the positions that a metric reads are unembedded."""

    def __init__(self, context: BucketContext, metrics: Sequence[Metric], logit_bytes: int) -> None:
        self.model, self.metrics, self.prompts = context.model, metrics, context.prompts
        self.positions = [[list(metric.positions(prompt)) for prompt in self.prompts] for metric in metrics]
        pairs = sorted({(row, p) for of in self.positions for row, read in enumerate(of) for p in read})
        self.index = {pair: token for token, pair in enumerate(pairs)}
        first, device = context.offset, self.model.device
        #: The first position of the streams that is read.
        self.earliest = min((p for _, p in pairs), default=first + context.length - 1) - first
        self.rows = torch.tensor([row for row, _ in pairs], device=device, dtype=torch.long)
        # counted from the end, for of a final stream there may be only that
        self.columns = torch.tensor([p - first - context.length for _, p in pairs], device=device, dtype=torch.long)
        self.final = context.recorded.final[self.rows, self.columns]  # (token, d_model)
        of_rows = [(self.prompts[row], p) for row, p in pairs]
        known = [[prompt.target_at(p), prompt.answer, prompt.foil_answer] for prompt, p in of_rows]
        known = [[-1 if token is None else token for token in each] for each in known]
        self.labels, self.answer, self.foil = torch.tensor(known, device=device, dtype=torch.long).reshape(-1, 3).T
        vocabulary = self.model.adapter.module(self.model.adapter.unembedding_path).weight.shape[0]
        self.at_once = max(1, logit_bytes // (4 * vocabulary))

    def measure(self, finals: Sequence[Tensor], touched: Tensor) -> np.ndarray:
        """Return ``(metric, prompt, condition)`` for final streams ``(prompt, pos, d_model)``."""
        hidden = torch.stack([final[self.rows, self.columns] for final in finals])  # (condition, token, d_model)
        moved = touched[:, self.rows]  # (condition, token)
        per_token = np.full((len(self.metrics), len(finals), len(self.index)), np.nan)
        for start in range(0, len(self.index), self.at_once):
            tokens = slice(start, start + self.at_once)
            clean = self.model.logits(self.final[tokens])
            group = max(1, self.at_once // clean.shape[0])
            for first in range(0, len(finals), group):
                some = slice(first, first + group)
                logits = self.model.logits(hidden[some, tokens])
                logits = torch.where(moved[some, tokens, None], logits, clean)
                view = TokenLogits(clean, logits, self.labels[tokens], self.answer[tokens], self.foil[tokens])
                bad = ~(view.lse.isfinite() & view.clean_lse.isfinite())
                for m, metric in enumerate(self.metrics):
                    numbers = metric.per_token(view).double().masked_fill(bad, torch.nan)
                    per_token[m, some, tokens] = numbers.cpu().numpy()
        result = np.full((len(self.metrics), len(self.prompts), len(finals)), np.nan)
        for m, metric in enumerate(self.metrics):
            for row, prompt in enumerate(self.prompts):
                read = [self.index[row, p] for p in self.positions[m][row]]
                if read:  # another prompt's NaN stays its own
                    result[m, row] = per_token[m][:, read] @ np.full(len(read), metric.weight(prompt))
        return result
