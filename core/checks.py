"""The contracts as functions that plugin authors run in two lines; the built-ins are held to them first."""

from __future__ import annotations

from xatlas.adapter_checks import check_adapter
from xatlas.comparison_checks import check_comparison
from xatlas.probe_checks import check_probe

__all__ = ["check_adapter", "check_comparison", "check_probe"]
