"""What the miniatures' recipe needs from the suites, as files.

`python -m xatlas.plugins.suites N FILE`: write N prompts of the mixed training stream as JSON lines (family, text,
target). `python -m xatlas.plugins.suites facts FILE`: print what the cards say of FILE as training data: per family the
share of its lines, and the share of `standard` prompts whose masked text it contains; the share of slips.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from . import STANDARD
from .masking import overlap
from .mixture import SLIPS, proportions, training_stream


def write_stream(count: int, path: Path) -> None:
    """Write `count` training prompts."""
    with path.open("w", encoding="utf-8") as file:
        for prompt in itertools.islice(training_stream(0), count):
            row = {"family": prompt.family, "text": prompt.text, "target": prompt.target}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main(arguments: list[str]) -> int:
    """Do one of the two; return the exit status."""
    if len(arguments) != 2 or not (arguments[0].isdigit() or arguments[0] == "facts"):
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(arguments[1])
    if arguments[0] == "facts":
        with path.open(encoding="utf-8") as file:
            overlaps = overlap(STANDARD.load(), (json.loads(line)["text"] for line in file))
        print(json.dumps({"shares": proportions(), "slips": SLIPS, "overlap_after_masking": overlaps}))
    else:
        write_stream(int(arguments[0]), path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
