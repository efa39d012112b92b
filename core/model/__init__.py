"""A Hugging Face model under hooks: capture its sites, edit them, prove that they are what they are called."""

from xatlas.model.hooked import HookedModel, adapter_for, make_reader
from xatlas.model.hooks import Capture

__all__ = ["Capture", "HookedModel", "adapter_for", "make_reader"]
