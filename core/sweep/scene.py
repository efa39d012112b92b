"""What changes may look at during a sweep: clean values, other runs, means, position masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from xatlas.errors import XatlasError
from xatlas.model.hooks import attached, keeper
from xatlas.sites import Site
from xatlas.sweep.step import Past, StepCache

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.interventions import Condition, Intervention
    from xatlas.model import HookedModel
    from xatlas.model.record import CleanRun
    from xatlas.prompts import TokenPrompt


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
