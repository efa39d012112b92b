"""Where the sweep is imported from; the engine is its home."""

from xatlas.engine.schedule import Budget, Runs
from xatlas.engine.sweep import sweep

__all__ = ["Budget", "Runs", "sweep"]
