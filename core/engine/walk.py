"""One walk over the layers, for many conditions at once; or over the last position alone, on the clean run's cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError
from xatlas.interventions import Condition, Intervention, InterventionContext, edit
from xatlas.metrics import Metric
from xatlas.model import HookedModel
from xatlas.model.holding import is_held
from xatlas.model.hooks import CleanRun, Hook, attached, has_steps, rows_of
from xatlas.prompts.reader import TokenPrompt
from xatlas.vocabulary import WRITES, forward_order


def nested(intervention: Intervention) -> list[Intervention]:
    """Return all interventions that a change reads, however deep."""
    return [each for inner in intervention.change.reads() for each in (inner, *nested(inner))]


def sites_read(conditions: Iterable[Condition]) -> list[Site]:
    """Return the sites whose clean values the changes of a sweep may read, their own included, in order."""
    found: set[Site] = set()
    for condition in conditions:
        for intervention in condition:
            for part in (intervention, *nested(intervention)):
                found |= {part.site, Site(part.site.layer, "resid_post"), *part.change.reads_sites(part.site)}
    return sorted(found)


def needed_positions(model: HookedModel, read: int) -> list[int | None]:
    """Return how many of each layer's last input positions decide the last ``read`` outputs; None (attention): all."""
    needed: int | None = read
    found: list[int | None] = []
    for layer in reversed(range(model.n_layers)):
        field = model.adapter.receptive_field(layer)
        needed = None if field is None or needed is None else needed + field - 1
        found.append(needed)
    return found[::-1]


def is_written(parts: Sequence[Intervention]) -> bool:
    """Whether the output of the layer that a condition changes first follows from clean values by addition alone.

    That is so for changes of what the layer writes last; and for a change of the operator's output when
    the MLP's is replaced as well, since then nothing depends on what the MLP would have read.
    """
    replaced = any(part.site.kind == "mlp_out" and part.change.replaces and part.positions == "all" for part in parts)
    late = {*WRITES, "operator_out"} if replaced else WRITES
    kinds = [part.site.kind for part in parts]
    return set(kinds) <= late and len(set(kinds)) == len(kinds)


# -- the last position alone: everything before it is as in the clean run, by causality ---------------------------


def is_last_position(part: Intervention) -> bool:
    """Whether an intervention, and all that it reads, is at the readout alone; further sites may be read anywhere."""
    alone = part.positions == "last" and not part.change.reads_sites(part.site)
    return alone and all(is_last_position(inner) for inner in part.change.reads())


def runs_last_position(model: HookedModel, prompts: Sequence[TokenPrompt], metrics: Sequence[Metric]) -> bool:
    """Whether the last position can be run alone: nothing else is read, and a cache counts the positions before it."""
    if is_held(model):  # what is held at the newest token would be held at those before it
        return False
    last = len(prompts[0].ids) - 1
    read = {prompt.readout for prompt in prompts}
    read |= {p for metric in metrics for prompt in prompts for p in metric.positions(prompt)}
    return has_steps(model) and last > 0 and read == {last}


# -- all positions ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class BucketContext(InterventionContext):
    """The context of one bucket: prompts of equal length, and the other runs that changes read."""

    model: HookedModel
    prompts: Sequence[TokenPrompt]
    recorded: CleanRun  # its first rows are the prompts, the others belong to other runs
    rows: Mapping[str, Tensor]  # other run → the recorded row that stands in for each prompt (prompt,)
    conditions: Sequence[Condition]
    means: Mapping[Site, Tensor]
    seed: int
    cache: Any = None  # the clean run's, where only the last position of every prompt is run

    def __post_init__(self) -> None:
        self.length = self.recorded.final.shape[1]  # positions that are run in every prompt
        self.offset = len(self.prompts[0].ids) - self.length  # positions before the first that is run
        self.names = [prompt.prompt.id for prompt in self.prompts]
        # the record has all that is read or none of it: each layer is then captured once
        self._read = [] if self.recorded.values else sites_read(self.conditions)
        self._values: dict[Site, Tensor] = {}  # of one layer
        self._masks: dict[str, Tensor | None] = {"all": None}

    def run_layer(self, layer: int, hidden: Tensor, prompts: int) -> Tensor:
        """Call a layer on blocks of ``prompts`` rows ``(block * prompt, pos, d_model)``."""
        cache = self.cache
        if cache is not None:
            cache = rows_of(cache, torch.arange(len(hidden), device=hidden.device) % prompts)
        return self.model.run_layer(layer, hidden, self.recorded.calls[layer], prompts, cache)

    def mask(self, positions: str) -> Tensor | None:
        if positions not in self._masks:
            mask = torch.zeros(len(self.prompts), len(self.prompts[0].ids), dtype=torch.bool)
            for row, prompt in enumerate(self.prompts):
                mask[row, list(prompt.positions(positions))] = True
            self._masks[positions] = mask[:, self.offset :].to(self.model.device)
        return self._masks[positions]

    def source(self, site: Site, name: str) -> Tensor:
        if name not in self.rows:
            raise XatlasError(f"the sweep was not given the run '{name}' that a change reads.")
        return self._captured(site)[self.rows[name]]

    def clean(self, site: Site) -> Tensor:
        return self._captured(site)[: len(self.prompts)]

    def _captured(self, site: Site) -> Tensor:
        """Return what the clean run kept; what it didn't is captured by one more call, a layer's sites at a time."""
        if site in self.recorded.values:
            return self.recorded.values[site]
        if site not in self._values:
            if any(other.layer != site.layer for other in self._values):
                self._values = {}
            wanted = {site, *(other for other in self._read if other.layer == site.layer)} - set(self._values)
            with attached([self.model.hook(each, partial(self._values.__setitem__, each)) for each in sorted(wanted)]):
                hidden = self.recorded.inputs[site.layer]
                self.run_layer(site.layer, hidden, hidden.shape[0])
        return self._values[site]


