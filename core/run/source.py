"""What a plugin's class is made of, as one hash of the source that it was loaded from."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from xatlas import manager
from xatlas.files import sha256

#: Of this package, what comparisons are made of: the rest of it they only call.
_OURS = (*manager.BUILT_IN, "xatlas.stats")
_IMPORT = re.compile(r"^\s*(?:from\s+([.\w]+)\s+import\s+(\([^)]*\)|[^\n]*)|import\s+([^\n]+))", re.MULTILINE)
_PLAIN = (str, bytes, int, float, complex, type(None))


def source_of(cls: type) -> str | None:
    """Digest the modules of a class and what they import of their own package, or from beside them.

    Plain constants count by their value, so that one set in memory is not taken for the one in the file.

    Returns
    -------
    str or None
        None where there is no source, as in a notebook, or where it is not what was loaded.
    """
    bases = [base for base in cls.__mro__ if _written(base.__module__)]
    waiting = [base.__module__ for base in bases]
    packages = {name.partition(".")[0] for name in waiting} - {"xatlas"}
    parts: dict[str, str] = {}
    codes: dict[str, set[CodeType]] = {}
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if name in parts or (path is None and name not in sys.modules):
            continue  # ``from module import name`` may name no module
        text, found = _read(name, path)
        if text is None:
            return None
        module = vars(sys.modules[name]) if name in sys.modules else {}
        parts[name], codes[name] = f"{text}\0{_constants(module)}", found
        inner = [vars(item) for item in module.values() if isinstance(item, type) and item.__module__ == name]
        loaded = [function for space in (module, *inner) for function in _functions(space)]
        if not all(function.__code__ in found for function in loaded if function.__module__ == name):
            return None
        waiting += [
            other
            for other in _imported(text, name, path)
            if other.startswith(tuple(f"{our}." for our in _OURS))
            or other in _OURS
            or other.partition(".")[0] in packages
            or ("." not in name and path and "." not in other and _beside(path, other))
        ]
    for base in bases:
        own = {name: value for name, value in vars(base).items() if name != "version"}  # which keys hold themselves
        parts[f"class {base.__qualname__}"] = _constants(own)
        for function in _functions(vars(base)):
            cells = [cell.cell_contents for cell in function.__closure__ or ()]
            if function.__code__ not in codes.get(function.__module__, ()) or not all(
                isinstance(value, (*_PLAIN, type)) for value in cells
            ):
                return None
            parts[f"{base.__qualname__}.{function.__name__}"] = repr(cells)
    return sha256(repr(sorted(parts.items())).encode("utf-8", "replace"))


def _written(module: str) -> bool:
    """Tell whether a module is the author's: neither Python's own nor a contract of this package."""
    top = module.partition(".")[0]
    return top not in sys.stdlib_module_names and (top != "xatlas" or module.startswith(_OURS))


def _file(name: str) -> Path | None:
    """Return the source file of a module, without importing it."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
        return Path(file) if file and file.endswith(".py") else None
    above, _, last = name.rpartition(".")
    folders = getattr(sys.modules.get(above), "__path__", []) if above else sys.path
    places = [Path(folder or ".") / end for folder in folders for end in (f"{last}.py", f"{last}/__init__.py")]
    return next((place for place in places if place.is_file()), None)


def _beside(path: Path, name: str) -> bool:
    return any((path.parent / end).is_file() for end in (f"{name}.py", f"{name}/__init__.py"))


def _read(name: str, path: Path | None) -> tuple[str | None, set[CodeType]]:
    """Return a module's source and all code in it, as it would be loaded now."""
    try:
        text = path.read_bytes().decode("utf-8", "replace") if path else None
        spec = getattr(sys.modules.get(name), "__spec__", None)
        get = getattr(getattr(spec, "loader", None), "get_code", None)  # from its cache, which is quicker
        code = get(spec.name) if get and spec else compile(text or "", str(path), "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError, ImportError):
        return None, set()
    return text, set(_codes(code)) if code else set()


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _functions(space: Mapping[str, Any]) -> Iterator[FunctionType]:
    """Yield the functions of a class or module, but those that Python itself makes for data classes."""
    for item in space.values():
        for each in (item, *(getattr(item, part, None) for part in ("__func__", "fget", "__wrapped__"))):
            if isinstance(each, FunctionType):
                code = each.__code__
                made = code.co_filename == "<string>" and each.__name__[:2] == "__"
                if not made and each.__name__ != "__repr__":
                    yield each


def _constants(space: Mapping[str, Any]) -> str:
    def plain(value: Any) -> bool:
        return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(plain, value)))

    return repr(sorted((name, repr(value)) for name, value in space.items() if name[:2] != "__" and plain(value)))


def _imported(text: str, name: str, path: Path | None) -> Iterator[str]:
    """Yield the names that a module's import statements may mean."""
    package = name if path and path.name == "__init__.py" else name.rpartition(".")[0]
    for source, names, plain in _IMPORT.findall(text):
        if plain:
            yield from re.findall(r"[\w.]+", plain)
            continue
        dots = len(source) - len(source.lstrip("."))
        if dots:
            above = package.split(".")[: len(package.split(".")) - dots + 1]
            source = ".".join([*above, *([source[dots:]] if source[dots:] else [])])
        yield source
        yield from (f"{source}.{each}" for each in re.findall(r"\w+", names))
