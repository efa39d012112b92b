"""One walk over the layers, for many conditions at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from xatlas.contracts.adapter import Site
from xatlas.engine.last_position import Past, StepCache
from xatlas.errors import XatlasError
from xatlas.interventions import Condition, Intervention, edit
from xatlas.model.hold import is_held
from xatlas.model.hooks import Editor, Hook, attached, keeper
from xatlas.vocabulary import WRITES, forward_order

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.interventions import Condition, Intervention
    from xatlas.model import HookedModel
    from xatlas.model.hooks import CleanRun
    from xatlas.prompts.reader import TokenPrompt


class BucketScene:
    """The scene of one bucket: prompts of equal length, and the other runs that changes look at.

    Values that the clean run didn't keep are captured when the first change at their layer asks for them, by one
    more call of the clean layer, and forgotten when the walk goes on: never more than one layer's are held.

    Parameters
    ----------
    model : HookedModel
        The model.
    prompts : sequence of TokenPrompt
        The bucket's rows.
    clean : CleanRun
        The recorded pass; its first rows are the prompts, the others belong to other runs.
    rows : mapping of str to Tensor
        Other run → the recorded row that stands in for each prompt ``(prompt,)``.
    means : mapping of Site to Tensor
        Reference means ``(2, ...)``, on the model's device.
    seed : int
        Seed of random directions.
    past : Past, optional
        Given where only the last position of every prompt is run.
    """

    def __init__(
        self,
        model: HookedModel,
        prompts: Sequence[TokenPrompt],
        clean: CleanRun,
        rows: Mapping[str, Tensor],
        means: Mapping[Site, Tensor],
        seed: int,
        past: Past | None = None,
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.recorded = clean
        self.rows = rows
        self.means = means
        self.seed = seed
        self.past = past
        self._layer = -1
        self._values: dict[Site, Tensor] = {}
        self._masks: dict[str, Tensor | None] = {"all": None}
        self._kinds: dict[int, tuple[str, ...]] = {}

    @property
    def length(self) -> int:
        """Positions that are run in every prompt."""
        return self.recorded.final.shape[1]

    @property
    def offset(self) -> int:
        """Positions before the first that is run."""
        return len(self.prompts[0].ids) - self.length

    def expect(self, conditions: Sequence[Condition]) -> None:
        """Learn which kinds the changes of a walk look at, so that each layer is captured once."""
        kinds: dict[int, set[str]] = {}
        for site in [] if self.recorded.values else sites_seen(conditions):  # the record has all of them or none
            kinds.setdefault(site.layer, set()).add(site.kind)
        self._kinds = {layer: tuple(sorted(found)) for layer, found in kinds.items()}
        self._layer = -1

    def clean_input(self, layer: int) -> Tensor:
        """Return the stream entering a layer in the clean run ``(prompt, pos, d_model)``."""
        return self.recorded.inputs[layer][: len(self.prompts)]

    def run_layer(self, layer: int, hidden: Tensor, prompts: int | None = None) -> Tensor:
        """Call a layer on blocks of prompts ``(block * prompt, pos, d_model)``."""
        prompts = prompts or len(self.prompts)
        cache = None if self.past is None else StepCache(self.past, prompts, hidden.shape[0] // prompts)
        return self.model.run_layer(layer, hidden, self.recorded.calls[layer], cache)

    def first(self) -> Tensor:
        """Return which tokens are at position 0 ``(prompt, pos)``."""
        mask = self.mask("first")
        assert mask is not None
        return mask

    def mask(self, positions: str) -> Tensor | None:
        """Return which tokens belong to a position class ``(prompt, pos)``; None stands for all."""
        if positions not in self._masks:
            mask = torch.zeros(len(self.prompts), len(self.prompts[0].ids), dtype=torch.bool)
            for row, prompt in enumerate(self.prompts):
                mask[row, list(prompt.positions(positions))] = True
            self._masks[positions] = mask[:, self.offset :].to(self.model.device)
        return self._masks[positions]

    def mean(self, site: Site) -> Tensor:
        """Return the reference means ``(2, ...)``."""
        if site not in self.means:
            raise XatlasError(f"no reference mean was computed for {site}: pass means that hold it to the sweep.")
        return self.means[site]

    def source(self, site: Site, name: str) -> Tensor:
        """Return a site's values in another run ``(prompt, pos, ...)``."""
        if name not in self.rows:
            raise XatlasError(f"the sweep was not given the run '{name}' that a change looks at.")
        return self._captured(site)[self.rows[name]]

    def clean(self, site: Site) -> Tensor:
        """Return a site's clean values ``(prompt, pos, ...)``."""
        return self._captured(site)[: len(self.prompts)]

    def _captured(self, site: Site) -> Tensor:
        if site in self.recorded.values:
            return self.recorded.values[site]
        if site.layer != self._layer:
            self._values = {}
            self._layer = site.layer
        if site not in self._values:
            kinds = {*self._kinds.get(site.layer, ()), site.kind}
            self._capture_layer(site.layer, [Site(site.layer, kind) for kind in sorted(kinds)])
        return self._values[site]

    def _capture_layer(self, layer: int, sites: Sequence[Site]) -> None:
        with attached([self.model.hook(site, keeper(self._values, site)) for site in sites]):
            hidden = self.recorded.inputs[layer]
            self.run_layer(layer, hidden, prompts=hidden.shape[0])


