"""What the checks of probes, comparisons and adapters share."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

from xatlas import manager
from xatlas.errors import XatlasError
from xatlas.guard import calling
from xatlas.probe import Requirement

#: Numerical agreement in float32: nats, and relative.
ABSOLUTE, RELATIVE = 1e-4, 1e-5
_NAME = re.compile(r"[a-z][a-z0-9_]*")

P = ParamSpec("P")


def checked(check: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Let a check tell whatever a plugin raises, ``sys.exit`` too, as a violation in one line."""

    @functools.wraps(check)
    def wrapper(plugin: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
        with calling(plugin if isinstance(plugin, type) else type(plugin)):
            check(plugin, *args, **kwargs)

    return wrapper


def check_abstract(cls: type[Any]) -> None:
    """Refuse a class that lacks methods of its contract.

    Raises
    ------
    XatlasError
        Names the methods.
    """
    left = sorted(getattr(cls, "__abstractmethods__", ()))
    if inspect.isabstract(cls):
        raise XatlasError(f"{cls.__name__} lacks {', '.join(left)}.")


def check_name(cls: Any, kind: str) -> None:
    """Refuse a name that can't be typed as one word, or a version that is no whole number from 1.

    Raises
    ------
    XatlasError
        Shows what was found, and what it takes.
    """
    name, version = getattr(cls, "name", None), getattr(cls, "version", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise XatlasError(f"{cls.__name__}.name is {name!r}: a {kind}'s name is lower-case words joined by '_'.")
    if not isinstance(version, int) or version < 1:
        raise XatlasError(f"{cls.__name__}.version is {version!r}: a whole number from 1, raised when numbers change.")


def check_requirement(needed: Any, who: str) -> None:
    """Refuse a required probe that does not exist or does not take the parameters.

    Raises
    ------
    XatlasError
        Names who requires it, and what is off.
    """
    if not isinstance(needed, Requirement):
        raise XatlasError(f"{who} requires {needed!r}: it must be a Requirement.")
    try:
        manager.pick("probe", needed.probe, manager.probes())(**needed.parameters)
    except XatlasError as error:
        raise XatlasError(f"{who} requires what can't be measured: {error}") from None
