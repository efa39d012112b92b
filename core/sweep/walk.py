"""One walk over the layers, for many conditions at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from xatlas.interventions import Condition, Intervention, edit
from xatlas.model.hooks import Editor, Hook, attached
from xatlas.model.live import is_held
from xatlas.sites import WRITES, Site, forward_order

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.model import HookedModel
    from xatlas.sweep.scene import BucketScene


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
        reach = model.adapter.reach(layer)
        wanted = None if reach is None or wanted is None else wanted + reach - 1
        found.append(wanted)
    return found[::-1]


def _tiles(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
