"""The command line: nothing but words and progress bars."""

from xatlas.cli.commands import app, main

__all__ = ["app", "main"]
