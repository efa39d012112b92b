"""Steering one text: directions by name, and a continuation with one added beside the clean one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xatlas.contracts.adapter import Site
from xatlas.errors import XatlasError, unknown
from xatlas.interventions import Add, Intervention
from xatlas.model.hooks import exclusive
from xatlas.probing.directions import contrasts, median_norms, random_direction, readout_values
from xatlas.suites import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from xatlas.model import HookedModel
    from xatlas.suites import Suite


#: A dataset, and which of its directions.
_DATASET = re.compile(r"(?P<path>.+\.nc)(?::(?P<name>.+))?")
_RANDOM = re.compile(r"random:(?P<seed>\d+)")


@dataclass(frozen=True)
class Source:
    """Where a direction comes from; made before a model is loaded, so that a slip of the pen costs nothing.

    Parameters
    ----------
    text : str
        ``random:SEED``; a file ``.npy`` with ``(d_model,)`` or ``(layer, d_model)``, or a steering dataset
        ``FILE.nc:DIRECTION``; or the name of a family of the reference.
    values : ndarray or None
        What the file holds: ``(d_model,)`` or ``(layer, d_model)``.
    """

    text: str
    values: np.ndarray | None = None

    @classmethod
    def read(cls, text: str, reference: Suite) -> Source:
        """Read or check what ``text`` names.

        Raises
        ------
        XatlasError
            It is no seed, no readable file and no family of the reference.
        """
        if _RANDOM.fullmatch(text):
            return cls(text)
        if dataset := _DATASET.fullmatch(text):
            return cls(text, _from_dataset(Path(dataset["path"]), dataset["name"]))
        if text.endswith(".npy"):
            return cls(text, _from_array(Path(text)))
        if text not in reference.families:
            hint = "Or give random:SEED, a file .npy, or a steering dataset FILE.nc:DIRECTION."
            raise unknown("family", text, reference.families, hint)
        return cls(text)

    def vector(self, model: HookedModel, layer: int, reference: Suite) -> Tensor:
        """Return the unit direction ``(d_model,)`` for one layer.

        Raises
        ------
        XatlasError
            The layer is out of range; or the direction has another width than the stream, lacks the layer,
            or is no direction: NaN, infinite or zero.
        """
        model.point(Site(layer, "resid_post"))
        if found := _RANDOM.fullmatch(self.text):
            return random_direction(model.d_model, int(found["seed"]))
        if self.values is None:
            prompts = model.read(reference).prompts
            families = [prompt.prompt.family for prompt in prompts]
            made = contrasts(readout_values(model, prompts), families)
            if self.text not in made:
                raise XatlasError(f"'{self.text}' has no rest to be told from in suite '{reference.name}'.")
            return self._unit(made[self.text][layer])
        width = self.values.shape[-1]
        if width != model.d_model:
            raise XatlasError(
                f"the direction in '{self.text}' has {width} numbers, but the model's stream is {model.d_model} wide: "
                "it was made for another model."
            )
        values = self.values if self.values.ndim == 1 else self._row(layer)
        return self._unit(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)))

    def _row(self, layer: int) -> np.ndarray:
        assert self.values is not None
        if layer >= len(self.values):
            raise XatlasError(
                f"'{self.text}' holds directions for layers 0 to {len(self.values) - 1}, not for {layer}."
            )
        row: np.ndarray = self.values[layer]
        return row

    def _unit(self, vector: Tensor) -> Tensor:
        bad = int((~vector.isfinite()).sum())
        if bad:
            raise XatlasError(
                f"the direction in '{self.text}' holds NaN or infinity in {bad} of {len(vector)} numbers."
            )
        norm = vector.double().norm()
        if norm == 0:
            raise XatlasError(f"the direction in '{self.text}' is zero everywhere: it points nowhere.")
        unit: Tensor = vector.double() / norm
        return unit.float()


def _from_array(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise XatlasError(f"there is no file '{path}' to read a direction from.") from None
    except (OSError, ValueError, EOFError) as error:
        raise XatlasError(f"'{path}' can't be read as a .npy array: {error}") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or values.ndim not in (1, 2):
        raise XatlasError(f"'{path}' must hold real numbers, shaped (d_model,) or (layer, d_model).")
    return values


def _from_dataset(path: Path, name: str | None) -> np.ndarray:
    """Return ``(layer, d_model)`` of one direction that a dataset keeps as ``direction_vector``."""
    from xatlas.results.files import hash_path
    from xatlas.results.store import read_result, read_unproved

    if not path.is_file():
        raise XatlasError(f"there is no file '{path}' to read a direction from.")
    # A dataset of one's own has no hash.
    dataset = read_result(path, placed=False) if hash_path(path).exists() else read_unproved(path)
    held = dataset.get("direction_vector")
    if held is None or tuple(held.dims) != ("direction", "layer", "d_model"):
        raise XatlasError(f"'{path}' keeps no directions: give the file of a steering result.")
    labels = [str(label) for label in held["direction"].values]
    if name is None:
        raise XatlasError(f"'{path}' keeps {len(labels)} directions: name one, as in {path}:{labels[-1]}")
    if name not in labels:
        raise unknown(f"direction in '{path}'", name, labels)
    values: np.ndarray = held.values[labels.index(name)]
    return values


def check_strength(strength: float) -> None:
    """Refuse a strength that changes nothing, or everything.

    Raises
    ------
    XatlasError
        It is 0, NaN or infinite.
    """
    if strength == 0:
        raise XatlasError("strength 0 changes nothing: give a number above or below 0.")
    if not math.isfinite(strength):
        raise XatlasError(f"strength {strength} is no number: give one above or below 0.")


@dataclass(frozen=True)
class Steered:
    """What a model says with and without a direction.

    Parameters
    ----------
    clean, steered : str
        Greedy continuations.
    kl : float
        KL(clean ‖ steered) of the first next token, in nats.
    length : float
        Length of what was added, with the strength's sign.
    """

    clean: str
    steered: str
    kl: float
    length: float


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
    """Continue a text greedily, clean and with a direction added to ``resid_post`` at every newest token.

    Parameters
    ----------
    model : HookedModel
        With a tokenizer.
    text : str
        What is continued.
    vector : Tensor
        Unit direction ``(d_model,)``.
    layer : int
        Where it is added.
    strength : float
        Length of what is added; with ``relative_to``, in multiples of the layer's median norm.
    relative_to : Suite, optional
        Prompts whose readout positions give that norm.
    tokens : int
        Most tokens that are generated.

    Returns
    -------
    Steered
        Both continuations, and how far apart their first next tokens are, in nats.

    Raises
    ------
    XatlasError
        The layer is out of range, the strength is 0, or the text has no token or too many.
    """
    check_strength(strength)
    site = Site(layer, "resid_post")
    model.point(site)
    read = model.read([Prompt(id="text", family="text", text=text)]).prompts[0]
    length = strength
    if relative_to is not None:
        norms = median_norms(readout_values(model, model.read(relative_to).prompts))
        length = strength * float(norms[layer])
    added = [Intervention(site, Add(vector.to(model.device) * length), positions="last")]
    ids = model.tokens([read])
    clean, first = _continue(model, ids, tokens)
    with model.intervene(added):
        steered, other = _continue(model, ids, tokens)
    p, q = first.log_softmax(-1), other.log_softmax(-1)
    return Steered(clean, steered, max(0.0, float((p.exp() * (p - q)).sum())), length)


@torch.inference_mode()
def _continue(model: HookedModel, ids: Tensor, tokens: int) -> tuple[str, Tensor]:
    """Return the greedy continuation, and the first next token's logits in float64."""
    from transformers import GenerationConfig

    own: Any = model.model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else model.tokenizer.eos_token_id
    pad = ends[0] if isinstance(ends, list) else ends
    # A config of our own: the model's may sample, or punish repetition.
    config = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else pad,
        use_cache="attention" in model.operator_types,
        output_logits=True,
        return_dict_in_generate=True,
    )
    made = model.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    text: str = model.tokenizer.decode(made.sequences[0, ids.shape[1] :], skip_special_tokens=True)
    return text, made.logits[0][0].double()
