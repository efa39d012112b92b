"""Typed parameters of probes and comparisons: converted from text, checked, made canonical."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from xatlas.errors import XatlasError, unknown

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}


class Parameterised:
    """What probes and comparisons share: a name, a version, and parameters, given as values or as texts.

    Every parameter has a default and one of the types ``int``, ``float``, ``str``, ``bool``, ``Literal[...]``,
    ``tuple[T, ...]`` (as text: ``a,b,c``) or one of these ``| None``.

    Raises
    ------
    XatlasError
        A parameter is unknown or does not fit its type.
    """

    #: What it is called, everywhere.
    name: ClassVar[str]
    #: Raised whenever the numbers change; enters the key of what is stored.
    version: ClassVar[int] = 1

    @dataclass(frozen=True)
    class Parameters:
        """No parameters."""

    def __init__(self, **parameters: Any) -> None:
        hints, names = typing.get_type_hints(self.Parameters), {field.name for field in fields(self.Parameters)}
        values: dict[str, Any] = {}
        for name, value in parameters.items():
            if name not in names:
                raise unknown(f"parameter of {self.name}", name, names)
            try:
                values[name] = _convert(value, hints[name])
            except (LookupError, TypeError, ValueError, OverflowError):
                what = f"{self.name}.{name} = {value!r:.60} does not fit"
                raise XatlasError(f"{what}: it takes {_say(hints[name])}.") from None
        self.parameters: Any = self.Parameters(**values)

    def canonical_parameters(self) -> dict[str, Any]:
        """Return every parameter with its value, JSON-ready: defaults written out, tuples as lists."""
        values = asdict(self.parameters)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def as_text(value: Any) -> str:
    """Return a value as a text that is converted back to it: ``a,b,c``, ``true``, ``none``; texts as they are."""
    if isinstance(value, list | tuple):
        return ",".join(map(as_text, value))
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def _convert(value: Any, hint: Any) -> Any:
    """Return ``value`` as the type ``hint``; what is none of it, or no finite number, raises."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in inner and str(value).lower() == "none":
            return None
        return _convert(value, next(option for option in inner if option is not type(None)))
    if origin is typing.Literal:
        return {str(choice): choice for choice in inner}[str(value)]
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else list(value)
        return tuple(_convert(item, inner[0]) for item in items if item != "")
    if hint is bool:
        return _BOOLEANS[str(value).lower()]
    if hint is str and isinstance(value, str):
        return value
    if hint not in (int, float) or isinstance(value, bool):
        raise TypeError
    number = hint(value)
    if not math.isfinite(number) or (isinstance(value, float) and number != value):
        raise ValueError
    return number


def _say(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is tuple:
        return f"a list, comma-separated, of {_say(inner[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_say, inner))
    return _NAMES.get(hint, str(hint))
