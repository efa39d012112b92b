"""Every registered adapter, probe and comparison keeps its contract: what third parties run too."""

from __future__ import annotations

import pytest

from xatlas import check_adapter, check_comparison, check_probe, manager


@pytest.mark.parametrize("name", sorted(manager.adapters()))
def test_adapter(name):
    check_adapter(manager.adapters()[name])


@pytest.mark.parametrize("name", sorted(manager.probes()))
def test_probe(name):
    check_probe(manager.probes()[name])


@pytest.mark.parametrize("name", sorted(manager.comparisons()))
def test_comparison(name):
    check_comparison(manager.comparisons()[name])
