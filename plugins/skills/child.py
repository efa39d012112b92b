"""Runs one function on some arguments, by path, as a process of its own that can only compute.

Takes a request on stdin and answers on stdout, both JSON: a list of what the function returned, each as JSON.
"""

from __future__ import annotations

import builtins
import importlib
import json
import sys
from typing import Any


def _limit(seconds: int, memory: int) -> None:
    """Take from this process what it does not need: files, sockets, writing, other processes, memory and time."""
    import resource

    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 0,  # neither a file nor a socket can be opened from here on
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def _main() -> None:
    request = json.load(sys.stdin)
    modules = {name: importlib.import_module(name) for name in request["modules"]}
    names = (
        "abs all any ascii bin bool bytes callable chr complex dict divmod enumerate filter float frozenset hash hex "
    )
    names += "int isinstance issubclass iter len list map max min next oct ord pow range repr reversed round set slice "
    names += (
        "sorted str sum tuple zip True False None Exception ValueError TypeError KeyError IndexError StopIteration "
    )
    names += "ZeroDivisionError ArithmeticError __build_class__"
    allowed: dict[str, Any] = {name: getattr(builtins, name) for name in names.split() if hasattr(builtins, name)}
    allowed["print"] = lambda *_, **__: None
    allowed["__import__"] = lambda name, *_, **__: modules[name]
    space: dict[str, Any] = {"__builtins__": allowed, "__name__": "answer"}
    write, dumps = sys.stdout.write, json.dumps
    code = compile(request["source"], "answer", "exec")
    _limit(request["seconds"], request["memory"])
    exec(code, space)  # the one place where a model's code is run
    write(dumps([dumps(space[request["function"]](*given)) for given in request["arguments"]]))
    sys.stdout.flush()


if __name__ == "__main__":
    _main()
