"""What a GGUF file holds: its metadata, and where its tensors lie. Every length is checked against the file."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType

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

    def count(self, key: str, default: int | None = None) -> int:
        """Take a number above 0; one number for each layer is as good, if they are equal."""
        value = self.metadata.get(key)
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            self.metadata[key] = value[0]
        number = self.pop(key, int, default)
        if number < 1:
            raise GgufError(f"its {short(key)} is {number}")
        return number

    def unpack(self, entry: TensorEntry) -> np.ndarray:
        """Read one tensor's data and turn it into float32."""
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
        data = np.memmap(self.path, np.uint8, "r", entry.start, (entry.n_rows, entry.row_bytes))
        try:
            values = dequantize(data.view(plain[entry.kind]) if entry.kind in plain else data, entry.kind)
        except NotImplementedError:
            kind = entry.kind.name
            raise GgufError(f"its tensor {short(entry.name)} is of the type {kind}, which is not unpacked") from None
        return np.array(values, dtype=np.float32).reshape(entry.shape)


def read_header(path: Path) -> GgufFile:
    """Read all of a GGUF file but its tensors' data; refuse it where it is cut off or damaged."""
    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        header, found = _Header(content), GgufFile(path)
        magic, version = header.numbers("I", 2)
        if magic != int.from_bytes(b"GGUF", "little") or version not in (2, 3):
            raise GgufError(f"it is of GGUF version {version}; only versions 2 and 3, little-endian, are read")
        n_tensors, n_entries = header.numbers("Q", 2)
        for _ in range(n_entries):
            key = header.string("the name of a metadata key")
            if key in found.metadata:
                raise GgufError(f"it holds the key {short(key)} twice")
            found.metadata[key] = header.value(key)
        table: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(n_tensors):
            name = header.string("the name of a tensor")
            (n_dimensions,) = header.numbers("I", 1)
            if name in table or not 1 <= n_dimensions <= _MOST_DIMENSIONS:
                raise GgufError(f"its entry for the tensor {short(name)} is damaged or there twice")
            shape = header.numbers("Q", n_dimensions)[::-1]
            table[name] = (shape, *header.numbers("I", 1), *header.numbers("Q", 1))
        alignment = found.metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise GgufError(f"its general.alignment is {short(alignment)}")
        start = expected = -(-header.at // alignment) * alignment
        for name, (shape, number, offset) in table.items():
            entry = _placed(name, shape, number, start + offset, len(content))
            if entry.start != expected:  # a damaged place would read as another tensor
                raise GgufError(f"its tensor {short(name)} does not begin where the one before it ends")
            expected += -(-entry.n_rows * entry.row_bytes // alignment) * alignment
            found.tensors[name] = entry
        return found


def _placed(name: str, shape: tuple[int, ...], number: int, start: int, file_bytes: int) -> TensorEntry:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(number)
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise GgufError(f"its tensor {short(name)} is of the unknown type {number}") from None
    *outer, inner = shape
    n_rows, row_bytes = math.prod(outer), inner // per_block * block_bytes
    if inner % per_block or not n_rows * row_bytes or start + n_rows * row_bytes > file_bytes:
        raise GgufError(f"the data of its tensor {short(name)} are damaged or cut off")
    return TensorEntry(name, shape, kind, start, n_rows, row_bytes)


class _Header:
    """A position in the file that moves on with each value read, never beyond the file's end."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.at = 0

    def take(self, size: int, what: str) -> bytes:
        if size > len(self.content) - self.at:
            raise GgufError(f"it is cut off: {what} needs {size} bytes, {len(self.content) - self.at} are left")
        self.at += size
        return self.content[self.at - size : self.at]

    def numbers(self, letter: str, count: int, what: str = "its header") -> tuple[Any, ...]:
        size = struct.calcsize(f"<{letter}")  # before the product: no count is so large that it would take memory
        return struct.unpack(f"<{count}{letter}", self.take(size * count, what))

    def string(self, what: str) -> str:
        try:
            return self.take(self.numbers("Q", 1, what)[0], what).decode("utf-8")
        except UnicodeDecodeError:
            raise GgufError(f"{what} is not UTF-8") from None

    def value(self, key: str) -> Any:
        (kind,) = self.numbers("I", 1, key)
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind], 1, key)[0]
        if kind == _STRING:
            return self.string(key)
        if kind != _ARRAY:
            raise GgufError(f"{short(key)} is of the unknown type {kind}")
        (element,), (count,) = self.numbers("I", 1, key), self.numbers("Q", 1, key)
        if element not in _SCALARS and element != _STRING:  # arrays of arrays: nothing writes them
            raise GgufError(f"{short(key)} is an array of the unknown type {element}")
        if count > _LONGEST_ARRAY:
            raise GgufError(f"{short(key)} is an array of {count} values; at most {_LONGEST_ARRAY} are read")
        if element == _STRING:
            return [self.string(key) for _ in range(count)]
        return list(self.numbers(_SCALARS[element], count, key))
