"""Renders a chat template as a process of its own, run by path: it may never end, or fill the memory.

Takes a request on stdin and answers on stdout, both JSON. Imports the standard library and Jinja alone.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
from datetime import datetime
from typing import Any


def environment(date: str) -> Any:
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

        def __init__(*given: Any, **named: Any) -> None:
            self, *rest = given
            jinja2.utils.Namespace.__init__(self)
            for name, value in dict(*rest, **named).items():
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
    made.globals["namespace"] = Namespace
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = datetime.fromisoformat(date).strftime
    return made


def limit_memory(most: int) -> None:
    """Let this process hold no more than ``most`` bytes, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def restart_clock(seconds: float) -> None:
    """Have the system end this process after so much more of its processor's time, whatever it is at."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def render(template: Any, content: str, variables: dict[str, Any], most: int) -> str:
    """Return the template with ``content`` as the user's turn; a template that writes too much is stopped.

    Raises
    ------
    ValueError
        More than ``most`` characters beyond four times the content were written.
    """
    random.seed(0)  # Jinja has a filter that draws
    turns = [{"role": "user", "content": content}]
    fixed = {"tools": None, "documents": None, "add_generation_prompt": True}
    pieces, room = [], most + 4 * len(content)
    for piece in template.generate(messages=turns, **{**fixed, **variables}):
        pieces.append(piece)
        room -= len(piece)
        if room < 0:
            raise ValueError(f"it writes more than {most} characters")
    return "".join(pieces)


def main() -> None:
    """Answer ``{"fault": why}``, or a list with ``{"text": rendered}`` or ``{"fault": why}`` for each content."""
    request = json.load(sys.stdin)
    sys.path += request["paths"]
    limit_memory(request["memory"])
    restart_clock(request["seconds"])
    answers: Any = []
    try:
        template = environment(request["date"]).from_string(request["template"])
    except Exception as error:
        answers = {"fault": f"{type(error).__name__}: {error}"}
    for content in request["contents"] if isinstance(answers, list) else ():
        restart_clock(request["seconds"])
        try:
            answers.append({"text": render(template, content, request["variables"], request["characters"])})
        except Exception as error:  # whatever a template may raise, the sandbox's errors too
            answers.append({"fault": f"{type(error).__name__}: {error}"[:300]})
    restart_clock(0)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
