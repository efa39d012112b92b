"""Threads that share a model take turns: each gets the numbers that it would get alone."""

from __future__ import annotations

import copy
import threading

import numpy as np
import torch
from models import build, token_prompt

from xatlas.contracts.adapter import Site
from xatlas.interventions import Add, Intervention, RandomDirection, Zero
from xatlas.metrics import KL
from xatlas.model import HookedModel
from xatlas.probing.patching import gradients
from xatlas.sweep import sweep

PROMPTS = [[token_prompt(f"{t}{n}", n, 1, seed=t) for n in (5, 5, 8)] for t in range(3)]
SITES = [Site(layer, kind) for layer in range(3) for kind in ("resid_mid", "mlp_out")]
HELD = [Intervention(Site(1, "mlp_out"), Add(torch.ones(32)))]


def all_at_once(*works, rounds=8):
    """Run functions in threads, each several times; return what each gave."""
    found, start = [[] for _ in works], threading.Barrier(len(works))

    def repeat(index, work):
        start.wait()
        for _ in range(rounds):
            found[index].append(work())

    threads = [threading.Thread(target=repeat, args=each, daemon=True) for each in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert all(len(each) == rounds for each in found)
    return found


def works(model, thread):
    """Return everything that hooks or runs a model, each as a function that gives arrays."""
    prompts = PROMPTS[thread]
    ids = model.tokens(prompts[:2])
    controlled = [(Intervention(site, RandomDirection((Intervention(site, Zero()),))),) for site in SITES]

    def held():
        with model.intervene(HELD):
            return model.capture(ids, SITES)[SITES[-1]]

    def plain():
        with torch.no_grad():
            return model.model(input_ids=ids).logits

    return {
        "capture": lambda: model.capture(ids, SITES)[SITES[-1]],
        "record": lambda: model.record(ids).final,
        "sweep": lambda: sweep(model, prompts, controlled, [KL()]),
        "gradients": lambda: gradients(model, prompts[:2], SITES)[SITES[0]][1],
        "proof": lambda: HookedModel(model.model, None).capture(ids, SITES)[SITES[-1]],
        "held": held,
        "plain": plain,
    }


def test_threads_get_the_numbers_that_they_get_alone():
    model = HookedModel(build("llama"), None)
    chosen = [("sweep", "sweep", "capture"), ("gradients", "record", "proof"), ("held", "capture", "sweep")]
    chosen.append(("plain", "sweep", "capture"))  # a forward that knows of no lock
    for names in chosen:
        jobs = [works(model, thread)[name] for thread, name in enumerate(names)]
        alone = [np.asarray(job()) for job in jobs]
        for name, right, given in zip(names, alone, all_at_once(*jobs), strict=True):
            assert all(np.array_equal(right, np.asarray(each)) for each in given), (names, name)


def test_a_forward_of_another_thread_amid_a_recorded_one_is_no_part_of_it():
    model = HookedModel(build("llama"), None)
    ids, other = (model.tokens(prompts[:2]) for prompts in PROMPTS[:2])
    right, main = model.record(ids, SITES), threading.get_ident()

    def amid(*_):
        if threading.get_ident() == main:
            thread = threading.Thread(target=lambda: model.model(input_ids=other))
            thread.start()
            thread.join()

    model.adapter.layer(1).register_forward_pre_hook(amid)
    found = model.record(ids, SITES)
    assert len(found.calls) == model.n_layers
    assert all(map(torch.equal, [*found.inputs, found.final], [*right.inputs, right.final]))
    assert all(torch.equal(found.values[site], right.values[site]) for site in SITES)


def test_what_intervene_holds_makes_other_threads_wait_and_reaches_a_generation_in_a_thread():
    """Streaming runs ``generate`` in a thread of its own, while the caller holds the interventions."""
    model = HookedModel(build("llama"), None)
    ids = model.tokens(PROMPTS[0][:1])
    clean, seen = model.capture(ids, SITES)[SITES[-1]], []
    with model.intervene(HELD):
        waiting = threading.Thread(target=lambda: seen.append(model.capture(ids, SITES)[SITES[-1]]), daemon=True)
        waiting.start()
        within = model.model(input_ids=ids).logits
        free = []
        streaming = threading.Thread(target=lambda: free.append(model.model(input_ids=ids).logits), daemon=True)
        streaming.start()
        streaming.join(60)
        assert not seen
    waiting.join(60)
    assert torch.equal(seen[0], clean)
    assert torch.equal(free[0], within)


def test_a_hooked_model_can_still_be_copied():
    model = HookedModel(build("llama"), None)
    twin = copy.deepcopy(model)
    assert twin.lock is not model.lock
    ids = model.tokens(PROMPTS[0][:2])
    assert torch.equal(twin.capture(ids, SITES[:1])[SITES[0]], model.capture(ids, SITES[:1])[SITES[0]])
