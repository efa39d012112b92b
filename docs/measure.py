"""Measure by how much the engine differs from plain hooks, on a tiny model of every registered class.

Run ``make classes``, or this file with the names of some classes; it writes ``architectures.json``, from which
``generate.py`` makes the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("architectures.json")
sys.path.insert(0, str(FILE.parents[1] / "tests"))


def measure(names: Iterable[str]) -> dict[str, Any]:
    """Return what each class's adapter states, the largest differences, in nats, and what comes of one suggested."""
    import every_class

    found: dict[str, Any] = {}
    for name in names:
        gaps: dict[str, float] = {}
        for variant in (name, *(key for key, (cls, _) in every_class.VARIANTS.items() if cls == name)):
            model = every_class.hooked(variant)
            pairs = every_class.ablations(model) | {"steering": every_class.steering(model)}
            for word, (ours, plain) in pairs.items():
                gaps[word] = max(gaps.get(word, 0.0), float(np.abs(ours - plain).max()))
            if variant == name:
                found[name] = every_class.stated(model)
        found[name]["gaps"] = {word: float(f"{gap:.0e}") for word, gap in gaps.items()}
        found[name]["suggested"] = every_class.suggested(name)
        every_class.hooked.cache_clear()
        print(
            name,
            found[name]["gaps"],
            found[name]["suggested"],
            {w: float(f"{np.median(p[1]):.1g}") for w, p in pairs.items()},
            file=sys.stderr,
        )
    return found


def main(names: list[str]) -> None:
    """Write the file anew, or only the rows of classes that are named."""
    import torch
    import transformers

    from xatlas import manager

    kept = json.loads(FILE.read_text(encoding="utf-8"))["classes"] if names and FILE.exists() else {}
    classes = kept | measure(names or sorted(manager.adapters()))
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(classes[name])}" for name in sorted(classes))
    versions = {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}
    FILE.write_text(f'{{\n "versions": {json.dumps(versions)},\n "classes": {{\n{rows}\n }}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
