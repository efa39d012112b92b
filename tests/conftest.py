"""Models that many tests share. Also puts this folder on the path, for ``models`` and ``reference``."""

from __future__ import annotations

from functools import cache

import pytest
from models import SHAPES, build

from xatlas.model import HookedModel


@cache
def hooked_shape(name):
    kind, overrides = SHAPES[name]
    return HookedModel(build(kind, **overrides), None, slug=name)


@pytest.fixture
def shape():
    """Return ``shape(name)``: the proved model of one of ``models.SHAPES``; tests leave its weights alone."""
    return hooked_shape
