"""The engine gives the numbers of the plain hook loop, on every shape and for everything that can be changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import reference as ref
import torch
from models import SHAPES, donor_for, token_prompt

from xatlas.errors import XatlasError
from xatlas.interventions import Add, FromRun, InSubspace, Intervention, Mean, One, Place, RandomDirection, Zero
from xatlas.metrics import KL, DeltaNLL, LogitDifference, Top1Changed
from xatlas.sites import READ_ONLY, Site
from xatlas.sweep import sweep
from xatlas.sweep.budget import Budget

SEED = 11
METRICS = [KL(), KL("all"), DeltaNLL(), Top1Changed(), LogitDifference()]
#: Two of equal length, only one of them with a target, and a longer one; the second has no donor.
PROMPTS = [token_prompt("a", 5), token_prompt("c", 4, 2), token_prompt("d", 7, 3)]
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
            self.clean = ref.every_value(self.model.model, prompt.ids, self.sites)
            self.donor = donor and ref.every_value(self.model.model, donor, self.sites)
            logits = ref.logits(self.model.model, prompt.ids)
            for column, case in enumerate(cases):
                if donor is None and any(part.how == "run" for part in case):
                    continue
                edits = [(part.layer, part.kind, self.edit(part, prompt)) for part in case]
                table[:, row, column] = ref.measure(self.model.model, prompt, edits, logits)
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
        direction = drawn(part, value.shape[2:], label)
        unit = direction / direction.square().sum().sqrt()
        norms = change.reshape(*change.shape[:2], -1).square().sum(-1).sqrt()
        return value + torch.stack([torch.stack([n * unit for n in row]) for row in norms])

    def mean(self, site, length):
        first, others = self.means[site]
        return torch.stack([first] + [others] * (length - 1))[None]


def drawn(part, shape, label):
    """Return the random numbers that belong to a place; which they are is the engine's own choice."""
    return Place(SimpleNamespace(seed=SEED), part.site, part.heads).random(shape, label, torch.zeros(1))


