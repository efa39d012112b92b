"""Typed parameters: from texts, checked, canonical."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from xatlas.contracts.parameters import Parameterised
from xatlas.errors import XatlasError


@dataclass(frozen=True)
class Parameters:
    count: int = 3
    rate: float = 0.5
    name: str = "a"
    on: bool = False
    kinds: tuple[str, ...] = ("x",)
    layers: tuple[int, ...] = ()
    limit: int | None = None
    mode: Literal["fast", "exact"] = "fast"


class Owner(Parameterised):
    name = "probe"
    Parameters = Parameters


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"count": "7"}, 7),
        ({"count": 7.0}, 7),
        ({"rate": "1e-4"}, 1e-4),
        ({"rate": 2}, 2.0),
        ({"name": "5"}, "5"),
        ({"on": "yes"}, True),
        ({"on": "0"}, False),
        ({"kinds": "zero,mean"}, ("zero", "mean")),
        ({"kinds": ["zero"]}, ("zero",)),
        ({"kinds": ""}, ()),
        ({"layers": "1,2"}, (1, 2)),
        ({"limit": "none"}, None),
        ({"limit": "4"}, 4),
        ({"mode": "exact"}, "exact"),
    ],
)
def test_texts_become_what_the_type_says(given, value):
    (name,) = given
    found = getattr(Owner(**given).parameters, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"count": "x"}, r"probe.count = 'x' does not fit: it takes a whole number"),
        ({"count": 1.5}, "a whole number"),
        ({"count": True}, "a whole number"),
        ({"rate": "fast"}, "a number"),
        ({"rate": "nan"}, "a number"),
        ({"rate": float("inf")}, "a number"),
        ({"rate": 10**400}, "a number"),
        ({"count": "9" * 5000}, r"9\.?.{0,60} does not fit"),
        ({"on": "maybe"}, "true or false"),
        ({"name": 3}, "a text"),
        ({"layers": "1,b"}, "a list, comma-separated, of a whole number"),
        ({"limit": "x"}, "a whole number or none"),
        ({"count": "none"}, "a whole number"),
        ({"mode": "slow"}, "one of fast, exact"),
        ({"kinda": "x"}, r"unknown parameter of probe 'kinda'; did you mean 'kinds'\?"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(given, told):
    with pytest.raises(XatlasError, match=told):
        Owner(**given)


def test_canonical_parameters_do_not_depend_on_how_they_were_written():
    """They enter the job's key: the same measure must not be made twice under two keys."""
    texts = Owner(kinds="x", count="3", layers="").canonical_parameters()
    assert texts == Owner().canonical_parameters()
    assert texts["kinds"] == ["x"]
    assert set(texts) == set(Parameters.__dataclass_fields__)
