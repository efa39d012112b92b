"""GGUF files: converted once to safetensors; what is not converted refuses the file, by its name.

Every length in a file is checked against the file.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from xatlas import manager
from xatlas.contracts.adapter import Adapter, GgufLayout
from xatlas.errors import XatlasError
from xatlas.loading.loader import quiet_transformers
from xatlas.loading.model_files import cache_folder, make_once, missing_parts
from xatlas.text import and_more, first_line

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType

#: Raised whenever a file would be converted otherwise than before: older conversions are then left alone.
_FORMAT = 2
#: Value types of fixed size, as :mod:`struct` spells them.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
#: The largest vocabularies have 300,000 tokens and as many merges.
_LONGEST_ARRAY = 1 << 22
_MOST_DIMENSIONS = 4
#: Tensors begin at multiples of this where the file says nothing else.
_ALIGNMENT = 32

T = TypeVar("T")


class GgufError(ValueError):
    """Says, without the file's name and without a full stop, what in a GGUF file stops its conversion."""


def short(value: object) -> str:
    """Return a name or value for a message: quoted, of bounded length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


class TensorEntry(NamedTuple):
    """One tensor: its shape in torch's order, its ggml type, and its place in the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    n_rows: int
    row_bytes: int


@dataclass(slots=True)
class GgufFile:
    """A GGUF file's metadata and table of tensors."""

    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, TensorEntry] = field(default_factory=dict)

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

    def unpack(self, entry: TensorEntry) -> np.ndarray:
        """Read one tensor's data and turn it into float32."""
        import numpy as np
        from gguf.quants import dequantize

        plain = {"F32": np.float32, "F16": np.float16}.get(entry.kind.name, np.uint8)
        data = np.memmap(self.path, np.uint8, "r", entry.start, (entry.n_rows, entry.row_bytes)).view(plain)
        try:
            values = dequantize(data, entry.kind)
        except NotImplementedError:
            kind = entry.kind.name
            raise GgufError(f"its tensor {short(entry.name)} is of the type {kind}, which is not unpacked") from None
        return np.array(values, dtype=np.float32).reshape(entry.shape)


@dataclass
class _Header:
    """A position in the file that moves on with each value read, never beyond the file's end."""

    content: mmap.mmap
    at: int = 0

    def numbers(self, letter: str, count: int = 1) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{letter}") * count
        if size > len(self.content) - self.at:
            raise GgufError(f"it is cut off: {size} bytes are missing behind the {self.at} that were read")
        self.at += size
        return struct.unpack(f"<{count}{letter}", self.content[self.at - size : self.at])

    def text(self) -> str:
        (length,) = self.numbers("Q")
        (text,) = self.numbers("s", length)
        try:
            return str(text, "utf-8")
        except UnicodeDecodeError:
            raise GgufError(f"{short(text)} in it is not UTF-8") from None

    def value(self, key: str) -> Any:
        (kind,) = self.numbers("I")
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.text()
        element, count = (*self.numbers("I"), *self.numbers("Q")) if kind == _ARRAY else (kind, 0)
        if element not in _SCALARS and element != _STRING:  # arrays of arrays: nothing writes them
            raise GgufError(f"{short(key)} is of the unknown type {element}")
        if count > _LONGEST_ARRAY:
            raise GgufError(f"{short(key)} is an array of {count} values; at most {_LONGEST_ARRAY} are read")
        if element == _STRING:
            return [self.text() for _ in range(count)]
        return list(self.numbers(_SCALARS[element], count))


def read_header(path: Path) -> GgufFile:
    """Read all of a GGUF file but its tensors' data; refuse it where it is cut off or damaged."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        header, found = _Header(content), GgufFile(path)
        magic, version = header.numbers("I", 2)
        if magic != int.from_bytes(b"GGUF", "little") or version not in (2, 3):
            raise GgufError(f"it is of GGUF version {version}; only versions 2 and 3, little-endian, are read")
        n_tensors, n_entries = header.numbers("Q", 2)
        for _ in range(n_entries):
            key = header.text()
            if key in found.metadata:
                raise GgufError(f"it holds the key {short(key)} twice")
            found.metadata[key] = header.value(key)
        table: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(n_tensors):
            name = header.text()
            (n_dimensions,) = header.numbers("I")
            if name in table or not 1 <= n_dimensions <= _MOST_DIMENSIONS:
                raise GgufError(f"its entry for the tensor {short(name)} is damaged or there twice")
            table[name] = (header.numbers("Q", n_dimensions)[::-1], *header.numbers("I"), *header.numbers("Q"))
        alignment = found.metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise GgufError(f"its general.alignment is {short(alignment)}")
        start = expected = -(-header.at // alignment) * alignment
        for name, ((*outer, inner), number, offset) in table.items():
            if number not in set(GGMLQuantizationType):
                raise GgufError(f"its tensor {short(name)} is of the unknown type {number}")
            kind = GGMLQuantizationType(number)
            per_block, block_bytes = GGML_QUANT_SIZES[kind]
            n_rows, row_bytes = math.prod(outer), inner // per_block * block_bytes
            if inner % per_block or not n_rows * row_bytes or expected + n_rows * row_bytes > len(content):
                raise GgufError(f"the data of its tensor {short(name)} are damaged or cut off")
            if start + offset != expected:  # a damaged place would read as another tensor
                raise GgufError(f"its tensor {short(name)} does not begin where the one before it ends")
            found.tensors[name] = TensorEntry(name, (*outer, inner), kind, expected, n_rows, row_bytes)
            expected += -(-n_rows * row_bytes // alignment) * alignment
        return found


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
                why = f": {error}." if isinstance(error, GgufError) else f" ({first_line(error)})."
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
    file = read_header(path)
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
