"""Text of others does nothing to terminals and spreadsheets; lists are taken apart at the right commas."""

from __future__ import annotations

import unicodedata

import pytest

from xatlas.errors import XatlasError
from xatlas.text import one_line, printable, split_names, spreadsheet_cell


def test_what_a_terminal_would_obey_is_escaped_and_all_else_stays():
    for code in range(0x11000):
        letter, kind = chr(code), unicodedata.category(chr(code))
        turns = unicodedata.bidirectional(letter) in {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
        obeyed = (kind in ("Cc", "Cs", "Zl", "Zp") and letter not in "\n\t") or turns
        assert (printable(letter) != letter) >= obeyed, hex(code)
        assert printable(letter).isprintable() or letter in "\n\t" or not obeyed
        if kind[0] in "LMNPS" or letter == " ":
            assert printable(letter) == letter
    assert printable("\x1b[31m\u202eab\ud800") == r"\x1b[31m\u202eab\ud800"
    assert one_line(" a\n b\x1b") == r"a b\x1b"


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1"])
def test_a_formula_is_no_cell(text):
    assert spreadsheet_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-0.5", "+3", "a=1", "", -0.5, 3, "t-2"])
def test_what_is_no_formula_stays_as_it_is(value):
    assert spreadsheet_cell(value) is value


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("a, b ,c", ["a", "b", "c"]),
        ('"runs/x,y",b', ["runs/x,y", "b"]),
        ('a, "b,""c"""', ["a", 'b,"c"']),
        ("a\nb", ["a", "b"]),
    ],
)
def test_a_list_is_taken_apart(text, names):
    assert split_names(text) == names


@pytest.mark.parametrize("text", ["", " ", ",", "a,,b", "a,", '"a', '"a"b'])
def test_a_list_with_a_hole_is_refused(text):
    with pytest.raises(XatlasError, match="the list"):
        split_names(text)
