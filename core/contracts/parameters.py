"""Typed parameters of probes and comparisons: converted from text, checked, made canonical."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from xatlas.errors import XatlasError, unknown

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def build(cls: type[Any], given: Mapping[str, Any], owner: str) -> Any:
    """Make the parameter dataclass ``cls`` from ``given``, converting texts by the declared types.

    Parameters
    ----------
    cls : type
        A frozen dataclass; every field has a default and one of the types ``int``, ``float``, ``str``,
        ``bool``, ``tuple[T, ...]`` or one of these ``| None``.
    given : mapping
        Values, or texts as they stand on a command line (a tuple as ``a,b,c``).
    owner : str
        Named in errors.

    Returns
    -------
    object
        An instance of ``cls``.

    Raises
    ------
    XatlasError
        An unknown name, or a value that does not fit its type.
    """
    hints = typing.get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in names:
            raise unknown(f"parameter of {owner}", name, names)
        try:
            values[name] = convert(value, hints[name])
        except (TypeError, ValueError, OverflowError):
            raise XatlasError(f"{owner}.{name} = {value!r:.60} does not fit: it takes {_say(hints[name])}.") from None
    return cls(**values)


def convert(value: Any, hint: Any) -> Any:
    """Return ``value`` as the type ``hint``.

    Raises
    ------
    TypeError, ValueError, OverflowError
        It is not one, or no finite number.
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            if type(None) in options:
                return None
            raise ValueError
        return convert(value, next(option for option in options if option is not type(None)))
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        match = next((choice for choice in choices if str(choice) == str(value)), None)
        if match is None:
            raise ValueError
        return match
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else list(value)
        return tuple(convert(item, typing.get_args(hint)[0]) for item in items if item != "")
    if hint is bool:
        word = str(value).lower()
        if word not in _BOOLEANS:
            raise ValueError
        return _BOOLEANS[word]
    if hint in (int, float):
        if isinstance(value, bool):
            raise TypeError
        if hint is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        number = hint(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    if hint is str:
        if not isinstance(value, str):
            raise TypeError
        return value
    raise TypeError(f"a parameter cannot have the type {hint}")


def canonical(parameters: Any) -> dict[str, Any]:
    """Return the parameters as JSON-ready values (tuples become lists), every default written out."""
    return {
        field.name: list(value) if isinstance(value := getattr(parameters, field.name), tuple) else value
        for field in dataclasses.fields(parameters)
    }


def _say(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if origin is tuple:
        return f"a list, comma-separated, of {_say(typing.get_args(hint)[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if option is type(None) else _say(option) for option in typing.get_args(hint))
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(hint, str(hint))
