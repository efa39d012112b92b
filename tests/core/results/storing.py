"""A job and a result of it, for the tests of the store."""

from __future__ import annotations

import numpy as np
import xarray as xr

from xatlas.results.jobs import Job

JOB = Job(
    model="qwen-mini",
    weights="abc123",
    probe="layers",
    parameters={"ablation": ["mean", "zero"], "top": 3},
    suite="5" * 64,
    reference="6" * 64,
)


def result(value=1.0):
    return xr.Dataset(
        {
            "kl": (("prompt", "layer"), np.full((2, 3), value, np.float32), {"units": "nats"}),
            "top_token": (("prompt",), ["é", " the"]),
            "empty": (("none",), np.zeros(0)),
        },
        coords={"prompt": ["a", "b"], "layer": [0, 1, 2], "family": ("prompt", ["x", "y"])},
    )
