"""Capability: which tests a model passes, in fourteen categories."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xatlas import Inputs, Probe, Suite, Variable, hookimpl
from xatlas.plugins.skills.choosing import AskingProbe

if TYPE_CHECKING:
    import xarray as xr

    from xatlas import HookedModel


class Capability(AskingProbe):
    """Which tests a model passes when it answers greedily.

    Definition: each test is put as the user's turn of the model's chat template, or without one as
    ``User: … Assistant:`` (``chat`` says which), and continued greedily up to the test's own length; the answer passes
    if every check that the test names holds for what it says, as parsed. ``passed`` is 1 or 0. The answer, the prompt
    as run, the category and why the answer ended are kept with each test, and at how many steps the two largest logits
    lie within 1e-4 (``ties``): there a batch of other questions may decide otherwise. Tests that don't fit the model's
    context are NaN. ``tests`` is ``built-in``, a file of the same form (JSON lines: id, category, prompt or messages,
    check, target), or the name of a suite: then the model goes on from a prompt's text, and passes if it writes the
    target. With ``run_code``, answers that are code are also run, in a process that can do nothing but compute.

    Unit: 1 (passed) or 0.

    Control: none is run: every test carries wrong answers that its check rejects, so that chance is near 0; where
    a test offers options, the share that guessing passes is at most one of them.

    Source: Wilson 1927 and McNemar 1947 for what comparisons make of it.
    """

    name = "capability"
    version = 1
    check_parameters = {"categories": ("math",), "per_category": 2}  # noqa: RUF012 - declared ClassVar in the base
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "passed": Variable(("test",), "1", "whether the answer passes the test"),
    }

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Ask every test, and check the answers."""
        import numpy as np

        from xatlas.plugins.skills.asking import answer_all
        from xatlas.plugins.skills.choosing import about, judged, questions_of
        from xatlas.schema import cells, label

        tests, questions = questions_of(model, self.parameters)
        answers = answer_all(model, questions, inputs)
        coords = about(tests, questions, answers)
        passed = judged(tests, answers, self.parameters.run_code)
        long = [name for name, value in zip(coords["test"], passed, strict=True) if np.isnan(value)]
        absent = {cells(test=[name]): "prompt and answer are longer than the model's context" for name in long}
        return label(self.variables, {"passed": passed}, coords, absent=absent)


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [Capability]
