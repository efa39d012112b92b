"""Renders a chat template as a process of its own, run by path: it may never end, or fill the memory.

Takes a request on stdin and answers on stdout, both JSON: ``{"fault": why}`` where the template can't be read, else a
list with ``{"text": rendered}`` or ``{"fault": why}`` for each content. Imports the standard library and Jinja alone.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
from datetime import datetime
from typing import Any


def _environment(date: str) -> Any:
    """Return what Hugging Face renders chat templates in, but that any day is ``date``, at midnight."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Renders what stands between ``generation`` and ``endgeneration`` as it is."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Any) -> Any:
            return caller()

    class Namespace(jinja2.utils.Namespace):
        """Refuses names that lead out of the sandbox."""

        def __init__(self, /, *given: Any, **named: Any) -> None:
            super().__init__()
            for name, value in dict(*given, **named).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace can't hold {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **how)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals |= {
        "namespace": Namespace,
        "raise_exception": raise_exception,
        "strftime_now": datetime.fromisoformat(date).strftime,
    }
    return made


def _render(template: Any, content: str | list[dict[str, str]], variables: dict[str, Any], most: int) -> str:
    """Render ``content``, one turn or several; refuse more than ``most`` characters beyond four times its own."""
    random.seed(0)  # Jinja has a filter that draws
    turns = [{"role": "user", "content": content}] if isinstance(content, str) else content
    given = {"tools": None, "documents": None, "add_generation_prompt": True, **variables}
    pieces, room = [], most + 4 * sum(len(turn["content"]) for turn in turns)
    for piece in template.generate(messages=turns, **given):
        pieces.append(piece)
        room -= len(piece)
        if room < 0:
            raise ValueError(f"it writes more than {most} characters")
    return "".join(pieces)


def _restart_clock(seconds: float) -> None:
    """Have the system end this process after so much more of its processor's time, whatever it is at."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _main() -> None:
    request = json.load(sys.stdin)
    sys.path += request["paths"]
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system can
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (request["memory"], resource.getrlimit(resource.RLIMIT_AS)[1]))
    _restart_clock(request["seconds"])
    answers: Any = []
    try:
        template = _environment(request["date"]).from_string(request["template"])
    except Exception as error:
        answers = {"fault": f"{type(error).__name__}: {error}"}
    for content in request["contents"] if isinstance(answers, list) else ():
        _restart_clock(request["seconds"])
        try:
            answers.append({"text": _render(template, content, request["variables"], request["characters"])})
        except Exception as error:  # whatever a template may raise, the sandbox's errors too
            answers.append({"fault": f"{type(error).__name__}: {error}"[:300]})
    _restart_clock(0)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    _main()
