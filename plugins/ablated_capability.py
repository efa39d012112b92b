"""Ablated capability: which tests a model still passes while a layer or a head is removed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from xatlas import Inputs, Intervention, Probe, Site, Suite, Variable, XatlasError, hookimpl
from xatlas.interventions import Change, Zero
from xatlas.plugins.skills.choosing import AskingProbe

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from xatlas import HookedModel
    from xatlas.interventions import Condition, Target

#: The condition that removes nothing.
CLEAN = "none"


@dataclass(frozen=True)
class AddEqual(Change):
    """Add a random direction of the value's own length, token by token: as much as removing it changes."""

    draw: int

    def __call__(self, value: Tensor, target: Target) -> Tensor:
        """Return the value with the direction added."""
        direction = target.random(value.shape[2:], f"equal {self.draw}", value)
        over = tuple(range(2, value.dim()))
        scale = value.float().square().sum(over, keepdim=True).sqrt() / direction.float().norm()
        added: Tensor = value + (direction * scale).to(value.dtype)
        return added


class AblatedCapability(AskingProbe):
    """Which tests a model passes while what a layer, or a head, writes is removed at every token.

    Definition: as ``capability``, with an ablation at zero held over the prompt and every step of generation: of what
    operator and MLP of a layer add to the stream (``component`` names one of them), or of one head's input to the
    output projection. Every condition is a label: ``none`` removes nothing, ``layer 3`` a layer, ``layer 3 head 1`` a
    head. Answers and prompts are kept with each test and condition; they are those of running all of the text anew at
    each step.

    Unit: 1 (passed) or 0.

    Control: ``layer 3 (random)``: to what would be removed, a random direction of the same length is added instead.

    Source: ablation over generation, as in Wang et al. 2211.00593 for single tokens.
    """

    name = "ablated_capability"
    version = 2
    check_parameters = {"categories": ("math",), "layers": (0,)}  # noqa: RUF012 - declared ClassVar in the base
    sites = ("operator_out",)
    variables = {  # noqa: RUF012 - declared ClassVar in the base
        "passed": Variable(("test", "condition"), "1", "whether the answer passes the test"),
    }

    @dataclass(frozen=True)
    class Parameters(AskingProbe.Parameters):
        """What is asked, and what is removed meanwhile."""

        per_category: int = 1
        layers: tuple[int, ...] = ()  # all
        heads: tuple[str, ...] = ()  # LAYER.HEAD, as 3.1; with heads, no whole layer is removed unless layers are named
        component: Literal["joint", "operator", "mlp"] = "joint"

    def measure(self, model: HookedModel, suite: Suite, inputs: Inputs) -> xr.Dataset:
        """Ask every test under every condition, and check the answers."""
        import numpy as np

        from xatlas.model.generation import way_for
        from xatlas.plugins.skills.asking import answer_all
        from xatlas.plugins.skills.choosing import about, judged, questions_of
        from xatlas.schema import cells, label

        tests, questions = questions_of(model, self.parameters)
        way_for(model)  # tried on the model as it is
        conditions = dict(self._conditions(model))
        passed, texts = [], []
        for name, condition in conditions.items():
            with model.intervene(condition, seed=inputs.seed):
                answers = answer_all(model, questions, inputs, name, part=f"{name}|{self.parameters.component}")
            passed.append(judged(tests, answers, self.parameters.run_code))
            texts.append([answer.text for answer in answers])
            if name == CLEAN:
                coords = about(tests, questions, answers)
        coords["condition"] = list(conditions)
        coords["answer"] = (("test", "condition"), np.array(texts, dtype=object).T)
        del coords["answer_tokens"], coords["stop_reason"], coords["ties"]
        values = np.array(passed).T
        long = [name for name, row in zip(coords["test"], values, strict=True) if np.isnan(row).any()]
        absent = {cells(test=[name]): "prompt and answer are longer than the model's context" for name in long}
        return label(self.variables, {"passed": values}, coords, absent=absent)

    def _conditions(self, model: HookedModel) -> Iterator[tuple[str, Condition]]:
        """Yield the name of every condition with its interventions, each followed by its control."""
        asked = self.parameters
        yield CLEAN, ()
        kinds = {"operator": ("operator_out",), "mlp": ("mlp_out",)}.get(asked.component, ("operator_out", "mlp_out"))
        for layer in asked.layers or (() if asked.heads else range(model.n_layers)):
            if not 0 <= layer < model.n_layers:
                raise XatlasError(f"layer {layer} is out of range: the model has layers 0 to {model.n_layers - 1}.")
            sites = [Site(layer, kind) for kind in kinds if model.has(Site(layer, kind))]
            if sites:
                yield f"layer {layer}", tuple(Intervention(site, Zero()) for site in sites)
                yield f"layer {layer} (random)", tuple(Intervention(site, AddEqual(0)) for site in sites)
        for text in asked.heads:
            layer_text, _, head_text = text.partition(".")
            if not (layer_text.isdigit() and head_text.isdigit()):
                raise XatlasError(f"the head '{text}' does not fit: write it as LAYER.HEAD, as 3.1.")
            site, heads = Site(int(layer_text), "heads"), (int(head_text),)
            for name, change in (("", Zero()), (" (random)", AddEqual(0))):
                one = Intervention(site, change, heads=heads)
                model.check(one)
                yield f"layer {site.layer} head {heads[0]}{name}", (one,)


@hookimpl
def xatlas_probes() -> list[type[Probe]]:
    """Return the probe."""
    return [AblatedCapability]
