"""What is swept in the tests of the engine, told twice: for the engine, and for the plain hook loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import reference as ref
import torch
from models import donor_for, token_prompt

from xatlas.contracts.adapter import Site
from xatlas.interventions import Add, FromRun, InSubspace, Intervention, Mean, One, RandomDirection, Target, Zero
from xatlas.metrics import KL, DeltaNLL, LogitDifference, Top1Changed
from xatlas.sweep import sweep
from xatlas.vocabulary import READ_ONLY

SEED = 11
METRICS = [KL(), KL("all"), DeltaNLL(), Top1Changed(), LogitDifference()]
#: Two of equal length, only one of them with a target, and a longer one; the second has no donor.
PROMPTS = [token_prompt("a", 5), token_prompt("c", 4, 2, family="g"), token_prompt("d", 7, 3)]
DONORS = [donor_for(PROMPTS[0]), None, donor_for(PROMPTS[2])]
VECTOR = torch.linspace(-1, 1, 32)


class Part(NamedTuple):
    """One intervention, told once for the engine and once, in plain words, for the reference."""

    layer: int
    kind: str
    how: str
    heads: tuple[int, ...] | None = None
    positions: str = "all"

    @property
    def site(self):
        return Site(self.layer, self.kind)


def intervention(part, model):
    """Return what the engine is given."""
    own = (Intervention(part.site, Zero(), heads=part.heads),)
    joint = (Intervention(Site(part.layer, "operator_out"), Zero()), Intervention(Site(part.layer, "mlp_out"), Mean()))
    width = model.head_layouts[part.layer].d_head if part.kind == "heads" else 4
    change = {
        "zero": Zero(),
        "one": One(),
        "mean": Mean(),
        "run": FromRun("donor"),
        "add": Add(VECTOR),
        "random": RandomDirection(own, 1),
        "random joint": RandomDirection(joint),
        "subspace": InSubspace(Mean(), width, "here"),
    }[part.how]
    return Intervention(part.site, change, heads=part.heads, positions=part.positions)


class Plain:
    """The reference's side: what a site's value becomes, written out with indices and norms."""

    def __init__(self, model, means):
        self.model, self.means = model, means
        self.sites = [(s.layer, s.kind) for s in editable(model)]

    def expected(self, cases):
        """Return ``(metric, prompt, case)``."""
        table = np.full((len(METRICS), len(PROMPTS), len(cases)), np.nan)
        for row, (prompt, donor) in enumerate(zip(PROMPTS, DONORS, strict=True)):
            self.name = prompt.prompt.id
            self.clean = ref.every_value(self.model.model, prompt.ids, self.sites)
            self.donor = donor and ref.every_value(self.model.model, donor, self.sites)
            logits = ref.logits(self.model.model, prompt.ids)
            told = [i for i, case in enumerate(cases) if donor or all(part.how != "run" for part in case)]
            edits = [[(part.layer, part.kind, self.edit(part, prompt)) for part in cases[i]] for i in told]
            changed = ref.many_logits(self.model.model, prompt.ids, edits)
            table[:, row, told] = np.transpose([ref.measure(prompt, logits, each) for each in changed])
        return table

    def edit(self, part, prompt):
        def change(value):
            new = value.clone()
            heads = list(part.heads) if part.heads is not None else None
            chosen = value if heads is None else value[:, :, heads]
            changed = self.changed(part, chosen)
            for p in places(prompt, part.positions):
                if heads is None:
                    new[:, p] = changed[:, p]
                else:
                    new[:, p, heads] = changed[:, p]
            return new

        return change

    def changed(self, part, value):
        of_heads = (lambda t: t) if part.heads is None else (lambda t: t[..., list(part.heads), :])
        if part.how in ("zero", "one"):
            return torch.full_like(value, float(part.how == "one"))
        if part.how == "run":
            return of_heads(self.donor[part.layer, part.kind])
        if part.how == "add":
            return value + VECTOR
        if part.how == "mean":
            return of_heads(self.mean(part.site, value.shape[1]))
        if part.how == "subspace":
            width = self.model.head_layouts[part.layer].d_head if part.kind == "heads" else 4
            difference = (self.mean(part.site, value.shape[1]) - value).flatten(2)
            basis, _ = torch.linalg.qr(drawn(part, (difference.shape[-1], width), "here"))
            return value + (difference @ (basis @ basis.T)).reshape(value.shape)
        if part.how == "random":
            change, label = of_heads(self.clean[part.layer, part.kind]), "direction 1"
        else:
            operator, mlp = self.clean[part.layer, "operator_out"], self.clean[part.layer, "mlp_out"]
            change, label = self.mean(Site(part.layer, "mlp_out"), mlp.shape[1]) - mlp - operator, "direction 0"
        direction = drawn(part, value.shape[2:], f"{label}|{self.name}")
        unit = direction / direction.square().sum().sqrt()
        norms = change.reshape(*change.shape[:2], -1).square().sum(-1).sqrt()
        return value + torch.stack([torch.stack([n * unit for n in row]) for row in norms])

    def mean(self, site, length):
        first, others = self.means[site]
        return torch.stack([first] + [others] * (length - 1))[None]


def drawn(part, shape, label):
    """Return the random numbers that belong to a place; which they are is the engine's own choice."""
    return Target(SimpleNamespace(seed=SEED), part.site, part.heads).random(shape, label, torch.zeros(1))


