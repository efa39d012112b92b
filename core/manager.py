"""Plugins, built-in and third-party: found through one door, picked by name, called without harm."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import pkgutil
import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import pluggy

from xatlas import hookspecs
from xatlas.errors import XatlasError, unknown

if TYPE_CHECKING:
    from xatlas.contracts.adapter import Adapter
    from xatlas.contracts.comparison import Comparison
    from xatlas.contracts.probe import Probe
    from xatlas.loading.download import ModelSource
    from xatlas.suites import SuiteSpec

#: The distribution whose plugins are built in, and the groups of entry points: plugins, and what core calls.
DISTRIBUTION, PLUGINS, PARTS = "xatlas-lm", "xatlas", "xatlas.parts"

#: What may name a plugin's things: one word, as it stands on a command line, in lists and in file names. Behind a
#: model's may stand the seed that it was trained from.
_NAME = re.compile(r"\w[\w.-]*")
_MODEL = re.compile(r"\w[\w.-]*(:[1-9][0-9]*)?")
_MEND = "mend it, or uninstall the package that brings it."

log = logging.getLogger("xatlas")

T = TypeVar("T")


@cache
def manager() -> pluggy.PluginManager:
    """Return the plugin manager with every built-in and installed plugin registered."""
    found = pluggy.PluginManager("xatlas")
    found.add_hookspecs(hookspecs)
    for point in _built_in(PLUGINS):
        package = point.load()  # its modules are the plugins
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
            name = f"{package.__name__}.{module.name}"
            found.register(importlib.import_module(name), name=name)
    for point in sorted(entry_points(group=PLUGINS), key=lambda point: point.name):
        brought = _distribution(point)
        if brought != DISTRIBUTION:
            _register_installed(found, f"{point.name} of {brought}" if brought else point.name, point.load)
    return found


def _distribution(point: EntryPoint) -> str:
    return str(getattr(getattr(point, "dist", None), "name", ""))


def _built_in(group: str, *names: str) -> list[EntryPoint]:
    """Return what this distribution itself names in a group of entry points, as any other would; all or by name."""
    found = [point for point in entry_points(group=group) if _distribution(point) == DISTRIBUTION]
    found = [point for point in found if not names or point.name in names]
    if not found:
        raise XatlasError("xatlas is not installed as it is now: run 'python -m pip install -e .' in its folder again.")
    return sorted(found, key=lambda point: point.name)


def part(name: str) -> Any:
    """Return what core uses and may not import: ``finetune``, ``report``, ``suggest`` or ``views``."""
    return _built_in(PARTS, name)[0].load()


def _register_installed(found: pluggy.PluginManager, name: str, load: Callable[[], object]) -> None:
    try:
        plugin = load()
        if not found.is_registered(plugin):  # one module under two names answers once
            found.register(plugin, name=name)
        found.check_pending()
    except (Exception, SystemExit) as error:
        what = f"the plugin '{name}' could not be loaded"
        raise XatlasError(f"{what} ({type(error).__name__}: {error}); {_MEND}") from error
    answered = {caller.name for caller in found.get_hookcallers(plugin) or ()}
    for hook in sorted(set(dir(plugin)) - answered):
        if hook.startswith("xatlas_") and inspect.isroutine(getattr(plugin, hook)):
            log.warning("the plugin '%s' has a function %s without @hookimpl: it is not used.", name, hook)


def _collect(kind: str, hook: str, contract: str, names: str = "name") -> dict[str, Any]:
    """Call one hook on every plugin; what it returns is held to its contract, known here by its class name alone."""
    owners: dict[str, str] = {}
    result: dict[str, Any] = {}
    for implementation in getattr(manager().hook, hook).get_hookimpls():
        giver = implementation.plugin_name
        who = f"the plugin '{giver}': {hook}"
        try:
            given = implementation.function()
        except (Exception, SystemExit) as error:
            raise XatlasError(f"{who} raised {type(error).__name__}: {error}; {_MEND}") from error
        if not isinstance(given, list | tuple | dict):
            raise XatlasError(f"{who} returned {type(given).__name__}, not a list or dict; {_MEND}")
        for key, item in given.items() if isinstance(given, dict) else ((None, each) for each in given):
            own = getattr(item, names, None)
            called: Any = own if names == "architectures" else (own,)
            if fault := _fault(item, contract, names, called):
                raise XatlasError(f"{who} {fault}; {_MEND}")
            if key not in (None, *called):
                raise XatlasError(f"{who} returned the {kind} '{called[0]}' under the key {key!r}; {_MEND}")
            for name in called:
                if name in owners:
                    twice = f"the {kind} '{name}' is registered twice: by {owners[name]} and by {giver}"
                    raise XatlasError(f"{twice}; rename one or uninstall its package.")
                owners[name], result[name] = giver, item
    return dict(sorted(result.items()))


def _fault(item: Any, contract: str, names: str, called: Any) -> str:
    """Say what keeps a thing from being of its contract under its names; empty where nothing does."""
    is_class = contract in ("Adapter", "Probe", "Comparison")
    if is_class and not isinstance(item, type):
        return f"returned {item!r}, which is no class"
    if contract not in {base.__name__ for base in (item if is_class else type(item)).__mro__}:
        return f"returned {item!r}, which is no {contract}"
    fine = isinstance(called, list | tuple) and called
    form = _MODEL if contract == "ModelSource" else _NAME
    if not fine or not all(isinstance(name, str) and form.fullmatch(name) for name in called):
        return f"returned {item!r}, whose {names} is {getattr(item, names, None)!r}: letters, digits, '_', '-', '.'"
    return ""


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


#: Kind of thing that has a name → what returns those of that kind.
REGISTRIES: dict[str, Any] = {
    "probe": probes,
    "comparison": comparisons,
    "suite": suites,
    "architecture": adapters,
    "model": models,
}


def pick(kind: str, name: str, registry: dict[str, T]) -> T:
    """Return ``registry[name]``; an unknown name is an error that suggests the nearest one."""
    if name not in registry:
        raise unknown(kind, name, registry)
    return registry[name]


def reset() -> None:
    """Forget everything found, so that plugins installed since are seen (tests)."""
    for cached in (manager, *REGISTRIES.values()):
        cached.cache_clear()


# -- calling what may fail, and print ---------------------------------------------------------------

#: Where code lies that is nobody's plugin, unless an installed plugin is called.
_LIBRARIES = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))


@contextmanager
def calling(plugin: Any) -> Iterator[None]:
    """Run a plugin's code: what it raises, ``sys.exit`` too, becomes one line with the file and line of its own code.

    XatlasError and Ctrl-C pass. What it prints goes to stderr, and the working directory is afterwards as before.
    """
    folder = os.getcwd()
    try:
        with _STDOUT:
            yield
    except (XatlasError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise XatlasError(explain(error, plugin)) from error
    finally:
        os.chdir(folder)


def explain(error: BaseException, plugin: Any = None) -> str:
    """Return one line about an error: ours as it is, others with their kind and where the plugin's code raised it."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception of a plugin's own, whose text can't be made
        text = ""
    if isinstance(error, XatlasError):
        return text
    place = _place(error, plugin)
    return type(error).__name__ + (f": {text}" if text else "") + (f" ({place})" if place else "")


