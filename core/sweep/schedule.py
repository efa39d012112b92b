"""How a sweep is cut into pieces that fit its budget, and what it refuses before it begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from xatlas.errors import XatlasError
from xatlas.interventions import Condition, Intervention, means_needed
from xatlas.prompts import TokenPrompt, buckets
from xatlas.sites import READ_ONLY, SITE_KINDS, Chunk, Heads, Site
from xatlas.sweep.budget import Budget
from xatlas.sweep.scene import nested, sites_seen

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from xatlas.model import HookedModel
    from xatlas.sweep.scene import BucketScene

#: Tokens of each other run, by prompt; None where the run has no counterpart of equal length.
Runs = Mapping[str, Sequence[tuple[int, ...] | None]]


def at_last(part: Intervention) -> bool:
    """Whether an intervention, and all that it looks at, is at the readout position alone.

    What a change sees of further sites may be of any position, so such a change is not.
    """
    alone = part.positions == "last" and not part.change.looks_at(part.site)
    return alone and all(at_last(inner) for inner in part.change.reads())


def most_prompts(model: HookedModel, length: int, n_runs: int, budget: Budget) -> int:
    """Return how many prompts of this length a bucket may hold."""
    row = (model.n_layers + 1) * length * model.d_model * 4 * (1 + n_runs)
    return max(1, min(budget.tile_tokens // length, budget.stream_bytes // row))


def prompt_groups(
    model: HookedModel, prompts: Sequence[TokenPrompt], runs: Runs, budget: Budget
) -> Iterator[np.ndarray]:
    """Yield the indices of prompts of equal length, as many as a bucket may hold."""
    lengths = [len(prompt.ids) for prompt in prompts]
    most = {length: most_prompts(model, length, len(runs), budget) for length in set(lengths)}
    yield from buckets(lengths, most)


def kept_sites(model: HookedModel, conditions: Sequence[Condition], tokens: int, budget: Budget) -> list[Site]:
    """Return the sites whose values the clean run keeps, so that no layer is called again to see them.

    All that the conditions may look at, or none where they would not fit the budget.
    """
    sites = sites_seen(conditions)
    total = 0
    for site in sites:
        width = _kept_width(model, site)
        if width is None:
            return []
        total += width * tokens * 4
    return sites if total <= budget.stream_bytes else []


def _kept_width(model: HookedModel, site: Site) -> int | None:
    """Return how many numbers per token it takes to keep a site's value; None where that can't be told."""
    if site.kind in READ_ONLY or site.kind not in SITE_KINDS:
        return None
    if site.kind in ("resid_pre", "resid_post"):
        return 0  # what enters and leaves a layer is recorded anyway
    view = model.point(site).view
    if isinstance(view, Heads):
        return view.n_heads * view.d_head
    return model.d_model * (view.count if isinstance(view, Chunk) else 1)  # a part keeps the whole


def condition_groups(
    model: HookedModel, scene: BucketScene, conditions: Sequence[Condition], budget: Budget
) -> Iterator[list[int]]:
    """Split conditions into walks, by the layer where each begins."""
    block = len(scene.prompts) * scene.length * model.d_model * 4
    most = max(1, budget.stream_bytes // block)
    order = sorted(range(len(conditions)), key=lambda i: min(part.site.layer for part in conditions[i]))
    for start in range(0, len(order), most):
        yield order[start : start + most]


def checkpoint_key(label: str, ids: Sequence[str], conditions: Sequence[Condition]) -> str:
    """Return under what a finished bucket is kept; a checkpoint belongs to one job, which fixes the rest."""
    return hashlib.sha256(json.dumps([label, len(conditions), *ids]).encode()).hexdigest()


def check_sweep(
    model: HookedModel,
    prompts: Sequence[TokenPrompt],
    conditions: Sequence[Condition],
    runs: Runs,
    means: Mapping[Site, Tensor],
) -> None:
    """Refuse, before anything is run, what would fail later.

    Raises
    ------
    XatlasError
        A site or head does not exist, a mean or run is missing, or a run has another length than its prompt.
    """
    for condition in conditions:
        if not condition:
            raise XatlasError("a condition needs at least one intervention.")
        for part in condition:
            for each in (part, *nested(part)):
                model.check(each)
            for name in part.change.runs() - set(runs):
                raise XatlasError(f"the sweep was not given the run '{name}' that a change at {part.site} needs.")
    for site in sites_seen(conditions):
        model.point(site)
    for site in means_needed(conditions) - set(means):
        raise XatlasError(f"no reference mean was given for {site}.")
    for name, run in runs.items():
        for prompt, tokens in zip(prompts, run, strict=True):
            if tokens is not None and len(tokens) != len(prompt.ids):
                raise XatlasError(
                    f"run '{name}' of prompt '{prompt.prompt.id}' has {len(tokens)} tokens, not {len(prompt.ids)}."
                )
