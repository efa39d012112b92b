"""Names and paths → models: aliases, the local cache, the hub, GGUF files, LoRA weights."""

from xatlas.loading.loader import LoadedParts, load, pick_device
from xatlas.loading.names import AvailableModel, Resolved, available, fetch, resolve

__all__ = ["AvailableModel", "LoadedParts", "Resolved", "available", "fetch", "load", "pick_device", "resolve"]
