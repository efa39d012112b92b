"""Tiny models and suites on disk, and probes that come and go, for the tests of runs and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from xatlas import Probe, Variable, hookimpl, manager
from xatlas.prompts.reader import TokenPrompt, TokenSuite
from xatlas.run.plan import Plan
from xatlas.run.runner import run
from xatlas.schema import label, suite_coords
from xatlas.testing import write_tiny_model

_REGISTRIES = ("adapters", "probes", "comparisons", "models", "suites")


class Counting(Probe):
    """Counts how often it measured; its numbers are the seed."""

    name = "counting"
    variables: ClassVar = {"value": Variable(("prompt",), "1", "the seed")}
    calls: ClassVar[list[str]] = []

    def measure(self, model, suite, inputs):
        self.calls.append(model.slug)
        return seeds(self.variables, suite, inputs)


def seeds(variables, suite, inputs):
    values = {"value": np.full(len(suite), inputs.seed, np.float32)}
    return label(variables, values, suite_coords(read(suite)))


def read(prompts) -> TokenSuite:
    """Return prompts as a model reads them for which every text is one token."""
    return TokenSuite(tuple(TokenPrompt(prompt, (0,), 1, 0, None, None, (), ()) for prompt in prompts))


def another(name: str, measure: Callable[..., Any], **attributes: Any) -> type[Probe]:
    """Return a probe class like ``Counting`` that measures with ``measure(self, model, suite, inputs)``."""
    return type(name, (Counting,), {"name": name, "measure": measure, **attributes})


@contextmanager
def plugged(**hooks: Any) -> Iterator[None]:
    """Register a plugin that returns what is given, e.g. ``xatlas_probes=[Counting]``."""

    def returning(name, value):
        def hook():
            return value

        hook.__name__ = name
        return hookimpl(hook)

    plugin = SimpleNamespace(**{name: returning(name, value) for name, value in hooks.items()})
    manager.manager().register(plugin, name="tests.running")
    forget()
    try:
        yield
    finally:
        manager.manager().unregister(plugin)
        forget()


def forget() -> None:
    for registry in _REGISTRIES:
        getattr(manager, registry).cache_clear()


def tiny(folder: Path, name: str = "tiny", seed: int = 0) -> str:
    """Write a tiny Llama and return its path."""
    return str(write_tiny_llama(folder / name, seed))


def write_tiny_llama(folder: Path, seed: int = 0) -> Path:
    return write_tiny_model(folder, seed=seed, num_hidden_layers=2, max_position_embeddings=64)


def suite_file(path: Path, families: str = "abc", each: int = 4) -> str:
    """Write a suite of short prompts of several lengths and return its path."""
    records = [
        {
            "id": f"{family}{i}",
            "family": family,
            "text": f"{family * (1 + i % 4)} {i} is to {i + 1} as",
            "target": f" {i + 2}",
            "foil": f" {i + 3}",
            "template": f"t{i % 2}",
        }
        for family in families
        for i in range(each)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def go(model, settings, store, *names):
    return run(Plan([model], settings, probes=names), store)
