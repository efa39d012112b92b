"""Names → jobs in dependency order → results → comparisons."""

from xatlas.run.runner import explain, load_hooked, run

__all__ = ["explain", "load_hooked", "run"]
