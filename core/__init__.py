"""Tell where behaviour lives in a language model, and whether it is in the same place in another.

Names are loaded when they are first used, so that importing ``xatlas`` stays instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "Adapter": "adapter",
    "Comparison": "comparison",
    "Finding": "comparison",
    "XatlasError": "errors",
    "hookimpl": "hookspecs",
    "HookedModel": "model",
    "Inputs": "probe",
    "Probe": "probe",
    "ReadingProbe": "probe",
    "Requirement": "probe",
    "Variable": "probe",
    "AblationProbe": "measures.ablation",
    "HeadLayout": "sites",
    "HookPoint": "sites",
    "Site": "sites",
    "Intervention": "interventions",
    "ModelSource": "loading.sources",
    "Prompt": "suites",
    "Suite": "suites",
    "SuiteSpec": "suites",
    "read_suite": "suites",
    "check_adapter": "checks",
    "check_comparison": "checks",
    "check_probe": "checks",
    "check_source": "checks",
    "check_suite": "checks",
    "measure": "api",
    "compare": "api",
    "load": "api",
    "open": "api",
}

__all__ = sorted(_HOME)
__version__ = "0.1.0"

if TYPE_CHECKING:
    from xatlas.adapter import Adapter as Adapter
    from xatlas.api import compare as compare
    from xatlas.api import load as load
    from xatlas.api import measure as measure
    from xatlas.api import open as open
    from xatlas.checks import check_adapter as check_adapter
    from xatlas.checks import check_comparison as check_comparison
    from xatlas.checks import check_probe as check_probe
    from xatlas.checks import check_source as check_source
    from xatlas.checks import check_suite as check_suite
    from xatlas.comparison import Comparison as Comparison
    from xatlas.comparison import Finding as Finding
    from xatlas.errors import XatlasError as XatlasError
    from xatlas.hookspecs import hookimpl as hookimpl
    from xatlas.interventions import Intervention as Intervention
    from xatlas.loading.sources import ModelSource as ModelSource
    from xatlas.measures.ablation import AblationProbe as AblationProbe
    from xatlas.model import HookedModel as HookedModel
    from xatlas.probe import Inputs as Inputs
    from xatlas.probe import Probe as Probe
    from xatlas.probe import ReadingProbe as ReadingProbe
    from xatlas.probe import Requirement as Requirement
    from xatlas.probe import Variable as Variable
    from xatlas.sites import HeadLayout as HeadLayout
    from xatlas.sites import HookPoint as HookPoint
    from xatlas.sites import Site as Site
    from xatlas.suites import Prompt as Prompt
    from xatlas.suites import Suite as Suite
    from xatlas.suites import SuiteSpec as SuiteSpec
    from xatlas.suites import read_suite as read_suite


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'xatlas' has no attribute '{name}'")
    return getattr(importlib.import_module(f"xatlas.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
