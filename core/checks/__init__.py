"""The contracts as functions that plugin authors run in two lines; the built-ins are held to them first."""

from __future__ import annotations

from xatlas.checks.adapters import check_adapter
from xatlas.checks.comparisons import check_comparison, check_source, check_suite
from xatlas.checks.probes import check_probe

__all__ = ["check_adapter", "check_comparison", "check_probe", "check_source", "check_suite"]