def places(prompt, positions):
    readout, subject = prompt.readout, set(prompt.subject)
    text = set(range(prompt.n_text))
    return {
        "all": set(range(len(prompt.ids))),
        "first": {0},
        "last": {readout},
        "subject": subject - {0, readout},
        "other": (text | set(range(readout))) - subject - {0, readout},
    }[positions]


def editable(model):
    kinds = {kind for layer in range(model.n_layers) for kind in model.adapter.hook_points(layer)} - READ_ONLY
    return sorted(site for kind in kinds for site in model.sites(kind))


def random_means(model):
    values = model.capture(torch.tensor([PROMPTS[0].ids]), editable(model))
    generator = torch.Generator().manual_seed(4)
    return {site: torch.randn(2, *value.shape[2:], generator=generator) for site, value in values.items()}


def all_cases(model):
    cases = []
    for site in editable(model):
        layer, kind = site.layer, site.kind
        hows = ["zero", "run", "mean", "random"]
        hows += [] if kind == "heads" else ["add"]
        hows += ["one"] if kind.startswith("conv") else []
        cases += [[Part(layer, kind, how)] for how in hows]
        wheres = ("first", "subject", "last", "other") if kind in ("mlp_out", "resid_mid") else ("last",)
        cases += [[Part(layer, kind, "mean", None, where)] for where in wheres]
        layout = model.head_layouts[layer]
        if kind == "heads":
            group = tuple(h for h in range(layout.n_heads) if layout.kv_group(h) == layout.n_kv_heads - 1)
            cases += [[Part(layer, kind, "mean", (head,))] for head in range(layout.n_heads)]
            cases += [[Part(layer, kind, how, heads)] for heads in ((0,), group) for how in ("zero", "random", "run")]
            cases += [[Part(layer, kind, "mean", group)]]
            cases += [[Part(layer, kind, "mean", (0,), "last")], [Part(layer, kind, "subspace")]]
    for layer in range(model.n_layers):
        for how in ("zero", "mean", "run"):
            cases.append([Part(layer, "operator_out", how), Part(layer, "mlp_out", how)])
        cases.append([Part(layer, "resid_post", "random joint")])
        cases.append([Part(layer, "operator_out", "zero", None, "last"), Part(layer, "mlp_out", "zero", None, "last")])
        cases.append([Part(layer, "operator_out", "zero"), Part(layer, "mlp_out", "random")])
        cases.append([Part(0, "operator_out", "mean"), Part(layer, "resid_mid", "add")])
        cases.append([Part(layer, "mlp_out", "zero"), Part(model.n_layers - 1, "operator_out", "run")])
    return cases


def measured(model, cases, metrics=METRICS, **more):
    conditions = [tuple(intervention(part, model) for part in case) for case in cases]
    means = more.pop("means", None) or random_means(model)
    return sweep(model, PROMPTS, conditions, metrics, runs={"donor": DONORS}, means=means, seed=SEED, **more)
