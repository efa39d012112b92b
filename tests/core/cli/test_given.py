"""Parameters of probes, as the command line is given them."""

from __future__ import annotations

import pytest

from xatlas.cli.options import parse_parameters
from xatlas.errors import XatlasError


def test_parameters_are_parsed_from_texts():
    assert parse_parameters(["p.a=1,2", "p.b=x=y", "q.c="]) == {"p": {"a": "1,2", "b": "x=y"}, "q": {"c": ""}}
    for text in ("p=1", "p.a", ".a=1", "p.=1"):
        with pytest.raises(XatlasError, match=r"PROBE\.NAME=VALUE"):
            parse_parameters([text])
