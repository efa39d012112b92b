"""The engine: thousands of interventions in one walk over the layers."""

from xatlas.sweep.budget import Budget
from xatlas.sweep.engine import sweep
from xatlas.sweep.schedule import Runs

__all__ = ["Budget", "Runs", "sweep"]
