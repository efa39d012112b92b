"""The contracts as functions that plugin authors run in two lines; the built-ins are held to them first.

Each raises ``XatlasError`` at the first violation, in one line.
"""

from xatlas.checks.adapters import ABSOLUTE, RELATIVE, check_adapter
from xatlas.checks.plugins import check_comparison, check_probe, check_source, check_suite

__all__ = ["ABSOLUTE", "RELATIVE", "check_adapter", "check_comparison", "check_probe", "check_source", "check_suite"]
