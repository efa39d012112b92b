"""The engine: thousands of interventions in one walk over the layers."""

from xatlas.sweep.budget import Budget
from xatlas.sweep.engine import Runs, sweep

__all__ = ["Budget", "Runs", "sweep"]
