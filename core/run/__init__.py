"""Names → jobs in dependency order → results → comparisons."""

from xatlas.run.runner import run

__all__ = ["run"]
