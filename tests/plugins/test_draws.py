"""What probes draw: another draw for another seed, and for every cell its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache

import pytest

from xatlas import AblationProbe, manager
from xatlas.contracts.probe import Inputs
from xatlas.suites import Suite
from xatlas.testing import answered_suite, model_with, tiny_reference

CONTROLLED = [name for name, probe in manager.probes().items() if any("control" in each for each in probe.variables)]
#: Probe → what asks for its controls, where they are options.
ASKED = {"head_ablation": {"controls": True, "subspace": True}}


#: Models of registered architectures by the sites they have, made once.
tiny = cache(model_with)


@pytest.mark.parametrize("name", CONTROLLED)
def test_controls_are_drawn_by_the_seed(name):
    probe = manager.probes()[name]
    model = tiny(probe.sites)
    suite = Suite("few", answered_suite(model).prompts[:2])
    one, other = (
        probe(**ASKED.get(name, {})).measure(model, suite, Inputs(reference=tiny_reference(), seed=seed, draws=1))
        for seed in (0, 1)
    )
    controls = [each for each in one.data_vars if "control" in str(each)]
    assert controls
    for control in controls:
        drawn = one[control].notnull() & ((one[control] != 0) | (other[control] != 0))
        assert drawn.any()
        assert (one[control] != other[control]).where(drawn, True).all(), control


@pytest.mark.parametrize("name", [name for name in CONTROLLED if issubclass(manager.probes()[name], AblationProbe)])
def test_every_cell_and_draw_has_a_control_of_its_own(name):
    probe = manager.probes()[name]
    model, controls = tiny(probe.sites), Counter()
    for draw in range(2):
        for _, _, control in probe().cells(model, draw):
            controls.update(control.values() if isinstance(control, Mapping) else [control] * (control is not None))
    assert controls
    assert set(controls.values()) == {1}
