"""A model's name becomes a folder (model_names), a folder becomes a model in memory (loader)."""

from xatlas.loading.loader import LoadedParts, load, pick_device
from xatlas.loading.model_names import Resolved, available, resolve

__all__ = ["LoadedParts", "Resolved", "available", "load", "pick_device", "resolve"]
