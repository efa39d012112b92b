"""Link what a wheel says it requires, and nothing else, from the environment that runs this into another one.

Usage: python link.py WHEEL ENVIRONMENT. What the wheel uses but does not require can't be imported there.
"""

import sys
import zipfile
from collections.abc import Iterable, Iterator
from email import message_from_bytes
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def needed(requirements: Iterable[str], extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """Yield the requirements that hold here, with some extras asked for."""
    for each in map(Requirement, requirements):
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield each


def closure(requirements: Iterable[str]) -> Iterator[Distribution]:
    """Yield what is required, what that requires, and so on."""
    seen, left = set(), list(needed(requirements))
    while left:
        one = left.pop()
        if (one.name, *sorted(one.extras)) not in seen:
            seen.add((one.name, *sorted(one.extras)))
            yield distribution(one.name)
            left += needed(distribution(one.name).requires or (), one.extras)


def main(wheel: str, environment: str) -> None:
    """Link folders and modules, and what says of which distribution they are."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requirements = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
    (site,) = Path(environment).glob("lib/python*/site-packages")
    for found in closure(requirements):
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(str(found.locate_file(name))).resolve())


if __name__ == "__main__":
    main(*sys.argv[1:])
