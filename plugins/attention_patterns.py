"""Attention patterns: where each head looks, and whether it completes what it has seen before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from zlib import crc32

from xatlas import Inputs, ReadingProbe, Suite, Variable, XatlasError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import xarray as xr
    from torch import Tensor

    from xatlas import HookedModel, Probe
    from xatlas.model import Capture
    from xatlas.prompts.reader import TokenPrompt

_CELL = ("prompt", "layer", "head")


class AttentionPatterns(ReadingProbe):
    """Scores of every attention head's pattern, text by text.

    Definition: means over a text's queries from the third token on (before, position 0 is the previous token or the
    token itself): ``entropy`` of a query's weights; ``distance``, the mean of query minus key position under them;
    ``first_weight``, the weight on position 0, over queries that see it; ``previous_score``, the weight on the token
    before. ``induction_score`` is read on other tokens: ``period`` random ones, no two alike and none special, drawn
    by the seed for each prompt, after the prompt's position 0, and then the same again; it is the mean weight, over the
    second time, on the token that followed the query's token the first time. Patterns are those of eager attention,
    read in a pass of their own. A layer without attention has none; where a sliding window hides the keys that a
    score asks for, there is no score.

    Unit: ``entropy`` in nats, ``distance`` in tokens; the others are shares of a query's weight.

    Control: none here; ``attention_profile`` holds them against attention that is spread evenly, and untrained twins.

    Source: Olsson et al. 2209.11895; Xiao et al. 2309.17453.
    """

    name = "attention_patterns"
    version = 1
    sites = ("attention_pattern",)
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "entropy": Variable(_CELL, "nats", "mean entropy of a query's weights"),
        "distance": Variable(_CELL, "token", "mean distance between query and key"),
        "first_weight": Variable(_CELL, "1", "mean weight on position 0"),
        "previous_score": Variable(_CELL, "1", "mean weight on the previous token"),
        "induction_score": Variable(_CELL, "1", "mean weight on what followed the same random token before"),
    }

    @dataclass(frozen=True)
    class Parameters:
        """What is measured."""

        period: int = 24  # random tokens that are repeated

        def __post_init__(self) -> None:
            if self.period < 2:
                raise XatlasError(f"attention_patterns.period = {self.period} does not fit: it takes 2 or more tokens.")

    def start(self, model: HookedModel, suite: Suite, inputs: Inputs) -> None:
        """Make room for every prompt, and draw the tokens that are repeated."""
        import numpy as np

        self.model, self.inputs = model, inputs
        self.tokens = model.read(suite)
        self.heads = max((layout.n_heads for layout in model.head_layouts if layout is not None), default=1)
        shape = (len(self.tokens), model.n_layers, self.heads)
        self.scores = {name: np.full(shape, np.nan) for name in self.variables}
        self.repeated = _repeated(model, self.tokens.prompts, self.parameters.period, inputs.seed)

    def update(self, capture: Capture) -> None:
        """Score the patterns of one bucket."""
        from xatlas.probing.reading import head_scores

        for site, pattern in capture.values.items():
            for name, values in head_scores(pattern, self.model.adapter.window(site.layer)).items():
                self._put(name, capture, site.layer, values.cpu().numpy())

    def finish(self) -> xr.Dataset:
        """Run the repeated tokens, and return the scores ``(prompt, layer, head)``."""
        from xatlas.probing.ablation import model_heads
        from xatlas.probing.reading import captured
        from xatlas.schema import label, layer_coords, suite_coords

        period, sites = self.parameters.period, self.model.sites("attention_pattern")
        done = 0
        for batch in captured(self.model, self.repeated, sites) if sites else ():
            for site, pattern in batch.values.items():
                values = induction_score(pattern, period, self.model.adapter.window(site.layer))
                self._put("induction_score", batch, site.layer, values.cpu().numpy())
            done += len(batch.prompts)
            self.inputs.progress("reading repeated tokens", done, len(self.repeated))
        return label(
            self.variables,
            self.scores,
            {
                **suite_coords(self.tokens),
                **layer_coords(self.model.operator_types),
                **model_heads(self.model, range(self.heads)),
            },
            absent=self._absent(),
            dropped=self.tokens.dropped,
        ).assign_attrs(period=period)

    def _put(self, name: str, capture: Capture, layer: int, values: np.ndarray) -> None:
        self.scores[name][list(capture.index), layer, : values.shape[1]] = values

    def _absent(self) -> dict[str, str]:
        """Return why scores are NaN: no attention, fewer heads, a short text, a window that hides the key."""
        from xatlas.probing.reading import FIRST_QUERY, SCORES
        from xatlas.schema import cells

        model, period, absent = self.model, self.parameters.period, dict[str, str]()
        reads = {site.layer for site in model.sites("attention_pattern")}
        bare = [layer for layer in range(model.n_layers) if layer not in reads]
        if bare:
            absent[cells(layer=bare)] = "layers without attention have no pattern"
        for layer in reads:
            layout = model.head_layouts[layer]
            if layout is not None and layout.n_heads < self.heads:
                absent[cells(layer=[layer], head=range(layout.n_heads, self.heads))] = "the layer has fewer heads"
        short = sum(len(prompt.ids) <= FIRST_QUERY for prompt in self.tokens.prompts)
        if short:
            absent |= dict.fromkeys(SCORES, f"{short} of {len(self.tokens)} prompts have fewer than three tokens")
        needed = {"first_weight": FIRST_QUERY + 1, "previous_score": 2, "induction_score": period}
        for name, least in needed.items():
            windows = {layer: model.adapter.window(layer) for layer in reads}
            blind = [layer for layer, window in windows.items() if window is not None and window < least]
            if blind:
                listed = ", ".join(map(str, sorted(blind)))
                hidden = f"a query in layers {listed} sees too few tokens: its window is shorter than {least}"
                absent[name] = f"{absent[name]}; {hidden}" if name in absent else hidden
        return absent


def _repeated(model: HookedModel, prompts: Sequence[TokenPrompt], period: int, seed: int) -> list[TokenPrompt]:
    """Return for each prompt its position 0 and ``period`` random tokens, twice; none depends on another prompt."""
    import numpy as np

    reader = model.reader
    assert reader is not None
    special = {*reader.tokenizer.all_special_ids, *reader.tokenizer.added_tokens_decoder}
    usable = np.setdiff1d(np.arange(min(len(reader.tokenizer), reader.vocabulary)), list(special))
    room = len(usable) if reader.context is None else min(len(usable), (reader.context - 1) // 2)
    if period > room:
        what = f"attention_patterns.period = {period} is too long for this model"
        raise XatlasError(f"{what}: it can read {room} different tokens twice.")
    begin = () if reader.first_token is None else (reader.first_token,)
    found = []
    for prompt in prompts:
        rng = np.random.default_rng([seed, crc32(prompt.prompt.id.encode())])
        drawn = rng.choice(usable, period, replace=False).tolist()
        ids = (*begin, *drawn, *drawn)
        found.append(replace(prompt, ids=ids, n_text=len(ids), readout=len(ids) - 1, target_ids=(), subject=()))
    return found


def induction_score(pattern: Tensor, period: int, window: int | None = None) -> Tensor:
    """Return ``(..., head)``: a pattern's mean weight on the token that followed the query's token a period before.

    The pattern ``(..., head, query, key)`` is one of ``period`` tokens and the same again; what stands before them
    does not matter. NaN where no query sees so far.
    """
    followed = pattern.float().diagonal(1 - period, -2, -1)[..., -period:]
    return (followed if window is None or window >= period else followed[..., :0]).mean(-1)


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [AttentionPatterns]
