"""Patching: clean and corrupted pairs of a suite, values put from one run into the other, and a first-order guess."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from xatlas.contracts.adapter import Site
from xatlas.contracts.probe import Inputs, Variable
from xatlas.engine.schedule import Budget
from xatlas.engine.sweep import named_sweep
from xatlas.errors import XatlasError, unknown
from xatlas.interventions import FromRun, Intervention
from xatlas.metrics import LogitDifference
from xatlas.model import HookedModel
from xatlas.model.hooks import attached, exclusive
from xatlas.probing.ablation import Grid, matched_control
from xatlas.probing.means import noise_floor
from xatlas.probing.reading import absent_positions, without_tokens
from xatlas.prompts.reader import TokenPrompt, TokenSuite, buckets
from xatlas.schema import cells, label, layer_coords, suite_coords
from xatlas.suites import Suite
from xatlas.vocabulary import READ_ONLY, PatchMode

#: Smallest demand on what clean and corrupted run prefer, in logits: recovery divides by their difference.
LEAST_DEMAND = 0.01
#: Prompts whose logits are held at once.
_AT_ONCE = 32
#: Tensors as large as the stream that a layer keeps for the backward pass, roughly.
_KEPT = 32
#: The name of the run that values are taken from.
_SOURCE = "source"
#: Sites behind the layer's operator: what is there at one position reaches others in later layers only.
_MIXED = frozenset({"operator_out", "resid_mid", "mlp_out", "resid_post"})


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupted prompt up to the readout, token by token alike but for what differs."""

    clean: TokenPrompt
    corrupt: TokenPrompt  # answer and foil_answer of both are the clean prompt's


