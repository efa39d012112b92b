"""Similarity of layers: debiased linear CKA at word ends, and the Gram matrices that compare models without them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xatlas import Inputs, ReadingProbe, Suite, Variable, XatlasError, hookimpl

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from xatlas import HookedModel, Probe
    from xatlas.model import Capture
    from xatlas.suites import Prompt

VARIANTS = ("all", "trimmed")
#: Fewest word ends that CKA is estimated from.
LEAST = 200
#: Share of a token's squared norm above which one coordinate of it is massive.
MASSIVE = 0.1
#: Bits of a float32 that are not kept of a Gram matrix: what is left is 2e-4 of an entry, and takes half the room.
_DROPPED_BITS = 11
_BARE = "all samples are alike, or more than half of the coordinates are massive: so narrow a stream can't be trimmed"
_WORD = re.compile(r"\w+(?:['’]\w+)*")


class CKA(ReadingProbe):
    """Centered kernel alignment of the streams that layers leave, at word ends of the text.

    Definition: debiased linear CKA (unbiased HSIC, normalised) of ``resid_post`` of at most 16 layers, evenly spaced.
    Samples are word ends, drawn by the seed from the text alone: 1,000, or all there are; fewer than 200 are refused.
    Those with the same text before them are one, for a causal model sees nothing else. A model reads the token that
    holds a word's last character, so that models of any two tokenizers can be compared at the same samples. Variant
    ``all`` is everything; ``trimmed`` leaves out position 0 and massive coordinates: those that hold more than 10 % of
    any sampled token's squared norm in that layer; it is NaN where they are more than half. ``gram`` holds centred Gram
    matrices: the lower triangle, rounded to 12 bits.

    Unit: ``cka`` without; ``gram`` in squared units of the stream.

    Control: ``cka_null_q95``, below which 95 % lie when the prompts of one layer are permuted as wholes.

    Source: Kornblith et al. 1905.00414; Song et al. 2012; Davari et al. 2210.16156; Murphy et al. 2405.01012.
    """

    name = "cka"
    version = 1
    sites = ("resid_post",)
    replicate = None
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "gram": Variable(("variant", "layer", "sample", "sample_other"), "1", "centred Gram matrix, lower triangle"),
        "cka": Variable(("variant", "layer", "layer_other"), "1", "debiased linear CKA"),
        "cka_null_q95": Variable(
            ("variant", "layer", "layer_other"), "1", "95 % quantile of CKA with whole prompts permuted"
        ),
    }

    @dataclass(frozen=True)
    class Parameters:
        """How much is sampled.

        Parameters
        ----------
        samples : int
            Word ends; all there are where the suite has fewer.
        layers : int
            Layers that are compared, evenly spaced from the first to the last.
        permutations : int
            Permutations of whole prompts; both orders of two layers count.
        """

        samples: int = 1000
        layers: int = 16
        permutations: int = 50

        def __post_init__(self) -> None:
            for name, least in (("samples", LEAST), ("layers", 1), ("permutations", 20)):
                if getattr(self, name) < least:
                    raise XatlasError(f"cka.{name} = {getattr(self, name)} does not fit: it takes {least} or more.")

    def start(self, model: HookedModel, suite: Suite, inputs: Inputs) -> None:
        """Choose samples and layers, and make room for them."""
        import numpy as np

        chosen = word_ends(suite, self.parameters.samples, inputs.seed)
        if len(chosen) < LEAST:
            raise XatlasError(
                f"cka needs {LEAST} word ends, and suite '{suite.name}' has {len(chosen)}: take a larger one."
            )
        self.model, self.tokens, self.seed = model, model.read(suite), inputs.seed
        assert model.reader is not None
        ends: dict[str, list[int]] = {}
        for prompt, end in chosen:
            ends.setdefault(prompt.id, []).append(end)
        self.labels: list[str] = []  # of samples
        self.rows: list[int] = []  # of each, its prompt among those that the model reads
        self.at: list[int] = []  # and its token
        for row, tokens in enumerate(self.tokens.prompts):
            own = ends.get(tokens.prompt.id, [])
            for end, at in zip(own, model.reader.tokens_at(tokens.prompt, own), strict=True):
                if at is not None:
                    self.labels.append(f"{tokens.prompt.id}:{end}")
                    self.rows.append(row)
                    self.at.append(at)
        if len(self.labels) < LEAST:
            held = f"{len(self.labels)} of {len(chosen)} word ends in suite '{suite.name}'"
            raise XatlasError(f"cka needs {LEAST} word ends, and the model reads {held}: take a larger suite.")
        self.layers = evenly(model.n_layers, self.parameters.layers)
        self.features = np.zeros((len(self.layers), len(self.labels), model.d_model), dtype=np.float32)

    def update(self, capture: Capture) -> None:
        """Keep the streams at the sampled tokens."""
        import torch

        within = {row: place for place, row in enumerate(capture.index)}
        found = [(sample, within[row], self.at[sample]) for sample, row in enumerate(self.rows) if row in within]
        if not found:
            return
        samples, rows, at = (torch.tensor(each) for each in zip(*found, strict=True))
        for site, value in capture.values.items():
            if site.layer in self.layers:
                kept = value[rows.to(value.device), at.to(value.device)].float().cpu()
                self.features[self.layers.index(site.layer), samples.numpy()] = kept.numpy()

    def finish(self) -> xr.Dataset:
        """Return Gram matrices, CKA and its null."""
        import numpy as np

        from xatlas.prompts.reader import TokenSuite
        from xatlas.schema import cells, label, suite_coords

        n, k, types = len(self.labels), len(self.layers), self.model.operator_types
        gram = np.full((len(VARIANTS), k, n, n), np.nan, dtype=np.float32)
        cka, null = np.full((2, len(VARIANTS), k, k), np.nan)
        absent = {"gram": "it is symmetric: the lower triangle is stored, without samples that trimming leaves out"}
        for place, variant in enumerate(VARIANTS):
            cka[place], null[place] = self._similarity(variant, gram[place])
            bare = [layer for layer, own in zip(self.layers, cka[place].diagonal(), strict=True) if np.isnan(own)]
            for dim in ("layer", "layer_other") if bare else ():
                absent[cells(variant=[variant], **{dim: bare})] = _BARE
        read = [self.tokens.prompts[row] for row in sorted(set(self.rows))]
        coords: dict[str, Any] = {
            **suite_coords(TokenSuite(tuple(read))),
            "variant": list(VARIANTS),
            "layer": self.layers,
            "depth": ("layer", np.array(self.layers) / max(self.model.n_layers - 1, 1)),
            "operator_type": ("layer", [types[layer] for layer in self.layers]),
            "layer_other": self.layers,
            "sample": self.labels,
            "sample_prompt": ("sample", [self.tokens.prompts[row].prompt.id for row in self.rows]),
            "sample_other": self.labels,
        }
        arrays = {"gram": gram, "cka": cka, "cka_null_q95": null}
        return label(self.variables, arrays, coords, absent=absent, dropped=self.tokens.dropped)

    def _similarity(self, variant: str, stored: np.ndarray) -> tuple[Any, Any]:
        """Return CKA and the 95 % quantile of its null; put triangles into ``stored (layer, sample, sample_other)``."""
        import numpy as np

        from xatlas.similarity import Grams, gram

        kept = np.flatnonzero([variant == "all" or at > 0 for at in self.at])
        lower = np.tril_indices(len(kept))
        values = np.zeros((len(self.layers), len(kept), len(kept)))
        for place, features in enumerate(self.features[:, kept]):
            values[place] = gram(features if variant == "all" else trimmed(features))
            stored[place, kept[lower[0]], kept[lower[1]]] = rounded(values[place][lower])
        grams = Grams(values, np.array(self.rows)[kept])
        del values  # as large as all that follows
        null = grams.null(grams, self.parameters.permutations, self.seed)
        both = np.concatenate([null, null.swapaxes(1, 2)])
        return grams.cka(grams), np.quantile(both, 0.95, axis=0)


def word_ends(suite: Suite, count: int, seed: int) -> list[tuple[Prompt, int]]:
    """Return prompts and the ends of words in them, in order: those that the seed and the text before each choose."""
    from xatlas.files import sha256

    found: dict[str, tuple[int, Prompt, int]] = {}  # text up to the word's end → where it stands first
    for place, prompt in enumerate(suite):
        for word in _WORD.finditer(prompt.text):
            found.setdefault(prompt.text[: word.end()], (place, prompt, word.end()))
    chosen = sorted(found, key=lambda text: sha256(f"{seed}\n{text}".encode()))[:count]
    return [(prompt, end) for _, prompt, end in sorted((found[text] for text in chosen), key=lambda each: each[::2])]


def evenly(n_layers: int, most: int) -> list[int]:
    """Return at most so many layers, evenly spaced, the first and the last among them."""
    count = min(most, n_layers)
    return [round(i * (n_layers - 1) / max(count - 1, 1)) for i in range(count)]


def trimmed(features: np.ndarray) -> np.ndarray:
    """Return features ``(sample, feature)`` without massive coordinates; none of them where that were most."""
    import numpy as np

    squared = np.square(features, dtype=np.float64)
    total = squared.sum(1, keepdims=True)
    massive = (squared > MASSIVE * total).any(0)
    return features[:, ~massive] if massive.mean() <= 0.5 else features[:, :0]


def rounded(values: Any) -> np.ndarray:
    """Return float32 numbers whose last bits are zeros, rounded to the nearest."""
    import numpy as np

    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    half = np.uint32(1 << (_DROPPED_BITS - 1))
    return np.asarray(((bits + half) >> _DROPPED_BITS << _DROPPED_BITS).view(np.float32))


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [CKA]
