"""Calling plugins: what they raise is told in one line with its place, what they print stays off stdout."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from xatlas import manager
from xatlas.errors import XatlasError

#: Where code lies that is nobody's plugin, unless an installed plugin is called.
_LIBRARIES = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))


@contextmanager
def calling(plugin: Any) -> Iterator[None]:
    """Run a plugin's code for the length of a ``with`` block.

    What it prints goes to stderr, for stdout is for results, and the working directory is afterwards as before.

    Parameters
    ----------
    plugin : object
        The class or function that is called: its module says which code is the plugin's own.

    Raises
    ------
    XatlasError
        Whatever the plugin raises, ``sys.exit`` too, told with its file and line; ours and Ctrl-C pass as they are.
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
    modules = [getattr(plugin, "__module__", None)]
    modules += [getattr(each, "__name__", None) for _, each in manager.manager().list_name_plugin()]
    own = {str(name).rpartition(".")[0] or str(name) for name in modules[:1] if name}
    own |= {str(name).partition(".")[0] for name in modules[1:] if name and not str(name).startswith("xatlas.")}
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        name, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
        foreign = file.startswith(("<", *_LIBRARIES)) or name.partition(".")[0] == "xatlas"
        if not foreign or any(name == package or name.startswith(f"{package}.") for package in own):
            place = f"{file}, line {line}"
    return place


class _OffStdout:
    """Sends what is printed to stderr; counted, for several threads may call plugins at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.kept: TextIO = sys.stdout

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
    """Let nothing but ``sys.stdout`` of this process reach stdout: what libraries and children write goes to stderr.

    For a program that owns its process: the descriptor is moved for good.
    """
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
