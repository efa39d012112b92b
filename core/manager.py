"""Finds plugins, built-in and third-party, through the same door; picks by name."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from xatlas import hookspecs
from xatlas.errors import XatlasError, unknown

if TYPE_CHECKING:
    from xatlas.contracts.adapter import Adapter
    from xatlas.contracts.comparison import Comparison
    from xatlas.contracts.probe import Probe
    from xatlas.loading.hub import ModelSource
    from xatlas.suites import SuiteSpec

#: Packages whose modules are plugins. Each lists its own files; core knows none of them by name.
BUILT_IN = ("xatlas.architectures", "xatlas.plugins", "xatlas.comparisons")
ENTRY_POINT_GROUP = "xatlas"

#: What may name a plugin's things: one word, as it stands on a command line, in lists and in file names.
_NAME = re.compile(r"\w[\w.-]*")

log = logging.getLogger("xatlas")

T = TypeVar("T")


@cache
def manager() -> pluggy.PluginManager:
    """Return the plugin manager with every built-in and installed plugin registered.

    Raises
    ------
    XatlasError
        A third-party plugin fails on import or carries an unknown hook; plugin and package are named.
    """
    found = pluggy.PluginManager("xatlas")
    found.add_hookspecs(hookspecs)
    for package_name in BUILT_IN:
        package = importlib.import_module(package_name)
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
            name = f"{package_name}.{module.name}"
            found.register(importlib.import_module(name), name=name)
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        brought = getattr(getattr(point, "dist", None), "name", "")
        _register_installed(found, f"{point.name} of {brought}" if brought else point.name, point.load)
    return found


def _register_installed(found: pluggy.PluginManager, name: str, load: Callable[[], object]) -> None:
    try:
        plugin = load()
        if not found.is_registered(plugin):  # one module under two names answers once
            found.register(plugin, name=name)
        found.check_pending()
    except (Exception, SystemExit) as error:
        raise XatlasError(
            f"the plugin '{name}' could not be loaded ({type(error).__name__}: {error}); "
            f"mend it, or uninstall the package that brings it."
        ) from error
    answered = {caller.name for caller in found.get_hookcallers(plugin) or ()}
    for hook in sorted(set(dir(plugin)) - answered):
        if hook.startswith("xatlas_") and inspect.isroutine(getattr(plugin, hook)):
            log.warning("the plugin '%s' has a function %s without @hookimpl: it is not used.", name, hook)


def _collect(kind: str, hook: str, contract: str, names: str = "name") -> dict[str, Any]:
    """Call one hook on every plugin; what it gives is held to its contract, known here by its class name alone."""
    owners: dict[str, str] = {}
    result: dict[str, Any] = {}
    classes = contract in ("Adapter", "Probe", "Comparison")
    for implementation in getattr(manager().hook, hook).get_hookimpls():
        giver = implementation.plugin_name
        try:
            given = implementation.function()
        except (Exception, SystemExit) as error:
            raise _off(giver, hook, f"raised {type(error).__name__}: {error}") from error
        if not isinstance(given, list | tuple | dict):
            raise _off(giver, hook, f"returned {type(given).__name__}, not a list or dict")
        keys = list(given) if isinstance(given, dict) else [None] * len(given)
        for key, item in zip(keys, given.values() if isinstance(given, dict) else given, strict=True):
            if classes and not isinstance(item, type):
                raise _off(giver, hook, f"returned {item!r}, which is no class")
            if contract not in {base.__name__ for base in (item if classes else type(item)).__mro__}:
                raise _off(giver, hook, f"returned {item!r}, which is no {contract}")
            own = getattr(item, names, None)
            called = own if names == "architectures" else (own,)
            if not isinstance(called, list | tuple) or not called or not all(map(_is_name, called)):
                raise _off(giver, hook, f"returned {item!r}, whose {names} is {own!r}: letters, digits, '_', '-', '.'")
            if key is not None and key not in called:
                raise _off(giver, hook, f"returned the {kind} '{called[0]}' under the key {key!r}")
            for name in called:
                if name in owners:
                    raise XatlasError(
                        f"the {kind} '{name}' is registered twice: by {owners[name]} and by {giver}; "
                        f"rename one or uninstall its package."
                    )
                owners[name] = giver
                result[name] = item
    return dict(sorted(result.items()))


def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _off(giver: str, hook: str, what: str) -> XatlasError:
    return XatlasError(f"the plugin '{giver}': {hook} {what}; mend it, or uninstall the package that brings it.")


@cache
def adapters() -> dict[str, type[Adapter]]:
    """Return Hugging Face class name → adapter class."""
    return _collect("architecture", "xatlas_adapters", "Adapter", "architectures")


@cache
def probes() -> dict[str, type[Probe]]:
    """Return name → probe class."""
    return _collect("probe", "xatlas_probes", "Probe")


@cache
def comparisons() -> dict[str, type[Comparison]]:
    """Return name → comparison class."""
    return _collect("comparison", "xatlas_comparisons", "Comparison")


@cache
def models() -> dict[str, ModelSource]:
    """Return alias → model source."""
    return _collect("model", "xatlas_models", "ModelSource", "alias")


@cache
def suites() -> dict[str, SuiteSpec]:
    """Return name → suite specification."""
    return _collect("suite", "xatlas_suites", "SuiteSpec")


def pick(kind: str, name: str, registry: dict[str, T], hint: str = "") -> T:
    """Return ``registry[name]``; an unknown name is an error that suggests the nearest one.

    Raises
    ------
    XatlasError
        Nothing is registered under ``name``.
    """
    if name not in registry:
        raise unknown(kind, name, registry, hint)
    return registry[name]


def reset() -> None:
    """Forget everything found, so that plugins installed since are seen (tests)."""
    for cached in (manager, adapters, probes, comparisons, models, suites):
        cached.cache_clear()
