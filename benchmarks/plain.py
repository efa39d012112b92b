"""The plain way to measure what a probe asks for: one hooked, whole Hugging Face forward per condition and prompt.

What changes look at (clean values, means, another run's values) is captured before any time is taken.
"""

from __future__ import annotations

import numpy as np
import torch

from xatlas.interventions import edit
from xatlas.metrics import TokenLogits
from xatlas.model.hooks import attached


class PlainContext:
    """What changes look at, for one prompt: captured once, before any time is taken."""

    def __init__(self, call, row):
        self.call, self.seed, prompt = call, call.seed, call.prompts[row]
        self.prompt, self.length, self.names = prompt, len(prompt.ids), [prompt.prompt.id]
        sites = {site for condition in call.conditions for part in condition for site in _looked_at(part)}
        model = call.model
        kinds = [site for site in sorted(sites) if model.has(site)]
        self.values = {"clean": model.capture(torch.tensor([prompt.ids], device=model.device), kinds)}
        for name, run in call.runs.items():
            if run[row] is not None:
                self.values[name] = model.capture(torch.tensor([run[row]], device=model.device), kinds)

    def mask(self, positions):
        """Return the class's tokens ``(1, pos)``; None for all."""
        if positions == "all":
            return None
        found = torch.zeros(1, self.length, dtype=torch.bool, device=self.call.model.device)
        found[:, list(self.prompt.positions(positions))] = True
        return found

    def first(self):
        """Return position 0 ``(1, pos)``."""
        return self.mask("first")

    def mean(self, site):
        """Return the reference means ``(2, ...)``."""
        return self.call.means[site].to(self.call.model.device)

    def clean(self, site):
        """Return clean values ``(1, pos, ...)``."""
        return self.values["clean"][site]

    def source(self, site, name):
        """Return another run's values ``(1, pos, ...)``."""
        return self.values[name][site]


def _looked_at(part):
    """Return every site that a change may look at, however deep."""
    found = {part.site, *part.change.reads_sites(part.site)}
    for inner in part.change.reads():
        found |= _looked_at(inner)
    return found


@torch.inference_mode()
def plain(call, contexts):
    """Measure the first metric ``(prompt, condition)``, one hooked whole forward each."""
    model, metric = call.model, call.metrics[0]
    result = np.full((len(call.prompts), len(call.conditions)), np.nan)
    for row, (prompt, context) in enumerate(zip(call.prompts, contexts, strict=True)):
        ids = torch.tensor([prompt.ids], device=model.device)
        at = list(metric.positions(prompt))
        answers = [torch.tensor([-1 if t is None else t] * len(at)) for t in (prompt.answer, prompt.foil_answer)]
        clean = model.model(input_ids=ids, use_cache=False).logits[0, at].float()
        for column, condition in enumerate(call.conditions):
            if any(name not in context.values for part in condition for name in part.change.runs()):
                continue
            hooks = []
            for part in condition:
                hooks += model.edit_hooks(part.site, lambda value, part=part, at=context: edit(part, value, at))
            with attached(hooks):
                logits = model.model(input_ids=ids, use_cache=False).logits[:, at].float()
            read = TokenLogits(clean, logits, torch.full((len(at),), -1), *answers)
            result[row, column] = float(metric.per_token(read).sum()) * metric.weight(prompt)
    return result