def sites_seen(conditions: Iterable[Condition]) -> list[Site]:
    """Return the sites whose clean values the changes of a sweep may look at, their own included, in order."""
    found: set[Site] = set()
    for condition in conditions:
        for intervention in condition:
            for needed in (intervention, *nested(intervention)):
                found |= {needed.site, *needed.change.looks_at(needed.site)}
                found.add(Site(needed.site.layer, "resid_post"))
    return sorted(found)


def nested(intervention: Intervention) -> list[Intervention]:
    """Return all interventions that a change looks at, however deep."""
    found: list[Intervention] = []
    for inner in intervention.change.reads():
        found += [inner, *nested(inner)]
    return found


class Walk:
    """Carries the perturbed streams of several conditions through the layers.

    Each condition is a block of rows, one per prompt. It joins at the layer of its first intervention, from
    the clean stream recorded there; no layer before it is recomputed. Blocks travel together, so that a
    layer's weights are read once for as many rows as fit a tile.

    Parameters
    ----------
    model : HookedModel
        The model.
    scene : BucketScene
        The bucket.
    conditions : sequence of Condition
        What is measured; each has at least one intervention.
    tile_tokens : int
        Tokens that go through a layer at a time.
    tails : sequence of int or None
        How many of each layer's last input positions are wanted, see :func:`tails`; None for all.
    """

    def __init__(
        self,
        model: HookedModel,
        scene: BucketScene,
        conditions: Sequence[Condition],
        tile_tokens: int,
        tails: Sequence[int | None],
    ) -> None:
        self.model = model
        self.scene = scene
        self.conditions = conditions
        self.prompts = len(scene.prompts)
        self.tile = max(1, tile_tokens // (self.prompts * scene.length))
        self.tails = tails
        self.ends = [max(part.site.layer for part in condition) for condition in conditions]
        self.starts = [min(part.site.layer for part in condition) for condition in conditions]
        self.touched = torch.zeros(len(conditions), self.prompts, dtype=torch.bool, device=model.device)
        self.streams: dict[int, Tensor] = {}
        self.held = is_held(model)

    def run(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each condition's index and final stream ``(prompt, pos, d_model)``, of which the end may be all.

        ``touched (condition, prompt)`` then says where any intervention changed anything at all: where none
        did, the result is the clean one, exactly.
        """
        self.scene.expect(self.conditions)
        for layer in range(min(self.starts), self.model.n_layers):
            self._layer(layer)
        yield from sorted(self.streams.items())

    def _layer(self, layer: int) -> None:
        plain: list[int] = []
        edited: list[int] = []
        short: list[int] = []  # nothing is done to them any more, and their last positions are enough
        here: dict[int, list[Intervention]] = {}
        for index, condition in enumerate(self.conditions):
            if self.starts[index] > layer:
                continue
            here[index] = [part for part in condition if part.site.layer == layer]
            if self.starts[index] == layer and self._is_written(here[index]):
                continue
            ended = self.ends[index] < layer and self.tails[layer] is not None
            (edited if here[index] else short if ended else plain).append(index)
        # Written conditions need the clean values of this layer, the others must not see them half-built.
        for index, parts in here.items():
            if self.starts[index] == layer and index not in edited:
                self.streams[index] = self._write(index, parts)
        for indices in _tiles(edited + plain, self.tile):
            self._edited(layer, indices, here)
        for indices in _tiles(short, self.tile):
            self._advance(layer, indices, self.tails[layer])

    def _is_written(self, parts: Sequence[Intervention]) -> bool:
        """Whether the layer's output follows from clean values by addition alone.

        That is so for changes of what the layer writes last; and for a change of the operator's output when
        the MLP's is replaced as well, since then nothing depends on what the MLP would have read.
        """
        if self.held:  # what is held may edit the layer's output once more
            return False
        replaced = any(
            part.site.kind == "mlp_out" and part.change.replaces and part.positions == "all" for part in parts
        )
        late = {*WRITES, "operator_out"} if replaced else WRITES
        kinds = [part.site.kind for part in parts]
        return set(kinds) <= late and len(set(kinds)) == len(kinds)

    def _write(self, index: int, parts: Sequence[Intervention]) -> Tensor:
        """Add the changes to the clean output of the layer."""
        stream = self.scene.clean(Site(parts[0].site.layer, "resid_post"))
        for part in sorted(parts, key=lambda part: part.site.kind == "resid_post"):
            if part.site.kind == "resid_post":
                new = edit(part, stream, self.scene)
                self._touch(index, stream, new)
                stream = new
            else:
                clean = self.scene.clean(part.site)
                new = edit(part, clean, self.scene)
                self._touch(index, clean, new)
                stream = stream + (new - clean)
        return stream

    def _advance(self, layer: int, indices: Sequence[int], tail: int | None = None) -> None:
        """Take blocks, or their last positions alone, through the layer."""
        blocks = [self.streams[index] if index in self.streams else self.scene.clean_input(layer) for index in indices]
        if tail is not None:
            blocks = [block[:, -tail:] for block in blocks]
        hidden = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
        output = self.scene.run_layer(layer, hidden)
        for index, block in zip(indices, torch.split(output, self.prompts), strict=True):
            self.streams[index] = block

    def _edited(self, layer: int, indices: Sequence[int], here: dict[int, list[Intervention]]) -> None:
        """Take blocks through the layer under hooks, each block edited by its own interventions, if any."""
        by_site: dict[Site, list[tuple[int, Intervention]]] = {}
        for block, index in enumerate(indices):
            for part in here[index]:
                by_site.setdefault(part.site, []).append((block, part))
        # Captured before the hooks are in place: capturing calls the same layer.
        for site in by_site:
            self.scene.clean(site)
        pairs: list[Hook] = []
        # Two edits may hook one module, where they run in the order of their hooks.
        for site, edits in sorted(by_site.items(), key=lambda item: forward_order(item[0].kind)):
            pairs += self.model.edit_hooks(site, self._editor(edits, indices))
        with attached(pairs):
            self._advance(layer, indices)

    def _editor(self, edits: Sequence[tuple[int, Intervention]], indices: Sequence[int]) -> Editor:
        def change(value: Tensor) -> Tensor:
            result = value.clone()
            for block, part in edits:
                rows = slice(block * self.prompts, (block + 1) * self.prompts)
                before = result[rows]
                new = edit(part, before, self.scene)
                self._touch(indices[block], before, new)
                result[rows] = new
            return result

        return change

    def _touch(self, index: int, before: Tensor, after: Tensor) -> None:
        self.touched[index] |= (before != after).flatten(1).any(1)


def tails(model: HookedModel, read: int) -> list[int | None]:
    """Return how many of each layer's last input positions decide the last ``read`` outputs; None for all.

    By causality, what stands before them is of no use to what is read: a convolution at the end needs a few
    positions, and only attention needs them all.
    """
    wanted: int | None = read
    found: list[int | None] = []
    for layer in reversed(range(model.n_layers)):
        field = model.adapter.receptive_field(layer)
        wanted = None if field is None or wanted is None else wanted + field - 1
        found.append(wanted)
    return found[::-1]


def _tiles(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
