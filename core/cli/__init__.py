"""The command line: it parses options, calls what Python users call, and prints."""

from xatlas.cli import commands, judging, lists, one_model  # each adds its commands to the app
from xatlas.cli.app import app, main

__all__ = ["app", "commands", "judging", "lists", "main", "one_model"]
