"""Finds plugins, built-in and third-party, through the same door; picks by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, TypeVar

import pluggy

from xatlas import hookspecs
from xatlas.errors import XatlasError, unknown

if TYPE_CHECKING:
    from xatlas.adapter import Adapter
    from xatlas.comparison import Comparison
    from xatlas.loading.sources import ModelSource
    from xatlas.probe import Probe
    from xatlas.suites import SuiteSpec

#: Packages whose modules are plugins. Each lists its own files; core knows none of them by name.
BUILT_IN = ("xatlas.architectures", "xatlas.plugins", "xatlas.comparisons")
ENTRY_POINT_GROUP = "xatlas"

T = TypeVar("T")


@cache
def manager() -> pluggy.PluginManager:
    """Return the plugin manager with every built-in and installed plugin registered.

    Raises
    ------
    XatlasError
        A third-party plugin fails on import or carries an unknown hook; the package is named.
    """
    found = pluggy.PluginManager("xatlas")
    found.add_hookspecs(hookspecs)
    for package_name in BUILT_IN:
        package = importlib.import_module(package_name)
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
            name = f"{package_name}.{module.name}"
            found.register(importlib.import_module(name), name=name)
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        _register_installed(found, point.name, point.load)
    found.check_pending()
    return found


def _register_installed(found: pluggy.PluginManager, name: str, load: Callable[[], object]) -> None:
    try:
        found.register(load(), name=name)
    except Exception as error:
        raise XatlasError(
            f"the plugin '{name}' could not be loaded ({type(error).__name__}: {error}); "
            f"mend it, or uninstall the package that brings it."
        ) from error


def _collect(kind: str, hook: str, names: Callable[[T], Iterable[str]]) -> dict[str, T]:
    """Call one hook on every plugin; a name given twice is an error that names both givers."""
    owners: dict[str, str] = {}
    result: dict[str, T] = {}
    plugins = manager()
    for plugin_name, plugin in plugins.list_name_plugin():
        implementation = getattr(plugin, hook, None)
        if plugin is None or implementation is None:
            continue
        given = implementation()
        items = list(given.values()) if isinstance(given, dict) else list(given)
        for item in items:
            for name in names(item):
                if name in owners:
                    raise XatlasError(
                        f"the {kind} '{name}' is registered twice: by {owners[name]} and by {plugin_name}; "
                        f"rename one or uninstall its package."
                    )
                owners[name] = plugin_name
                result[name] = item
    return dict(sorted(result.items()))


@cache
def adapters() -> dict[str, type[Adapter]]:
    """Return Hugging Face class name → adapter class."""
    return _collect("architecture", "xatlas_adapters", lambda item: item.architectures)


@cache
def probes() -> dict[str, type[Probe]]:
    """Return name → probe class."""
    return _collect("probe", "xatlas_probes", lambda item: (item.name,))


@cache
def comparisons() -> dict[str, type[Comparison]]:
    """Return name → comparison class."""
    return _collect("comparison", "xatlas_comparisons", lambda item: (item.name,))


@cache
def models() -> dict[str, ModelSource]:
    """Return alias → model source."""
    return _collect("model", "xatlas_models", lambda item: (item.alias,))


@cache
def suites() -> dict[str, SuiteSpec]:
    """Return name → suite specification."""
    return _collect("suite", "xatlas_suites", lambda item: (item.name,))


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
