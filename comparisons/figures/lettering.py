"""How wide text is, and how it is broken into lines that fit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from xatlas.text import one_line

#: The font of every figure.
FONT = "DejaVu Sans"


@lru_cache(maxsize=4096)
def _advance(character: str, bold: bool) -> float:
    """Return a character's width over the font's size."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font = FontProperties(family=FONT, weight="bold" if bold else "normal", size=100)
    return float(TextToPath().get_text_width_height_descent(character, font, False)[0]) / 100


def width_of(text: str, size: float, bold: bool = False) -> float:
    """Return about how wide a line is, in inches, rather too much than too little."""
    return 1.04 * size / 72 * sum(_advance(character, bold) for character in text)


def fitted(text: str, inches: float, size: float, *, bold: bool = False, lines: int = 5) -> str:
    """Return text of others as lines that fit; of what takes more ``lines`` the middle is left out."""
    text, left_out = one_line(text), 0
    while True:
        middle = (len(text) - left_out) // 2
        shown = text if not left_out else f"{text[:middle]}…{text[middle + left_out :]}"
        found = _broken(shown, inches, size, bold)
        if len(found) <= lines or len(shown) < 4:
            return "\n".join(found).replace("$", r"\$")  # a pair of them would be read as a formula
        left_out += max(1, len(text) // 50)


def _broken(text: str, inches: float, size: float, bold: bool) -> list[str]:
    """Break a text where words end, or else parts of names."""
    found, line = [], ""
    for character in text:
        if line and width_of(line + character, size, bold) > inches:
            end = max(line.rfind(sign) for sign in " -_/@+,;") + 1
            end = end if 2 * end > len(line) else len(line)
            found.append(line[:end].rstrip())
            line = line[end:]
        line += character if line or character != " " else ""
    return [*found, line]


def extra(texts: Sequence[str], size: float) -> float:
    """Return how much higher, in inches, the highest of some texts is than one line."""
    return max((text.count("\n") for text in texts), default=0) * size * 1.3 / 72
