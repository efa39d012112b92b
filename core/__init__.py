"""Tell where behaviour lives in a language model, and whether it is in the same place in another.

Names are loaded when they are first used, so that importing ``xatlas`` stays instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "Adapter": "contracts.adapter",
    "Comparison": "contracts.comparison",
    "Finding": "contracts.comparison",
    "XatlasError": "errors",
    "hookimpl": "hookspecs",
    "HookedModel": "model.hooked",
    "Inputs": "contracts.probe",
    "Probe": "contracts.probe",
    "ReadingProbe": "contracts.probe",
    "Requirement": "contracts.probe",
    "Variable": "contracts.probe",
    "AblationProbe": "probing.ablation",
    "HeadLayout": "contracts.adapter",
    "HookPoint": "contracts.adapter",
    "Site": "contracts.adapter",
    "Intervention": "interventions",
    "ModelSource": "loading.hub",
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
    from xatlas.api import compare as compare
    from xatlas.api import load as load
    from xatlas.api import measure as measure
    from xatlas.api import open as open
    from xatlas.checks import check_adapter as check_adapter
    from xatlas.checks import check_comparison as check_comparison
    from xatlas.checks import check_probe as check_probe
    from xatlas.checks import check_source as check_source
    from xatlas.checks import check_suite as check_suite
    from xatlas.contracts.adapter import Adapter as Adapter
    from xatlas.contracts.adapter import HeadLayout as HeadLayout
    from xatlas.contracts.adapter import HookPoint as HookPoint
    from xatlas.contracts.adapter import Site as Site
    from xatlas.contracts.comparison import Comparison as Comparison
    from xatlas.contracts.comparison import Finding as Finding
    from xatlas.contracts.probe import Inputs as Inputs
    from xatlas.contracts.probe import Probe as Probe
    from xatlas.contracts.probe import ReadingProbe as ReadingProbe
    from xatlas.contracts.probe import Requirement as Requirement
    from xatlas.contracts.probe import Variable as Variable
    from xatlas.errors import XatlasError as XatlasError
    from xatlas.hookspecs import hookimpl as hookimpl
    from xatlas.interventions import Intervention as Intervention
    from xatlas.loading.hub import ModelSource as ModelSource
    from xatlas.model import HookedModel as HookedModel
    from xatlas.probing.ablation import AblationProbe as AblationProbe
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
