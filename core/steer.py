"""Steering one text: directions by name, and a continuation with one added beside the clean one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError, unknown
from xatlas.interventions import Add, Intervention
from xatlas.metrics import kl_divergence
from xatlas.model import HookedModel
from xatlas.model.generation import Way, run_generate
from xatlas.model.hooks import exclusive
from xatlas.probing.directions import contrasts, median_norms, random_direction, readout_values
from xatlas.suites import Suite

#: A dataset, and which of its directions.
_DATASET = re.compile(r"(?P<path>.+\.nc)(?::(?P<name>.+))?")
_RANDOM = re.compile(r"random:(?P<seed>\d+)")


@dataclass(frozen=True)
class Direction:
    """A direction by name: read before a model is loaded, so that a slip of the pen costs nothing."""

    #: ``random:SEED``, ``FILE.npy``, a steering dataset ``FILE.nc:DIRECTION``, or a family of the reference.
    text: str
    values: np.ndarray | None = None  # what the file holds: (d_model,) or (layer, d_model)

    @classmethod
    def read(cls, text: str, reference: Suite) -> Direction:
        """Read or check what ``text`` names."""
        dataset = _DATASET.fullmatch(text)
        if dataset or text.endswith(".npy"):
            path = Path(dataset["path"] if dataset else text)
            if not path.is_file():
                raise XatlasError(f"there is no file '{path}' to read a direction from.")
            return cls(text, _from_dataset(path, dataset["name"]) if dataset else _from_array(path))
        if not _RANDOM.fullmatch(text) and text not in reference.families:
            hint = "Or give random:SEED, a file .npy, or a steering dataset FILE.nc:DIRECTION."
            raise unknown("family", text, reference.families, hint)
        return cls(text)

    def vector(self, model: HookedModel, layer: int, reference: Suite) -> Tensor:
        """Return the unit direction ``(d_model,)`` for one layer of the model."""
        model.point(Site(layer, "resid_post"))
        if found := _RANDOM.fullmatch(self.text):
            return random_direction(model.d_model, int(found["seed"]))
        if self.values is None:
            prompts = model.read(reference).prompts
            made = contrasts(readout_values(model, prompts), [prompt.prompt.family for prompt in prompts])
            if self.text not in made:
                raise XatlasError(f"'{self.text}' has no rest to be told from in suite '{reference.name}'.")
            vector = made[self.text][layer].double()
        else:
            *layers, width = self.values.shape
            if width != model.d_model:
                what = f"the direction in '{self.text}' has {width} numbers, but the model's stream is {model.d_model}"
                raise XatlasError(f"{what} wide: it was made for another model.")
            if layers and layer >= layers[0]:
                raise XatlasError(f"'{self.text}' holds directions for layers 0 to {layers[0] - 1}, not for {layer}.")
            vector = torch.from_numpy((self.values[layer] if layers else self.values).astype(np.float32)).double()
        bad, norm = int((~vector.isfinite()).sum()), vector.norm()
        if bad:
            raise XatlasError(f"the direction in '{self.text}' holds NaN or infinity in {bad} of {model.d_model}.")
        if norm == 0:
            raise XatlasError(f"the direction in '{self.text}' is zero everywhere: it points nowhere.")
        unit: Tensor = vector / norm
        return unit.float()


def _from_array(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise XatlasError(f"'{path}' can't be read as a .npy array: {error}") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or values.ndim not in (1, 2):
        raise XatlasError(f"'{path}' must hold real numbers, shaped (d_model,) or (layer, d_model).")
    return values


def _from_dataset(path: Path, name: str | None) -> np.ndarray:
    """Return ``(layer, d_model)`` of one direction that a dataset keeps as ``direction_vector``."""
    from xatlas.files import hash_path
    from xatlas.results.store import read_entry, read_unproved

    # A dataset of one's own has no hash.
    dataset = read_entry(path, placed=False).dataset() if hash_path(path).exists() else read_unproved(path)
    vectors = dataset.get("direction_vector")
    if vectors is None or vectors.dims != ("direction", "layer", "d_model"):
        raise XatlasError(f"'{path}' keeps no directions: give the file of a steering result.")
    labels = [str(label) for label in vectors["direction"].values]
    if name is None:
        raise XatlasError(f"'{path}' keeps {len(labels)} directions: name one, as in {path}:{labels[-1]}")
    if name not in labels:
        raise unknown(f"direction in '{path}'", name, labels)
    values: np.ndarray = vectors.isel(direction=labels.index(name)).values
    return values


def check_strength(strength: float) -> None:
    """Refuse a strength that changes nothing, or everything."""
    if strength == 0:
        raise XatlasError("strength 0 changes nothing: give a number above or below 0.")
    if not math.isfinite(strength):
        raise XatlasError(f"strength {strength} is no number: give one above or below 0.")


@dataclass(frozen=True)
class Steered:
    """Greedy continuations with and without a direction."""

    clean: str
    steered: str
    kl: float  # KL(clean ‖ steered) of the first next token, in nats
    length: float  # of what was added, with the strength's sign


@exclusive
def steer(
    model: HookedModel,
    text: str,
    vector: Tensor,
    layer: int,
    strength: float,
    *,
    relative_to: Suite | None = None,
    tokens: int = 30,
) -> Steered:
    """Continue a text greedily, clean and with ``vector (d_model,)`` added to ``resid_post`` at every newest token.

    The strength is the length of what is added; with ``relative_to``, in multiples of the layer's median norm
    at the readout positions of that suite.
    """
    check_strength(strength)
    site = Site(layer, "resid_post")
    model.point(site)
    ids = model.tokens(text)
    length = strength
    if relative_to is not None:
        length *= float(median_norms(readout_values(model, model.read(relative_to).prompts))[layer])
    clean, first = _continue(model, ids, tokens)
    with model.intervene([Intervention(site, Add(vector.to(model.device) * length), positions="last")]):
        steered, other = _continue(model, ids, tokens)
    return Steered(clean, steered, float(kl_divergence(first, other)), length)


def _continue(model: HookedModel, ids: Tensor, tokens: int) -> tuple[str, Tensor]:
    """Return the greedy continuation, and the first next token's logits in float64."""
    way = Way(padded=False, cached=bool(model.sites("attention_pattern")))
    made = run_generate(model, ids.tolist(), tokens, way, output_logits=True)
    text: str = model.tokenizer.decode(made.sequences[0, ids.shape[1] :], skip_special_tokens=True)
    return text, made.logits[0][0].double()
