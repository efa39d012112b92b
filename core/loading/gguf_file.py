"""What a GGUF file holds: its metadata, and where its tensors lie. Every length is checked against the file."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

#: Value types of fixed size, as :mod:`struct` spells them.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
#: The largest vocabularies have 300,000 tokens and as many merges.
_LONGEST_ARRAY = 1 << 22
_MOST_DIMENSIONS = 4
#: Tensors begin at multiples of this where the file says nothing else.
ALIGNMENT = 32

T = TypeVar("T")


class GgufError(ValueError):
    """Says, without the file's name and without a full stop, what in a GGUF file stops its conversion."""


def short(value: object) -> str:
    """Return a name or value for a message: quoted, of bounded length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: its shape in torch's order, its ggml type, and its place in the file's data section."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(slots=True)
class GgufFile:
    """A GGUF file's metadata and table of tensors; ``data_start`` is where the tensors' data begin."""

    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    data_start: int = 0

    def pop(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Take a value out of the metadata, so that what nobody asked for is left in the end.

        Raises
        ------
        GgufError
            The value is of another kind, or there is none and no default.
        """
        value: Any = self.metadata.pop(key, default)
        if value is None:
            raise GgufError(f"it lacks the key {short(key)}")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or value != value or value in (math.inf, -math.inf):
            raise GgufError(f"its {short(key)} is {short(value)}, not a usable {kind.__name__}")
        return value


def read_header(path: Path) -> GgufFile:
    """Read all of a GGUF file but its tensors' data.

    Raises
    ------
    GgufError
        The file is cut off, of another version, or names something twice.
    """
    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _Header(content).read(path)


class _Header:
    """A position in the file that moves on with each value read, never beyond the file's end."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.at = 0

    def read(self, path: Path) -> GgufFile:
        found = GgufFile(path)
        magic, version = self.numbers("I", 2)
        if magic != int.from_bytes(b"GGUF", "little") or version not in (2, 3):
            raise GgufError(f"it is of GGUF version {version}; only versions 2 and 3, little-endian, are read")
        n_tensors, n_entries = self.numbers("Q", 2)
        for _ in range(n_entries):
            key = self.string("the name of a metadata key")
            if key in found.metadata:
                raise GgufError(f"it holds the key {short(key)} twice")
            found.metadata[key] = self.value(key, self.numbers("I", 1)[0])
        for _ in range(n_tensors):
            name = self.string("the name of a tensor")
            n_dimensions = self.numbers("I", 1)[0]
            if name in found.tensors or not 1 <= n_dimensions <= _MOST_DIMENSIONS:
                raise GgufError(f"its entry for the tensor {short(name)} is damaged or there twice")
            shape = tuple(reversed(self.numbers("Q", n_dimensions)))
            found.tensors[name] = TensorEntry(name, shape, self.numbers("I", 1)[0], self.numbers("Q", 1)[0])
        alignment = found.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise GgufError(f"its general.alignment is {short(alignment)}")
        found.data_start = -(-self.at // alignment) * alignment
        return found

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

    def value(self, key: str, kind: int) -> Any:
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind], 1, key)[0]
        if kind == _STRING:
            return self.string(key)
        if kind != _ARRAY:
            raise GgufError(f"{short(key)} is of the unknown type {kind}")
        element, count = self.numbers("I", 1, key)[0], self.numbers("Q", 1, key)[0]
        if element not in _SCALARS and element != _STRING:  # arrays of arrays: nothing writes them
            raise GgufError(f"{short(key)} is an array of the unknown type {element}")
        if count > _LONGEST_ARRAY:
            raise GgufError(f"{short(key)} is an array of {count} values; at most {_LONGEST_ARRAY} are read")
        if element == _STRING:
            return [self.string(key) for _ in range(count)]
        return list(self.numbers(_SCALARS[element], count, key))