@dataclass(eq=False)
class Walk:
    """Carries the perturbed streams of several conditions through the layers.

    Each condition is a block of rows, one per prompt, which joins at the layer of its first intervention from the
    clean stream recorded there. Blocks travel together, so that a layer's weights are read once for as many rows as
    fit a tile of ``tile_tokens``. ``needed`` is what :func:`needed_positions` returns.
    """

    context: BucketContext
    conditions: Sequence[Condition]
    tile_tokens: int
    needed: Sequence[int | None]

    def __post_init__(self) -> None:
        self.model, self.prompts = self.context.model, len(self.context.prompts)
        self.tile = max(1, self.tile_tokens // (self.prompts * self.context.length))
        self.starts = [min(part.site.layer for part in condition) for condition in self.conditions]
        self.ends = [max(part.site.layer for part in condition) for condition in self.conditions]
        #: Where any intervention changed anything at all ``(condition, prompt)``: elsewhere all is exactly as clean.
        self.touched = torch.zeros(len(self.conditions), self.prompts, dtype=torch.bool, device=self.model.device)
        self.streams: dict[int, Tensor] = {}
        self.held = is_held(self.model)

    def run(self) -> Iterator[Tensor]:
        """Yield each condition's final stream ``(prompt, pos, d_model)``, or the end of it that is needed."""
        for layer in range(min(self.starts), self.model.n_layers):
            self._layer(layer)
        yield from (self.streams[index] for index in range(len(self.conditions)))

    def _layer(self, layer: int) -> None:
        edited: list[int] = []
        plain: list[int] = []
        short: list[int] = []  # nothing is done to them any more, and their last positions are enough
        here: dict[int, list[Intervention]] = {}
        for index, condition in enumerate(self.conditions):
            if self.starts[index] > layer:
                continue
            here[index] = [part for part in condition if part.site.layer == layer]
            # what is held may edit the layer's output once more
            if self.starts[index] == layer and not self.held and is_written(here[index]):
                self.streams[index] = self._write(index, here[index])
            elif here[index]:
                edited.append(index)
            else:
                ended = self.ends[index] < layer and self.needed[layer] is not None
                (short if ended else plain).append(index)
        for indices, last in ((edited + plain, None), (short, self.needed[layer])):
            for start in range(0, len(indices), self.tile):
                self._advance(layer, indices[start : start + self.tile], here, last)

    def _write(self, index: int, parts: Sequence[Intervention]) -> Tensor:
        """Add the changes to the clean output of the layer."""
        stream = self.context.clean(Site(parts[0].site.layer, "resid_post"))
        for part in sorted(parts, key=lambda part: part.site.kind == "resid_post"):
            whole = part.site.kind == "resid_post"
            before = stream if whole else self.context.clean(part.site)
            after = self._edit(index, part, before)
            stream = after if whole else stream + (after - before)
        return stream

    def _edit(self, index: int, part: Intervention, before: Tensor) -> Tensor:
        """Return a condition's value after one of its interventions, and note which prompts it changed."""
        after = edit(part, before, self.context)
        self.touched[index] |= (before != after).flatten(1).any(1)
        return after

    def _advance(
        self, layer: int, indices: Sequence[int], here: Mapping[int, Sequence[Intervention]], last: int | None = None
    ) -> None:
        """Take blocks, or their last positions alone, through the layer, each edited by its own interventions."""
        by_site: dict[Site, list[tuple[int, Intervention]]] = {}
        for block, index in enumerate(indices):
            for part in here[index]:
                by_site.setdefault(part.site, []).append((block, part))
        # Captured before the hooks are in place: capturing calls the same layer.
        for site in by_site:
            self.context.clean(site)
        hooks: list[Hook] = []
        # Two edits may hook one module, where they run in the order of their hooks.
        for site in sorted(by_site, key=lambda site: forward_order(site.kind)):
            hooks += self.model.edit_hooks(site, partial(self._change, by_site[site], indices))
        clean = self.context.recorded.inputs[layer][: self.prompts]
        blocks = [self.streams.get(index, clean) for index in indices]
        if last is not None:
            blocks = [block[:, -last:] for block in blocks]
        with attached(hooks):
            output = self.context.run_layer(layer, torch.cat(blocks) if len(blocks) > 1 else blocks[0], self.prompts)
        self.streams |= zip(indices, torch.split(output, self.prompts), strict=True)

    def _change(self, edits: Sequence[tuple[int, Intervention]], indices: Sequence[int], value: Tensor) -> Tensor:
        """Return a tile's value ``(block * prompt, pos, ...)`` with each block's interventions made."""
        result = value.clone()
        for block, part in edits:
            rows = slice(block * self.prompts, (block + 1) * self.prompts)
            result[rows] = self._edit(indices[block], part, result[rows])
        return result
