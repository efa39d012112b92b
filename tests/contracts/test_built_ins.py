"""Every registered adapter, probe, comparison, suite and model keeps its contract: what third parties run too."""

from __future__ import annotations

import pytest
from plain_names import RARE

from xatlas import check_adapter, check_comparison, check_probe, check_source, check_suite, manager

ADAPTERS = [pytest.param(name, marks=pytest.mark.slow) if name in RARE else name for name in sorted(manager.adapters())]


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter(name):
    check_adapter(manager.adapters()[name])


@pytest.mark.parametrize("name", sorted(manager.probes()))
def test_probe(name):
    check_probe(manager.probes()[name])


@pytest.mark.parametrize("name", sorted(manager.comparisons()))
def test_comparison(name):
    check_comparison(manager.comparisons()[name])


@pytest.mark.parametrize("name", sorted(manager.suites()))
def test_suite(name):
    check_suite(manager.suites()[name])


@pytest.mark.parametrize("name", sorted(manager.models()))
def test_model(name):
    check_source(manager.models()[name])
