"""Datasets of probes: labelled as declared, and checked against it. Imports no torch."""

from xatlas.schema.labels import cells, head_coords, label, layer_coords, notes, prompt_coords, suite_coords
from xatlas.schema.validation import validate

__all__ = ["cells", "head_coords", "label", "layer_coords", "notes", "prompt_coords", "suite_coords", "validate"]
