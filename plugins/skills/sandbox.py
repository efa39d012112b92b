"""Running a model's code on the cases of a test: only with ``run_code``, in a process that may do nothing but compute.

The code may import few modules and name nothing that leads out of them. It is run by a process of its own, isolated
from the user's packages and variables, that may open no file and no socket, write nothing, start no process, and take
no more than some memory and time.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Limits of one run: seconds, bytes of memory.
SECONDS, MEMORY = 2, 1 << 28
MODULES = ("collections", "functools", "itertools", "math", "operator", "re", "string")
_FORBIDDEN = {"open", "eval", "exec", "compile", "input", "breakpoint", "globals", "locals", "vars", "getattr"}
_FORBIDDEN |= {"setattr", "delattr", "help", "exit", "quit", "memoryview", "type", "object", "super", "dir", "id"}


def harmless(tree: ast.AST) -> bool:
    """Whether code names nothing that leads out of what it may use."""
    for node in ast.walk(tree):
        names = [getattr(node, field, None) for field in ("id", "attr", "name", "arg")]
        if any(isinstance(name, str) and (name.startswith("_") or name in _FORBIDDEN) for name in names if name != "_"):
            return False
        if isinstance(node, ast.Import) and any(each.name not in MODULES for each in node.names):
            return False
        if isinstance(node, ast.ImportFrom) and (node.level or node.module not in MODULES):
            return False
        if isinstance(node, ast.Attribute) and node.attr in (
            "format",
            "format_map",
            "sys",
            "attrgetter",
            "methodcaller",
        ):
            return False
    return True


def holds(source: str, function: str, cases: Sequence[Sequence[Any]]) -> bool:
    """Tell whether a function gives what each case expects, ``[arguments, result]``; code that may not run doesn't."""
    if not harmless(ast.parse(source)):
        return False
    request: dict[str, Any] = {
        "source": source,
        "function": function,
        "arguments": [given for given, _ in cases],
        "modules": MODULES,
    }
    request |= {"seconds": SECONDS, "memory": MEMORY}
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py"))],
            input=json.dumps(request).encode(),
            capture_output=True,
            env={},
            cwd="/",
            timeout=5 * SECONDS,
        )
        results = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return False
    wanted = [json.dumps(result) for _, result in cases]
    return isinstance(results, list) and results == wanted
