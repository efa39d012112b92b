"""Where behaviour lives in a language model, and whether it is in the same place in another.

Names are loaded when they are first used, so that importing ``xatlas`` stays instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "api": "attention compare lens load measure open",
    "checks": "check_adapter check_comparison check_probe check_source check_suite",
    "contracts.adapter": "Adapter HeadLayout HookPoint Site",
    "contracts.comparison": "Comparison Finding",
    "contracts.probe": "Inputs Probe ReadingProbe Requirement Variable",
    "drawing": "plot",
    "errors": "XatlasError",
    "hookspecs": "hookimpl",
    "interventions": "Intervention",
    "loading.download": "ModelSource",
    "model": "HookedModel",
    "probing.ablation": "AblationProbe",
    "suites": "Prompt Suite SuiteSpec read_suite",
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names.split()}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from xatlas.api import (
        attention as attention,
        compare as compare,
        lens as lens,
        load as load,
        measure as measure,
        open as open,
    )
    from xatlas.checks import (
        check_adapter as check_adapter,
        check_comparison as check_comparison,
        check_probe as check_probe,
        check_source as check_source,
        check_suite as check_suite,
    )
    from xatlas.contracts.adapter import (
        Adapter as Adapter,
        HeadLayout as HeadLayout,
        HookPoint as HookPoint,
        Site as Site,
    )
    from xatlas.contracts.comparison import Comparison as Comparison, Finding as Finding
    from xatlas.contracts.probe import (
        Inputs as Inputs,
        Probe as Probe,
        ReadingProbe as ReadingProbe,
        Requirement as Requirement,
        Variable as Variable,
    )
    from xatlas.drawing import plot as plot
    from xatlas.errors import XatlasError as XatlasError
    from xatlas.hookspecs import hookimpl as hookimpl
    from xatlas.interventions import Intervention as Intervention
    from xatlas.loading.download import ModelSource as ModelSource
    from xatlas.model import HookedModel as HookedModel
    from xatlas.probing.ablation import AblationProbe as AblationProbe
    from xatlas.suites import Prompt as Prompt, Suite as Suite, SuiteSpec as SuiteSpec, read_suite as read_suite


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'xatlas' has no attribute '{name}'")
    return getattr(importlib.import_module(f"xatlas.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
