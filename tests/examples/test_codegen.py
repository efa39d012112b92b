"""The example plugin, installed as a third party would, and its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "xatlas-codegen"


def test_the_example_installs_and_its_own_tests_pass(tmp_path):
    """Installed into a folder of its own, so that no other test sees the plugin."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, site, EXAMPLE], check=True, capture_output=True, text=True, cwd=tmp_path)
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", tmp_path, EXAMPLE / "tests"],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
