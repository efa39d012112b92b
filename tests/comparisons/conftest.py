"""Synthetic results in the shapes of real ones, for every test of a comparison."""

import planting
import pytest


@pytest.fixture(scope="session")
def synthetic():
    return planting
