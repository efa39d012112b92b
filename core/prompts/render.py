"""Renders a chat template as a process of its own, run by path: it may never end, or fill the memory.

Takes a request on stdin and answers on stdout, both JSON: ``{"fault": why}`` where the template can't be read, else a
list with ``{"text": rendered}`` or ``{"fault": why}`` for each content. Imports transformers' templates, never torch.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
from datetime import datetime
from typing import Any


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
    from transformers.utils.chat_template_utils import _compile_jinja_template

    variables = request["variables"] | {"strftime_now": datetime.fromisoformat(request["date"]).strftime}
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system can
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (request["memory"], resource.getrlimit(resource.RLIMIT_AS)[1]))
    _restart_clock(request["seconds"])
    answers: Any = []
    try:
        template = _compile_jinja_template(request["template"])
    except Exception as error:
        answers = {"fault": f"{type(error).__name__}: {error}"}
    for content in request["contents"] if isinstance(answers, list) else ():
        _restart_clock(request["seconds"])
        try:
            answers.append({"text": _render(template, content, variables, request["characters"])})
        except Exception as error:  # whatever a template may raise, the sandbox's errors too
            answers.append({"fault": f"{type(error).__name__}: {error}"[:300]})
    _restart_clock(0)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    _main()