def places(prompt, positions):
    readout, subject = prompt.readout, set(prompt.subject)
    text = set(range(prompt.n_text))
    return {
        "all": set(range(len(prompt.ids))),
        "first": {0},
        "last": {readout},
        "subject": subject - {0, readout},
        "other": text - subject - {0, readout},
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


@pytest.mark.parametrize("name", SHAPES)
def test_the_engine_gives_the_numbers_of_the_reference_loop(shape, name):
    model = shape(name)
    cases = all_cases(model)
    # Two sites of one layer given twice in a case would be one intervention too many for the plain hooks.
    cases = [case for case in cases if len({part.site for part in case}) == len(case)]
    ours, theirs = measured(model, cases), Plain(model, random_means(model)).expected(cases)
    wrong = [case for column, case in enumerate(cases) if not ref.agree(ours[:, :, column], theirs[:, :, column])]
    assert wrong == []
    missing = [column for column, case in enumerate(cases) if any(part.how == "run" for part in case)]
    assert missing
    assert np.isnan(ours[0]).sum() == len(missing)  # one prompt has no donor; nothing else is NaN
    assert np.nanmax(ours[0]) > 1e-2  # the interventions matter, so agreement means something


@pytest.mark.parametrize("name", SHAPES)
def test_changes_at_the_readout_alone_give_the_numbers_of_the_reference_loop(shape, name):
    model = shape(name)
    cases = [
        [Part(site.layer, site.kind, how, None, "last")] for site in editable(model) for how in ("zero", "mean", "run")
    ]
    cases += [
        [Part(0, "operator_out", "zero", None, "last"), Part(model.n_layers - 1, "mlp_out", "mean", None, "last")]
    ]
    cases = [case for case in cases if len({part.site for part in case}) == len(case)]
    ours = measured(model, cases, [KL(), Top1Changed()])
    theirs = Plain(model, random_means(model)).expected(cases)[[0, 3]]
    wrong = [case for column, case in enumerate(cases) if not ref.agree(ours[:, :, column], theirs[:, :, column])]
    assert wrong == []


@pytest.mark.parametrize("name", ["lfm2", "lfm2-all-conv", "lfm2-kernel-4-biased", "llama"])
def test_only_what_decides_the_readout_is_run(shape, name, monkeypatch):
    """Convolutions at the end run on the positions that they read; the numbers are those of a run on all."""
    model = shape(name)
    cases = [case for case in all_cases(model) if any(part.positions != "last" for part in case)]
    whole = measured(model, cases)[0]  # KL at scope all is read as well, so every position is run
    run_layer, lengths = model.run_layer, {}

    def spy(layer, hidden, *rest):
        lengths.setdefault(layer, set()).add(hidden.shape[1])
        return run_layer(layer, hidden, *rest)

    monkeypatch.setattr(model, "run_layer", spy)
    assert ref.agree(measured(model, cases, [KL()])[0], whole)
    kernel = model.adapter.reach(2)
    shortest = {layer: min(found) for layer, found in lengths.items()}
    everything = min(prompt.readout + 1 for prompt in PROMPTS)
    expected = everything if kernel is None else kernel
    assert shortest[2] == expected
    if name == "lfm2-all-conv":
        assert shortest[1] == min(2 * kernel - 1, everything)


@pytest.mark.parametrize("name", ["llama-untied-biased", "lfm2", "lfm2-kernel-4-biased"])
def test_skipping_a_layer_is_joint_at_zero(shape, name):
    """Block output := block input, by a plain hook, is what ``joint`` at ``zero`` measures."""
    model = shape(name)
    for layer in range(model.n_layers):
        joint = tuple(Intervention(Site(layer, kind), Zero()) for kind in ("operator_out", "mlp_out"))
        ours = sweep(model, PROMPTS, [joint], [KL()])[0, :, 0]
        for row, prompt in enumerate(PROMPTS):
            clean = ref.logits(model.model, prompt.ids)
            entering = ref.values(model.model, prompt.ids, layer, "resid_pre")
            skipped = ref.logits(model.model, prompt.ids, [(layer, "resid_post", lambda _, x=entering: x)])
            assert ref.agree(ours[row], ref.kl(clean[prompt.readout], skipped[prompt.readout]))


def test_a_change_that_changes_nothing_is_exactly_zero(shape):
    model = shape("lfm2")
    nothing = [(Intervention(site, Add(torch.zeros(32))),) for site in editable(model) if site.kind != "heads"]
    nothing += [(Intervention(Site(0, "mlp_out"), FromRun("self")),)]
    own = {"self": [prompt.ids for prompt in PROMPTS]}
    values = sweep(model, PROMPTS, nothing, METRICS, runs=own)
    assert np.nanmax(np.abs(values)) == 0


def test_a_change_after_the_last_position_that_is_read_does_nothing(shape):
    """Prompt c runs one token of its target; ``all`` reads the text only, ``other`` leaves the target alone."""
    model = shape("llama")
    condition = (Intervention(Site(0, "mlp_out"), Mean(), positions="other"),)
    values = sweep(model, PROMPTS, [condition], [KL()], means=random_means(model))
    assert values.min() > 0
    untouched = token_prompt("short", 2, subject=())  # its two positions are the first and the readout
    values = sweep(model, [untouched], [condition], [KL(), KL("all")], means=random_means(model))
    assert values.max() == 0


# -- budget, memory, numbers that are not finite ---------------------------------------------------


def test_the_budget_changes_nothing_but_memory(shape):
    model = shape("lfm2")
    cases = all_cases(model)[::3]
    small = Budget(stream_bytes=6000, logit_bytes=1500, tile_tokens=64)
    assert ref.agree(measured(model, cases), measured(model, cases, budget=small))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_halves_the_budget(shape, monkeypatch, error):
    from xatlas.sweep import walk

    model = shape("llama")
    cases = all_cases(model)[::5]
    plain = measured(model, cases)
    tiles, run = [], walk.Walk.run

    def failing(self):
        tiles.append(self.tile)
        if len(tiles) == 1:
            raise error
        yield from run(self)

    monkeypatch.setattr(walk.Walk, "run", failing)
    assert ref.agree(measured(model, cases), plain)
    assert tiles[1] < tiles[0]


def test_memory_that_stays_short_is_told_in_one_line(shape, monkeypatch):
    from xatlas.sweep import walk

    def failing(self):
        raise torch.OutOfMemoryError("out of memory")
        yield

    monkeypatch.setattr(walk.Walk, "run", failing)
    with pytest.raises(XatlasError, match="not enough memory for a single prompt"):
        measured(shape("llama"), [[Part(0, "mlp_out", "zero")]])


def test_other_errors_of_a_run_are_not_taken_for_memory(shape, monkeypatch):
    from xatlas.sweep import walk

    def failing(self):
        raise RuntimeError("shapes cannot be multiplied")
        yield

    monkeypatch.setattr(walk.Walk, "run", failing)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        measured(shape("llama"), [[Part(0, "mlp_out", "zero")]])


def test_logits_that_are_not_finite_stay_with_their_prompt_and_condition(shape):
    """One condition overflows in one prompt; its neighbours in batch and condition keep their numbers."""
    model = shape("llama")
    far = (Intervention(Site(1, "resid_post"), Add(torch.full((32,), torch.inf)), positions="subject"),)
    near = (Intervention(Site(1, "resid_post"), Add(VECTOR)),)
    # The second prompt has no subject, so nothing is added there.
    prompts = [token_prompt("has", 5), token_prompt("lacks", 5, seed=3, subject=())]
    values = sweep(model, prompts, [far, near], [KL(), KL("all"), Top1Changed()])
    assert np.isnan(values[:, 0, 0]).all()
    assert (values[:, 1, 0] == 0).all()
    alone = sweep(model, prompts, [near], [KL(), KL("all"), Top1Changed()])
    assert ref.agree(values[:, :, 1], alone[:, :, 0])


# -- what is refused, progress, checkpoints -------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ((), "at least one intervention"),
        ((Intervention(Site(9, "mlp_out"), Zero()),), "layer 9 is out of range"),
        ((Intervention(Site(0, "conv_gate"), Zero()),), "unknown site kind in layer 0"),
        ((Intervention(Site(0, "mlp_out"), Mean()),), "no reference mean was given for L0.mlp_out"),
        ((Intervention(Site(0, "mlp_out"), FromRun("x")),), "was not given the run 'x'"),
    ],
)
def test_what_can_not_be_measured_is_refused_before_anything_runs(shape, monkeypatch, condition, told):
    model = shape("llama")
    monkeypatch.setattr(model, "record", lambda ids: pytest.fail("it ran"))
    with pytest.raises(XatlasError, match=told):
        sweep(model, PROMPTS, [condition], [KL()])


