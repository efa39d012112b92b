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


class _Header:
    """A position in the file that moves on with each value read, never beyond the file's end."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.at = 0

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
        return (
            [self.text() for _ in range(count)] if element == _STRING else list(self.numbers(_SCALARS[element], count))
        )


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
