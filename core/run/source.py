"""What a comparison is made of, as one hash: every source file of its package, and what was loaded from them.

Both count: while a file is newer than what was loaded from it, the records of neither version are used or made.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from xatlas import __version__
from xatlas.files import sha256

_PLAIN = (str, bytes, int, float, complex, type(None))


def source_of(cls: type) -> str | None:
    """Digest a class; None where it can't be told from another: it was typed in, or holds what no file does."""
    bases = [base for base in cls.__mro__ if _package(base)]
    files = {path: name for package in {*map(_package, bases), "xatlas.stats"} for path, name in _files(package)}
    loaded = {str(Path(getattr(module, "__file__", None) or "")): module for module in list(sys.modules.values())}
    loaded = {path: module for path, module in loaded.items() if path in files}
    modules = {module.__name__ for module in loaded.values()}
    parts = [__version__]
    try:
        for path, name in sorted(files.items(), key=lambda item: item[1]):
            parts += [name, Path(path).read_bytes().decode("utf-8", "replace")]
            parts += _held(vars(loaded[path]), loaded[path].__name__) if path in loaded else []
    except OSError:
        return None
    for base in bases:
        if base.__module__ not in modules:
            return None
        for name, item in vars(base).items():
            function = _function(item)
            if function and function.__module__ not in modules:
                return None
            # Code of no such file was made by a library, as in data classes.
            if function and str(Path(function.__code__.co_filename)) in files:
                cells = [cell.cell_contents for cell in function.__closure__ or ()]
                if not all(isinstance(value, (*_PLAIN, type)) for value in cells):
                    return None
                parts.append(f"{base.__qualname__}.{name} {cells}")
        parts += _held(vars(base), base.__module__, f"{base.__qualname__}.")
    return sha256("\0".join(parts).encode("utf-8", "replace"))


def _package(cls: type) -> str:
    """Return the package or module outside packages that a class is from; empty for Python's own and contracts."""
    top, _, inner = cls.__module__.partition(".")
    if top == "xatlas":
        inner = inner.partition(".")[0]
        return "" if inner == "contracts" else f"xatlas.{inner}"
    return "" if top in sys.stdlib_module_names else top


def _files(package: str) -> Iterator[tuple[str, str]]:
    """Yield path and name of a package's source files; of a module outside packages, those beside it as well."""
    module = sys.modules.get(package)
    file = getattr(module, "__file__", None)
    folders = [Path(folder) for folder in getattr(module, "__path__", [])]
    patterns = ["**/*.py"]
    if not folders and package.startswith("xatlas."):
        yield str(Path(str(file))), package
    elif not folders and file:
        folders = [Path(file).parent]
        patterns = ["*.py"] if folders[0].name in ("site-packages", "dist-packages") else ["*.py", "*/*.py"]
    for folder in folders:
        for path in (path for pattern in patterns for path in folder.glob(pattern)):
            yield str(path), f"{package} {path.relative_to(folder)}"


def _held(space: Mapping[str, Any], module: str, prefix: str = "") -> Iterator[str]:
    """Yield what a module, or the class of that prefix, holds: plain constants by value, functions by their code."""
    for name, item in sorted(space.items()):
        function = _function(item)
        if function and function.__module__ == module:
            yield f"{prefix}{name} {_code(function.__code__)}"
        elif isinstance(item, type) and (item.__module__, item.__qualname__) == (module, prefix + name):
            yield from _held(vars(item), module, f"{prefix}{name}.")
        elif name[:2] != "__" and _is_plain(item):
            yield f"{prefix}{name} {item!r}"


def _function(item: Any) -> FunctionType | None:
    if isinstance(item, property):
        item = item.fget
    elif isinstance(item, staticmethod | classmethod):
        item = item.__func__
    return item if isinstance(item, FunctionType) else None


def _is_plain(item: Any) -> bool:
    return isinstance(item, _PLAIN) or (isinstance(item, tuple) and all(map(_is_plain, item)))


def _code(code: CodeType) -> str:
    ordered = (sorted(each, key=repr) if isinstance(each, frozenset) else each for each in code.co_consts)
    constants = [_code(each) if isinstance(each, CodeType) else repr(each) for each in ordered]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {constants}"