def _place(error: BaseException, plugin: Any) -> str:
    """Return file and line of the innermost frame that is the plugin's own, or another installed plugin's."""
    module = str(getattr(plugin, "__module__", None) or "")
    own = {module.rpartition(".")[0] or module}
    for _, each in manager().list_name_plugin():
        name = getattr(each, "__name__", None) or ""
        own.add("" if name.startswith("xatlas.") else name.partition(".")[0])
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        name, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
        foreign = file.startswith(("<", *_LIBRARIES)) or name.partition(".")[0] == "xatlas"
        if not foreign or any(package and f"{name}.".startswith(f"{package}.") for package in own):
            place = f"{file}, line {line}"
    return place


class _OffStdout:
    """Sends what is printed to stderr; counted, for several threads may call plugins at a time."""

    lock = threading.Lock()
    depth = 0
    kept: TextIO

    def __enter__(self) -> None:
        with self.lock:
            if self.depth == 0:
                self.kept, sys.stdout = sys.stdout, sys.stderr
            self.depth += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                sys.stdout = self.kept


_STDOUT = _OffStdout()


def keep_stdout_for_results() -> None:
    """Let only ``sys.stdout`` of this process reach stdout, for good: all that others write goes to stderr."""
    out, err = sys.stdout, sys.stderr
    try:
        if (out.fileno(), err.fileno()) != (1, 2):
            return
    except (AttributeError, OSError, ValueError):  # closed, or not a file
        return
    out.flush()
    results = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(results, "w", buffering=1, encoding=out.encoding, errors=out.errors)
