"""GGUF files: converted once to safetensors; what is not converted refuses the file, by its name.

Every length in a file is checked against the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from xatlas import manager
from xatlas.contracts.adapter import Adapter, GgufLayout
from xatlas.errors import XatlasError
from xatlas.loading.loader import quiet_transformers
from xatlas.loading.model_files import cache_folder, make_once, missing_parts
from xatlas.text import and_more, first_line

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import ReaderTensor

#: Raised whenever a file would be converted otherwise than before: older conversions are then left alone.
_FORMAT = 2
#: The largest vocabularies have 300,000 tokens and as many merges.
_LONGEST_ARRAY = 1 << 22

T = TypeVar("T")


class GgufError(ValueError):
    """Says, without the file's name and without a full stop, what in a GGUF file stops its conversion."""


def short(value: object) -> str:
    """Return a name or value for a message: quoted, of bounded length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


@dataclass(slots=True)
class GgufFile:
    """A GGUF file's metadata, and its tensors as the gguf package reads them, but with shapes in torch's order."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, ReaderTensor]

    def pop(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Take a value of a kind out of the metadata, so that what nobody asked for is left in the end."""
        value: Any = self.metadata.pop(key, default)
        if value is None:
            raise GgufError(f"it lacks the key {short(key)}")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or value != value or value in (math.inf, -math.inf):
            raise GgufError(f"its {short(key)} is {short(value)}, not a usable {kind.__name__}")
        return value

    def unpack(self, tensor: ReaderTensor) -> np.ndarray:
        """Read one tensor's data and turn it into float32."""
        import numpy as np
        from gguf.quants import dequantize

        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise GgufError(f"its tensor {short(tensor.name)} is of the type {kind}, which is not unpacked") from None
        return np.array(values, dtype=np.float32).reshape(tensor.shape)


def read(path: Path) -> GgufFile:
    """Read all of a GGUF file but its tensors' data; refuse it where it is cut off or damaged."""
    import numpy as np
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):  # type: ignore[misc]
        """The gguf package's own takes lengths on trust, and arrays apart into single numbers."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
            try:
                return np.frombuffer(self.data, dtype, int(count), offset)
            except ValueError:
                raise GgufError("it ends before what it says it holds, as a file that is cut off does") from None

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type != GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            element, count = self._get(orig_offs, np.uint32)[0], self._get(orig_offs + 4, np.uint64)[0]
            if element == GGUFValueType.ARRAY or count > _LONGEST_ARRAY:
                raise GgufError(f"it holds an array of arrays, or of more than {_LONGEST_ARRAY} values")
            if element not in self.gguf_scalar_to_np:
                return super()._get_field_parts(orig_offs, raw_type)
            values = self._get(orig_offs + 12, self.gguf_scalar_to_np[element], count)
            return 12 + values.nbytes, [values], [0], [GGUFValueType.ARRAY, GGUFValueType(element)]

    reader = Reader(path)
    if reader.byte_order != "I":
        raise GgufError("it is big-endian; only little-endian files are read")
    expected, alignment = int(reader.data_offset), int(reader.alignment)
    for tensor in reader.tensors:
        if tensor.data_offset != expected:  # a damaged place would read as another tensor
            raise GgufError(f"its tensor {short(tensor.name)} does not begin where the one before it ends")
        expected += -(-tensor.n_bytes // alignment) * alignment
    metadata = {key: held.contents() for key, held in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = {each.name: each._replace(shape=tuple(map(int, each.shape[::-1]))) for each in reader.tensors}
    return GgufFile(path, metadata, tensors)


# -- conversion -------------------------------------------------------------------------------------


def converted_folder(sha256: str, *, weighted: bool = True) -> Path:
    """Return where the conversion of a GGUF file with this hash lies, or will lie: all of it, or all but the weights.

    The rule of conversion and the version of transformers are part of the name: another may write other files.
    """
    release = ".".join(version("transformers").split(".")[:2])
    name = f"{sha256[:32]}-{_FORMAT}-transformers-{release}"
    return cache_folder() / "gguf" / (name if weighted else f"{name}-unweighted")


def is_converted(sha256: str, *, weighted: bool = True) -> bool:
    """Say whether a GGUF file with this hash was converted before."""
    folder = converted_folder(sha256, weighted=weighted)
    return folder.is_dir() and not missing_parts(folder, weighted=weighted)


def convert(path: Path, sha256: str, say: Callable[[str], None], *, weighted: bool = True) -> None:
    """Convert a GGUF file to float32 safetensors (where ``weighted``), config and tokenizer, once: all or nothing."""
    if find_spec("gguf") is None:
        raise XatlasError(f"reading {path.name} needs the 'gguf' extra: pip install 'xatlas-lm[gguf]'.")

    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    def make(work: Path) -> Path:
        if weighted:
            say(f"converting {path.name} to safetensors, once; this takes about half a minute")
        folder = work / "model"
        with quiet_transformers(), torch.inference_mode(False):
            try:
                config, weights, tokenizer = _read(path, say, weighted)
            except (OSError, MemoryError, XatlasError):
                raise
            except Exception as error:  # configs, tokenizers and unpacking have errors of their own for odd values
                why = f": {error}." if isinstance(error, GgufError) else f" ({first_line(error)[:300]})."
                raise XatlasError(f"{path} cannot be read as GGUF{why}") from error
            try:
                config.save_pretrained(folder)
                GenerationConfig.from_model_config(config).save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                if weighted:
                    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            except Exception as error:  # safetensors has its own error for a full disk
                raise XatlasError(f"cannot write the conversion of {path} in {folder}: {first_line(error)}") from error
        note = {"file": path.name, "sha256": sha256, "format": _FORMAT, "transformers": version("transformers")}
        (folder / "xatlas-conversion.json").write_text(json.dumps(note), encoding="utf-8")
        return folder

    target = converted_folder(sha256, weighted=weighted)
    make_once(target, lambda: is_converted(sha256, weighted=weighted), make)


def _read(path: Path, say: Callable[[str], None], weighted: bool) -> tuple[Any, dict[str, torch.Tensor], Any]:
    """Return config, weights and tokenizer of a GGUF file."""
    file = read(path)
    architecture = file.pop("general.architecture", str)
    known = {  # an adapter's own word: one that is derived from it is of another architecture
        layout.architecture: (found, layout)
        for found in manager.adapters().values()
        if isinstance(layout := vars(found).get("gguf"), GgufLayout)
    }
    if architecture not in known:
        raise GgufError(f"its architecture {short(architecture)} is not converted, only {', '.join(sorted(known))} are")
    adapter, layout = known[architecture]
    config = layout.config(file)
    config.architectures = [adapter.architectures[0]]
    tokenizer = layout.tokenizer(file, config.vocab_size, say)
    config.update({f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")})
    for key, value in file.metadata.items():
        if not layout.says_nothing(key, value):
            raise GgufError(f"its {short(key)} ({short(value)}) is not converted; use the original safetensors")
    return config, _weights(file, adapter, layout, config) if weighted else {}, tokenizer


def _weights(file: GgufFile, adapter: type[Adapter], layout: GgufLayout, config: Any) -> dict[str, torch.Tensor]:
    """Return every parameter of the model, unpacked to float32, from exactly one tensor each."""
    import torch
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # shapes only
        model = AutoModelForCausalLM.from_config(config)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop(f"{adapter.unembedding_path}.weight", None)
    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    names_in_file = get_tensor_name_map(numbers[layout.architecture], config.num_hidden_layers)
    places = {}
    for name in wanted:
        path, _, kind = name.rpartition(".")
        places[f"{names_in_file.get_name(path)}.{kind}"] = name
    weights = {}
    for entry in file.tensors.values():
        if entry.name not in places:
            raise GgufError(f"its tensor {short(entry.name)} is not converted; use the original safetensors")
        name = places[entry.name]
        shape = wanted.pop(name)
        if [size for size in entry.shape if size != 1] != [size for size in shape if size != 1]:
            raise GgufError(f"its tensor {short(entry.name)} is {entry.shape}, the model needs {shape}")
        value = torch.from_numpy(file.unpack(entry)).reshape(shape)
        weights[name] = layout.tensor(entry.name, value, config).contiguous()
    if missing := sorted(wanted):
        raise GgufError(f"it lacks the tensor for {and_more(missing)}")
    return weights
