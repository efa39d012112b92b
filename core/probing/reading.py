"""Reading: one streamed pass that feeds all reading probes, an eager one for attention patterns; what these say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs, ReadingProbe
from xatlas.engine.schedule import Budget
from xatlas.model import Capture, HookedModel
from xatlas.prompts.reader import TokenPrompt, buckets
from xatlas.suites import Suite

#: The site kind that only eager attention has a value for.
PATTERN = "attention_pattern"
#: Rows that are worth unembedding: a few cost as much, for most of it is fetching the weights.
_ROWS = 32
#: Measures of a head's pattern on a text, with their units and what they are.
SCORES: dict[str, tuple[str, str]] = {
    "entropy": ("nats", "entropy of a query's weights"),
    "distance": ("token", "mean distance between query and key"),
    "first_weight": ("1", "weight on position 0"),
    "previous_score": ("1", "weight on the previous token"),
}
#: Queries before this one are left out: for them position 0 is the previous token, or the token itself.
FIRST_QUERY = 2


def read_together(
    probes: Sequence[ReadingProbe], model: HookedModel, suite: Suite, inputs: Sequence[Inputs]
) -> list[xr.Dataset]:
    """Run every prompt once and show each probe the sites that it declares; return a dataset for each.

    Probes that read attention patterns are shown a second pass, an eager one, with all of their sites in it.
    """
    for probe, given in zip(probes, inputs, strict=True):
        probe.start(model, suite, given)
    prompts = model.read(suite).prompts
    attending = [PATTERN in probe.sites for probe in probes]
    done, total = 0, len(prompts) * len(set(attending))
    for eager in sorted(set(attending)):
        shown = [probe for probe, reads in zip(probes, attending, strict=True) if reads == eager]
        wanted = [[site for kind in probe.sites for site in model.sites(kind)] for probe in shown]
        for batch in captured(model, prompts, {site for sites in wanted for site in sites}):
            for probe, sites in zip(shown, wanted, strict=True):
                # A copy each, free of inference mode: what one probe does to it in place is not shown to the next.
                probe.update(replace(batch, values={site: batch.values[site].clone() for site in sites}))
            done += len(batch.prompts)
            inputs[0].progress("reading", done, total)
    return [probe.finish() for probe in probes]


def captured(model: HookedModel, prompts: Sequence[TokenPrompt], sites: Collection[Site]) -> Iterator[Capture]:
    """Run prompts in buckets of one length, as many at a time as the memory budget holds values of, and yield these."""
    budget, every = Budget.for_device(model.device), sorted(set(sites))
    lengths = [len(prompt.ids) for prompt in prompts]
    heads = [layout.n_heads for site in every if site.kind == PATTERN and (layout := model.head_layouts[site.layer])]
    others = model.d_model * max(1, len(every) - len(heads))

    def most(length: int) -> int:
        row = 4 * length * (others + sum(heads) * length)  # bytes of one prompt's values
        return min(budget.tile_tokens // length, budget.stream_bytes // row)

    for group in buckets(lengths, most):
        rows = tuple(prompts[i] for i in group)
        yield Capture(rows, tuple(int(i) for i in group), model.capture(model.tokens(rows), every))


@dataclass
class Readouts:
    """What sites hold at readout positions, gathered over batches until there are rows enough to unembed."""

    prompts: list[TokenPrompt] = field(default_factory=list)
    index: list[int] = field(default_factory=list)  # of them in the suite
    parts: list[dict[Site, Tensor]] = field(default_factory=list)

    def add(self, capture: Capture, rows: Sequence[int]) -> bool:
        """Take in some of a batch's prompts; return whether they are enough now."""
        prompts = [capture.prompts[row] for row in rows]
        at = list(rows), [prompt.readout for prompt in prompts]
        self.prompts += prompts
        self.index += [capture.index[row] for row in rows]
        self.parts.append({site: value[at] for site, value in capture.values.items()})
        return len(self.prompts) >= _ROWS

    def values(self) -> dict[Site, Tensor]:
        """Return what each site holds ``(row, ...)``."""
        return {site: torch.cat([part[site] for part in self.parts]) for site in self.parts[0]}


def without_tokens(prompts: Sequence[TokenPrompt], positions: Iterable[str]) -> dict[str, np.ndarray]:
    """Return position class → which prompts have no token of it ``(prompt,)``; all have one of ``all``."""
    return {
        name: np.array([name != "all" and not prompt.positions(name) for prompt in prompts], dtype=bool)
        for name in positions
    }


def absent_positions(without: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return why values are NaN at position classes that :func:`without_tokens` finds missing."""
    return {
        f"position {name}": f"{int(missing.sum())} of {len(missing)} prompts have no token of this class"
        for name, missing in without.items()
        if missing.any()
    }


def head_scores(pattern: Tensor, window: int | None = None) -> dict[str, Tensor]:
    """Return :data:`SCORES` ``(..., head)`` of a pattern ``(..., head, query, key)``: means over its queries.

    ``window`` is how many of the latest tokens a query sees: where none sees position 0, or the previous token, there
    is no such weight, and the score is NaN; so are all scores of a text of fewer than three tokens.
    """
    n = pattern.shape[-1]
    place = torch.arange(n, device=pattern.device)
    weights, queries = pattern[..., FIRST_QUERY:, :].float(), place[FIRST_QUERY:]
    back = queries[:, None] - place
    seen = n if window is None else window
    previous = weights.diagonal(FIRST_QUERY - 1, -2, -1)
    return {
        "entropy": torch.special.entr(weights).sum(-1).mean(-1),
        "distance": (weights * back).sum(-1).mean(-1),
        "first_weight": weights[..., queries < seen, 0].mean(-1),
        "previous_score": (previous if seen > 1 else previous[..., :0]).mean(-1),
    }
