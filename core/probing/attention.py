"""What attention patterns say of heads: where they look, from how far, and whether they complete repeated texts."""

from __future__ import annotations

import torch
from torch import Tensor

#: Measures of a head's pattern on a text, with their units and what they are.
SCORES: dict[str, tuple[str, str]] = {
    "entropy": ("nats", "entropy of a query's weights"),
    "distance": ("token", "mean distance between query and key"),
    "first_weight": ("1", "weight on position 0"),
    "previous_score": ("1", "weight on the previous token"),
}
#: Queries before this one are left out: for them position 0 is the previous token, or the token itself.
FIRST_QUERY = 2


def head_scores(pattern: Tensor, window: int | None = None) -> dict[str, Tensor]:
    """Return :data:`SCORES` ``(..., head)`` of a pattern ``(..., head, query, key)``: means over its queries.

    ``window`` is how many of the latest tokens a query sees: where none sees position 0, or the previous token, there
    is no such weight, and the score is NaN; so are all scores of a text of fewer than three tokens.
    """
    n = pattern.shape[-1]
    place = torch.arange(n, device=pattern.device)
    weights, queries = pattern[..., FIRST_QUERY:, :].float(), place[FIRST_QUERY:]
    back = queries[:, None] - place
    seen = n if window is None else window
    previous = weights.diagonal(FIRST_QUERY - 1, -2, -1)
    return {
        "entropy": torch.special.entr(weights).sum(-1).mean(-1),
        "distance": (weights * back).sum(-1).mean(-1),
        "first_weight": weights[..., queries < seen, 0].mean(-1),
        "previous_score": (previous if seen > 1 else previous[..., :0]).mean(-1),
    }


def induction_score(pattern: Tensor, period: int, window: int | None = None) -> Tensor:
    """Return ``(..., head)``: a pattern's mean weight on the token that followed the query's token a period before.

    The pattern ``(..., head, query, key)`` is one of ``period`` tokens and the same again; what stands before them
    does not matter. NaN where no query sees so far.
    """
    followed = pattern.float().diagonal(1 - period, -2, -1)[..., -period:]
    return (followed if window is None or window >= period else followed[..., :0]).mean(-1)
