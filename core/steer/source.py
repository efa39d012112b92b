"""Where a direction comes from: a seed, a family of the reference, or a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from xatlas.errors import XatlasError, unknown
from xatlas.measures.directions import contrasts, random_direction, readout_values
from xatlas.sites import Site

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
    from xatlas.store import read_result
    from xatlas.store.files import hash_path
    from xatlas.store.results import read_unproved

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
