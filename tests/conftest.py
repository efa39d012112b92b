"""Models that many tests share. Also puts this folder on the path, for ``models`` and ``reference``."""

from __future__ import annotations

import gc
from functools import cache

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import pytest
import xarray  # noqa: F401
from models import SHAPES, build

from xatlas.model import HookedModel


def pytest_collection_modifyitems(items):
    """Put files that take long first: short ones then fill both processes to the end."""
    items.sort(key=lambda item: item.path.parent.name not in ("real", "contracts", "findings", "training", "examples"))


def pytest_collection_finish():
    """Each run collects garbage before it loads the next model, and would walk over all that was ever imported."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    gc.collect()
    gc.freeze()


@cache
def hooked_shape(name):
    kind, overrides = SHAPES[name]
    return HookedModel(build(kind, **overrides), None, slug=name)


@pytest.fixture
def shape():
    """Return ``shape(name)``: the proved model of one of ``models.SHAPES``; tests leave its weights alone."""
    return hooked_shape
