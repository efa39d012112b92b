"""Names → jobs in dependency order → results → comparisons."""

from xatlas.run.runner import explain, run

__all__ = ["explain", "run"]
