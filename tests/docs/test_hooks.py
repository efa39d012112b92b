"""docs/hooks.md shows every hook as core/hookspecs.py declares it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from xatlas import hookspecs

PAGE = Path(__file__).parents[2] / "docs" / "hooks.md"


def test_the_page_shows_the_declared_signatures_in_order_with_their_sentences():
    declared = [
        (f"{name}{inspect.signature(hook)}".replace("'", ""), inspect.getdoc(hook))
        for name, hook in vars(hookspecs).items()
        if hasattr(hook, "xatlas_spec")
    ]
    shown = re.findall(r"```\n(xatlas_\w+\(.*?)\n```\n\n(.*?)(?=\n```|\Z)", PAGE.read_text(), re.DOTALL)
    assert len(declared) == 5
    assert [signature for signature, _ in shown] == [signature for signature, _ in declared]
    for (_, prose), (_, sentence) in zip(shown, declared, strict=True):
        assert " ".join(prose.split()).startswith(sentence.rstrip("."))