@dataclass(frozen=True)
class Pairs:
    """The pairs of a suite that one model can be patched on, in the suite's order."""

    pairs: tuple[Pair, ...]
    clean: np.ndarray  # (prompt,): target's minus foil's logit at the readout of the clean run
    corrupt: np.ndarray  # (prompt,): the same of the corrupted run
    dropped: dict[str, str]  # prompt id → why it was left out

    def __len__(self) -> int:
        return len(self.pairs)

    def normalised(self, change: xr.DataArray) -> xr.DataArray:
        """Return changes of the logit difference ``(prompt, ...)`` as shares of that from corrupted to clean run."""
        return change / xr.DataArray(self.clean - self.corrupt, dims="prompt")

    def take(self, count: int) -> Pairs:
        """Return about ``count`` pairs, spread evenly over the suite; all of them where there are fewer."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int))
        return Pairs(tuple(self.pairs[i] for i in chosen), self.clean[chosen], self.corrupt[chosen], self.dropped)


def read_pairs(model: HookedModel, suite: Suite, least: float) -> Pairs:
    """Tokenise clean and corrupted texts, and keep the pairs on which patching says something; there must be some.

    In the clean run the target must lead the foil by ``least`` logits, in the corrupted run the foil the target.
    """
    if not least >= LEAST_DEMAND:
        why = "recovery divides by what clean and corrupt run differ in."
        raise XatlasError(f"least = {least:g} does not fit: it takes at least {LEAST_DEMAND:g} logits, for {why}")
    usable = [prompt for prompt in suite if prompt.foil is not None and prompt.corrupt_text is not None]
    if not usable:
        have = {field: [p.family for p in suite if getattr(p, field) is not None] for field in ("foil", "corrupt_text")}
        told = "; ".join(f"with a {field}: {', '.join(dict.fromkeys(own)) or 'none'}" for field, own in have.items())
        what = f"suite '{suite.name}' has no prompt with both a foil and a corrupt twin, which patching needs"
        raise XatlasError(f"{what}. Families {told}.")
    tokens = model.read(usable)
    unpaired = {prompt.id for prompt in suite} - {prompt.id for prompt in usable}
    dropped = dict.fromkeys(sorted(unpaired), "no foil or no corrupt twin") | tokens.dropped
    pairs = [_pair(model, prompt) for prompt in tokens.prompts]
    dropped |= {p.prompt.id: pair for p, pair in zip(tokens.prompts, pairs, strict=True) if isinstance(pair, str)}
    found = [pair for pair in pairs if isinstance(pair, Pair)]
    clean = logit_differences(model, [pair.clean for pair in found])
    corrupt = logit_differences(model, [pair.corrupt for pair in found])
    kept = []
    for i, pair in enumerate(found):
        if not np.isfinite([clean[i], corrupt[i]]).all():
            dropped[pair.clean.prompt.id] = f"logits were not finite{model.overflow}"
        elif clean[i] < least:
            dropped[pair.clean.prompt.id] = f"the clean run does not prefer the target by {least:g} logits"
        elif corrupt[i] > -least:
            dropped[pair.clean.prompt.id] = f"the corrupt run does not prefer the foil by {least:g} logits"
        else:
            kept.append(i)
    if not kept:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in Counter(dropped.values()).most_common())
        raise XatlasError(f"no pair can be patched, all {len(dropped)} are dropped: {reasons}.")
    return Pairs(tuple(found[i] for i in kept), clean[kept], corrupt[kept], dropped)


def _pair(model: HookedModel, clean: TokenPrompt) -> Pair | str:
    """Return a tokenised prompt with its corrupted one, or why they can't be patched into each other."""
    prompt, span = clean.prompt, clean.prompt.subject
    assert model.reader is not None
    assert prompt.corrupt_text is not None
    if span is not None:
        end = span[1] + len(prompt.corrupt_text) - len(prompt.text)
        span = (span[0], end) if end > span[0] else None
    # the right answer to the corrupted text is the foil
    twin = replace(prompt, text=prompt.corrupt_text, corrupt_text=prompt.text, target=prompt.foil, foil=prompt.target)
    corrupt = model.reader.prompt(replace(twin, subject=span))
    if isinstance(corrupt, str):
        return f"the twin can't be read: {corrupt}"
    if clean.n_text != corrupt.n_text:
        return "text and twin differ in token length"
    end = clean.readout + 1
    if corrupt.readout != clean.readout or clean.ids[clean.n_text : end] != corrupt.ids[corrupt.n_text : end]:
        return "target and foil part at another token after the twin"
    if (corrupt.answer, corrupt.foil_answer) != (clean.foil_answer, clean.answer):
        return "target and foil are other tokens after the twin"
    if clean.ids[:end] == corrupt.ids[:end]:
        return "text and twin are the same tokens"
    if clean.positions("subject") != corrupt.positions("subject"):
        return "the subject lies at other tokens in the twin"
    return Pair(replace(clean, ids=clean.ids[:end]), replace(clean, ids=corrupt.ids[:end], subject=corrupt.subject))


def _logit_difference(model: HookedModel, final: Tensor, prompts: Sequence[TokenPrompt]) -> Tensor:
    """Return target's minus foil's logit ``(prompt,)`` after the last position of ``final (prompt, pos, d_model)``."""
    logits, rows = model.logits(final[:, -1]), range(len(prompts))
    answers, foils = [prompt.answer for prompt in prompts], [prompt.foil_answer for prompt in prompts]
    return logits[rows, answers] - logits[rows, foils]


@torch.inference_mode()
def logit_differences(model: HookedModel, prompts: Sequence[TokenPrompt]) -> np.ndarray:
    """Return target's minus foil's logit at the readout ``(prompt,)`` of prompts that end there."""
    result = np.full(len(prompts), np.nan)
    last = Site(model.n_layers - 1, "resid_post")
    for group in buckets([len(prompt.ids) for prompt in prompts], lambda _: _AT_ONCE):
        some = [prompts[i] for i in group]
        final = model.capture(model.tokens(some), [last])[last]
        result[group] = _logit_difference(model, final, some).double().cpu().numpy()
    return result


#: Those of no suite: what is patched can be counted without any.
NO_PAIRS = Pairs((), np.zeros(0), np.zeros(0), {})


