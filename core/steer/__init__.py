"""Steering one text: where a direction comes from, and what the model goes on to say with it."""

from xatlas.steer.continuation import Steered, check_strength, steer
from xatlas.steer.source import Source

__all__ = ["Source", "Steered", "check_strength", "steer"]
