"""Where the sweep is imported from; the engine is its home."""

from xatlas.engine.schedule import Budget, Runs
from xatlas.engine.sweep import named_sweep, sweep

__all__ = ["Budget", "Runs", "named_sweep", "sweep"]
