"""What the slug of a model says, by which results are filed: its training seed, and whose untrained twin it is.

``lfm2-mini~3`` is ``lfm2-mini`` trained from seed 3; ``lfm2-mini~untrained-0`` is the untrained twin of both.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

#: Seeds of the twins that ``compare`` adds to each model with ``null="untrained"``.
TWIN_SEEDS = (0, 1, 2)


def trained_slug(base: str, seed: str) -> str:
    """Return the slug of a network trained from another seed; no other slug has a tilde."""
    return f"{base}~{seed}"


def twin_slug(slug: str, seed: int) -> str:
    """Return the slug of a model's untrained twin."""
    return f"{slug}~untrained-{seed}"


def twin_of(slug: str) -> tuple[str, int] | None:
    """Return the slug of the model whose untrained twin this is, and the twin's seed; None where it is none."""
    found = re.fullmatch(r"(.+)~untrained-(\d+)", slug)
    return (found[1], int(found[2])) if found else None


def training_seed(slug: str) -> tuple[str, int]:
    """Return the slug that all training seeds of a network share, and the seed; 0 where the slug names none."""
    found = re.fullmatch(r"([^~]+)~(\d+)", slug)
    return (found[1], int(found[2])) if found else (slug, 0)


def is_twin(slug: str, model: str) -> bool:
    """Say whether a slug is that of an untrained twin of a model; training seeds of one network share theirs."""
    of = twin_of(slug)
    return of is not None and of[0] in (model, training_seed(model)[0])


def twins(tree: xr.DataTree) -> dict[str, list[str]]:
    """Tell models from their untrained twins, by the names of a tree's nodes.

    Parameters
    ----------
    tree : DataTree
        ``/{model}/{probe}``, as comparisons get it and ``xatlas.open`` returns it.

    Returns
    -------
    dict of str to list of str
        Model → its twins in the tree, by seed: none where there are none. Models that differ by the training seed
        alone share theirs. A twin whose model is not in the tree counts as a model.
    """
    names = list(map(str, tree.children))
    of = {name: own for name in names if (own := twin_of(name))}
    by_seed = sorted(of, key=lambda twin: of[twin][1])
    found = {name: [twin for twin in by_seed if is_twin(twin, name)] for name in names}
    owned = set().union(*found.values())
    return {name: found[name] for name in names if name not in owned}