def test_a_run_of_another_length_is_refused(shape):
    runs = {"donor": [(1, 2, 3)] * len(PROMPTS)}
    with pytest.raises(XatlasError, match="run 'donor' of prompt 'a' has 3 tokens, not 5"):
        sweep(shape("llama"), PROMPTS, [(Intervention(Site(0, "mlp_out"), FromRun("donor")),)], [KL()], runs=runs)


class Kept:
    def __init__(self):
        self.parts = {}

    def load(self, key):
        return self.parts.get(key)

    def save(self, key, arrays):
        self.parts[key] = arrays


def test_finished_buckets_are_not_measured_again(shape, monkeypatch):
    model, kept = shape("llama"), Kept()
    cases = [[Part(layer, "mlp_out", "zero")] for layer in range(3)]
    first = measured(model, cases, checkpoint=kept)
    assert len(kept.parts) == len({len(prompt.ids) for prompt in PROMPTS})
    gone = kept.parts.popitem()
    runs, record = [], model.record
    monkeypatch.setattr(model, "record", lambda ids: runs.append(ids) or record(ids))
    assert ref.agree(measured(model, cases, checkpoint=kept), first)
    assert len(runs) == 1
    assert gone[0] in kept.parts


def test_progress_counts_prompts(shape):
    heard = []
    cases = [[Part(0, "mlp_out", "zero")]]
    measured(shape("llama"), cases, progress=lambda *told: heard.append(told), label="demo")
    assert heard[-1] == ("demo", len(PROMPTS), len(PROMPTS))
    assert [done for _, done, _ in heard] == sorted({done for _, done, _ in heard})