@dataclass(frozen=True)
class Patching:
    """What is patched: the pairs of a suite in one model, at site kinds and position classes (or ``all``)."""

    model: HookedModel
    pairs: Pairs
    sites: Sequence[str]
    positions: Sequence[str]

    def __post_init__(self) -> None:
        layers = range(self.model.n_layers)
        kinds = {kind for layer in layers for kind in self.model.points[layer]} - READ_ONLY
        for kind in self.sites:
            if kind not in kinds | {"resid_mid", "mlp_out"}:  # which a block may lack
                raise unknown("site kind", kind, kinds)

    @property
    def labels(self) -> dict[str, list[Any]]:
        """What values are measured of: dimension → labels."""
        layers = list(range(self.model.n_layers))
        return {"layer": layers, "site": list(self.sites), "position": list(self.positions)}

    @cached_property
    def without(self) -> dict[str, np.ndarray]:
        """Position class → which pairs have no token of it ``(prompt,)``."""
        return without_tokens([pair.clean for pair in self.pairs.pairs], self.positions)

    def dataset(self, variables: Mapping[str, Variable], arrays: Mapping[str, Any], **more: Any) -> xr.Dataset:
        """Label arrays of the pairs; ``more`` are labels of further dimensions, and reasons in ``absent``."""
        absent = absent_positions(self.without) | more.pop("absent", {})
        for kind in self.sites:
            bare = [layer for layer in self.labels["layer"] if not self.model.has(Site(layer, kind))]
            if bare:
                reason = f"{len(bare)} of {self.model.n_layers} layers have no {kind}"
                absent[cells(site=[kind], layer=bare)] = reason
        tokens = TokenSuite(tuple(pair.clean for pair in self.pairs.pairs), self.pairs.dropped)
        coords = self.labels | suite_coords(tokens) | layer_coords(self.model.operator_types) | more
        noise = noise_floor(self.model, tokens.prompts)
        return label(variables, arrays, coords, absent=absent, dropped=tokens.dropped, noise_floor=noise)

    def recovery(self, mode: PatchMode, inputs: Inputs, name: str, *, control: bool = True) -> dict[str, xr.DataArray]:
        """Patch every layer, site and position class of every pair, one at a time.

        ``denoise`` puts clean values into the corrupted run, ``noise`` corrupted values into the clean run.
        ``recovery`` and ``recovery_control`` ``(prompt, layer, site, position)`` are the change of the logit difference
        over that between the runs, 1 where all of the answer moves, by the patch and by a random change of its norm.
        """
        names = ("recovery", "recovery_control") if control else ("recovery",)
        grid = self.grid(control)
        runs = [pair.corrupt for pair in self.pairs.pairs], [pair.clean for pair in self.pairs.pairs]
        into, source = runs if mode == "denoise" else runs[::-1]
        change = named_sweep(
            self.model,
            into,
            grid.conditions,
            {"change": LogitDifference(change=True)},
            runs={_SOURCE: [prompt.ids for prompt in source]},
            seed=inputs.seed,
            checkpoint=inputs.checkpoint,
            progress=inputs.progress,
            label=f"{name}, {mode}",
        ).sel(metric="change", drop=True)
        share = self.pairs.normalised(change if mode == "denoise" else -change)
        measured = {each: grid.gather(each, share).where(grid.index(each) >= 0, 0) for each in names}
        return {each: self._where_there(values) for each, values in measured.items()}

    def grid(self, control: bool = True) -> Grid:
        """Return the patches, and a control of each."""
        grid = Grid({each: tuple(self.labels) for each in ("recovery", "recovery_control")}, self.labels)
        for site, position in self._effective():
            cell = {"layer": site.layer, "site": site.kind, "position": position}
            patch = Intervention(site, FromRun(_SOURCE), positions=position)
            grid.add("recovery", cell, patch)
            if control:
                grid.add("recovery_control", cell, matched_control(patch))
        return grid

    def _effective(self) -> Iterator[tuple[Site, str]]:
        """Yield sites and position classes at which a patch can have an effect.

        By causality it is 0 before the runs differ, and in the last layer anywhere but at the readout.
        """
        same_start = all(pair.clean.ids[0] == pair.corrupt.ids[0] for pair in self.pairs.pairs)
        for kind in self.sites:
            for site in self.model.sites(kind):
                late = kind in _MIXED and site.layer == self.model.n_layers - 1
                for name in self.positions:
                    if not (late and name not in ("last", "all")) and not (name == "first" and same_start):
                        yield site, name

    def _where_there(self, values: xr.DataArray) -> xr.DataArray:
        """Return values with their labels, NaN where a layer has no such site or a pair no such token."""
        has = [[self.model.has(Site(layer, kind)) for kind in self.sites] for layer in self.labels["layer"]]
        sites = xr.DataArray(np.array(has, dtype=bool), dims=("layer", "site"))
        names = [pair.clean.prompt.id for pair in self.pairs.pairs]
        without = np.array([self.without[each] for each in self.positions], dtype=bool).reshape(-1, len(names))
        there = sites & ~xr.DataArray(without, dims=("position", "prompt"))
        return values.where(there).assign_coords(self.labels | {"prompt": names})

    def attribution(self) -> xr.DataArray:
        """Return gradient × (clean − corrupted) at the corrupted run, summed over the tokens of each position class.

        It is ``(prompt, layer, site, position)``, over the logit difference between the runs, as recovery is. Two
        forwards and one backward per batch of equal length serve all sites.
        """
        model, pairs = self.model, self.pairs.pairs
        result = np.full((len(pairs), *map(len, self.labels.values())), np.nan)
        wanted = [(site, s) for s, kind in enumerate(self.sites) for site in model.sites(kind)]
        lengths = [len(pair.clean.ids) for pair in pairs]
        row = model.n_layers * model.d_model * 4 * _KEPT
        budget = Budget.for_device(model.device).stream_bytes
        for group in buckets(lengths, lambda length: budget // (row * length)):
            some = [pairs[i] for i in group]
            clean = model.capture(model.tokens([pair.clean for pair in some]), [site for site, _ in wanted])
            there = gradients(model, [pair.corrupt for pair in some], [site for site, _ in wanted])
            masks = torch.zeros(len(some), len(self.positions), len(some[0].clean.ids), dtype=torch.float64)
            for r, p in np.ndindex(*masks.shape[:2]):
                name = self.positions[p]
                masks[r, p, slice(None) if name == "all" else list(some[r].clean.positions(name))] = 1
            masks = masks.to(model.device)  # (prompt, position, pos)
            for site, s in wanted:
                corrupt, gradient = there[site]
                per_token = (gradient * (clean[site] - corrupt)).flatten(2).double().sum(-1)  # (prompt, pos)
                result[group, site.layer, s] = torch.einsum("rp,rcp->rc", per_token, masks).cpu().numpy()
        values = xr.DataArray(result, dims=("prompt", *self.labels))
        return self._where_there(self.pairs.normalised(values))


@exclusive
def gradients(
    model: HookedModel, prompts: Sequence[TokenPrompt], sites: Sequence[Site]
) -> dict[Site, tuple[Tensor, Tensor]]:
    """Return site → value, and gradient by it of the last position's logit difference, ``(prompt, pos, ...)`` both."""
    values: dict[Site, Tensor] = {}
    leaves: dict[Site, Tensor] = {}
    final: list[Tensor] = []

    def read(site: Site, value: Tensor) -> None:
        values[site] = value.detach()

    def add_leaf(site: Site, value: Tensor) -> Tensor:
        """Add zeros to differentiate by; what is added at the site that edits stand for is added to the site itself."""
        leaves[site] = torch.zeros_like(value, requires_grad=True)
        return value + leaves[site]

    hooks = []
    for site in dict.fromkeys(sites):
        edited = Site(site.layer, model.point(site).edit_as or site.kind)
        hooks += [model.hook(site, partial(read, site)), model.hook(edited, partial(add_leaf, site))]
    hooks.append(model.hook(Site(model.n_layers - 1, "resid_post"), final.append))
    with torch.inference_mode(False), torch.enable_grad():
        with attached(hooks):
            model.run(model.tokens(prompts))
        # prompts don't meet in a batch: the gradient of the sum is each one's own
        difference = _logit_difference(model, final[0], prompts).sum()
        found = torch.autograd.grad(difference, list(leaves.values()))
    return {site: (values[site], gradient) for site, gradient in zip(leaves, found, strict=True)}
