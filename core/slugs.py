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


def training_seed(slug: str) -> tuple[str, int]:
    """Return the slug that all training seeds of a network share, and the seed; 0 where the slug names none."""
    found = re.fullmatch(r"([^~]+)~(\d+)", slug)
    return (found[1], int(found[2])) if found else (slug, 0)


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
    of = {name: found for name in names if (found := re.fullmatch(r"(.+)~untrained-(\d+)", name))}
    made = {twin: [name for name in names if found[1] in (name, training_seed(name)[0])] for twin, found in of.items()}
    by_seed = sorted((twin for twin in of if made[twin]), key=lambda twin: int(of[twin][2]))
    return {name: [twin for twin in by_seed if name in made[twin]] for name in names if name not in by_seed}
