"""What can be done to a site. A new kind of intervention is one small class, here or in a plugin."""

from xatlas.interventions.changes import Add, FromRun, Mean, One, Zero
from xatlas.interventions.contract import Change, Condition, Intervention, Place, Scene, edit, means_needed
from xatlas.interventions.controls import InSubspace, RandomDirection

__all__ = [
    "Add",
    "Change",
    "Condition",
    "FromRun",
    "InSubspace",
    "Intervention",
    "Mean",
    "One",
    "Place",
    "RandomDirection",
    "Scene",
    "Zero",
    "edit",
    "means_needed",
]
